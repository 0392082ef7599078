"""Half precision on processors that have no instructions for it.

There PyTorch multiplies bfloat16 and float16 several times as slowly as float32 (on an AMD EPYC of the third
generation 64 rows take seven times as long). Weights, activations and caches stay in half precision, which halves their
memory and the reading of a decoded token; where many rows are multiplied a piece of a matrix at a time is widened to
float32, in which its products are added up, and they are rounded once.
"""

from __future__ import annotations

from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bagel_mot.model.kernels import can_prepack
from bagel_mot.model.measuring import shortest
from bagel_mot.model.without_values import without_values
from bagel_mot.threads import Threads

FEWEST_ROWS = 4
"""Fewer rows are multiplied as they are: reading the weights takes their time."""
_PIECE = 1 << 19  # weights that are widened at a time: 2 MB, which stay in the processor's caches
_ROWS, _WIDTH, _TURNS = 64, 512, 3  # of the product that is timed, and how often
_CLEARLY = 0.5  # float32 is taken from this share of the time on


def product_dtype(dtype: torch.dtype, device: str) -> torch.dtype:
    """The type in which numbers of a type are multiplied on a kind of device: float32 for half precision on a CPU that
    is clearly slower in it, which is measured once in a process; else their own.
    """
    if device != "cpu" or dtype not in (torch.bfloat16, torch.float16) or can_prepack(dtype):
        return dtype
    return torch.float32 if _float32_is_faster(dtype) else dtype


@cache
def _float32_is_faster(dtype: torch.dtype) -> bool:
    """Whether a product is clearly faster in float32."""
    # With several threads each call would wait for the slowest of them, and the answer would depend on what else runs.
    with torch.inference_mode(), Threads(1, asked=True).at_work():
        seconds = shortest(
            {
                kind: partial(F.linear, torch.ones(_ROWS, _WIDTH, dtype=kind), torch.ones(_WIDTH, _WIDTH, dtype=kind))
                for kind in (torch.float32, dtype)
            },
            turns=_TURNS,
        )
    return seconds[torch.float32] < _CLEARLY * seconds[dtype]


class WidenedLinear(nn.Linear):
    """A linear map for inference, of weights in half precision whose products are taken in float32."""

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> WidenedLinear:
        """The map with such weights (out, in), which are shared with it."""
        with without_values():
            made = cls(weight.shape[1], weight.shape[0], bias=bias is not None)
        made.weight = nn.Parameter(weight.detach(), requires_grad=False)
        if bias is not None:
            made.bias = nn.Parameter(bias.detach(), requires_grad=False)
        return made

    def forward(self, x: Tensor) -> Tensor:
        """(T, in_features) -> (T, out_features)"""
        weight, bias = self.weight, self.bias
        if x.shape[0] < FEWEST_ROWS or (torch.is_grad_enabled() and x.requires_grad):
            return F.linear(x, weight, bias)
        wide = x.float()
        rows = max(64, _PIECE // self.in_features // 64 * 64)
        if rows >= self.out_features:
            return F.linear(wide, weight.float(), None if bias is None else bias.float()).to(x.dtype)
        out, piece = x.new_empty(x.shape[0], self.out_features), wide.new_empty(rows, self.in_features)
        for start in range(0, self.out_features, rows):
            stop = min(self.out_features, start + rows)
            products = F.linear(wide, piece[: stop - start].copy_(weight[start:stop]))
            out[:, start:stop] = products if bias is None else products.add_(bias[start:stop])
        return out


def can_be_widened(weight: Tensor) -> bool:
    """Whether products of a weight (out, in) are taken in float32, and it is in half precision."""
    return product_dtype(weight.dtype, weight.device.type) != weight.dtype
