"""Activations in 8 bits: the largest of each row, its scale and the rounded numbers, in one pass where there is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
from torch import Tensor

from bagel_mot.model.measuring import fastest

_SMALLEST_SCALE = 1e-12
_ROWS, _WIDTH = 4096, 3584  # an image of 1024×1024 at the official size: what ways are tried with
Quantiser = Callable[[Tensor, torch.dtype], tuple[Tensor, Tensor]]


def quantise_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Activations in 8 bits. On CUDA devices one compiled pass does it where that is right and faster; inside a
    compiled function it is part of that.

    Args:
        x: (T, in).
        dtype: int8, or a kind of float8.

    Returns: the numbers (T, in), and what they are to be multiplied by, float32 (T, 1).
    """
    if x.device.type != "cuda" or torch.compiler.is_compiling():
        return quantise_rows_plainly(x, dtype)
    return quantiser(x.device, x.dtype, dtype)(x, dtype)


def quantise_rows_plainly(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Activations (T, in) in 8 bits by PyTorch's operations, each a pass of its own; see `quantise_rows`."""
    wide = x.float()
    scale = (wide.abs().amax(1, keepdim=True) / _largest(dtype)).clamp(min=_SMALLEST_SCALE)
    scaled = wide / scale
    return (scaled if dtype.is_floating_point else scaled.round()).to(dtype), scale


@cache
def quantiser(device: torch.device, activations: torch.dtype, dtype: torch.dtype) -> Quantiser:
    """The quicker way of `quantise_rows` on a device, for activations of one type; found once."""
    # Numbers of rows come in many sizes, and each would be compiled anew.
    compiled: Quantiser = torch.compile(quantise_rows_plainly, dynamic=True)
    ways: dict[str, Quantiser] = {"plain": quantise_rows_plainly, "compiled": compiled}
    with torch.inference_mode():
        x = torch.linspace(-3, 3, _ROWS * _WIDTH, device=device).view(_WIDTH, _ROWS).t().contiguous().to(activations)

        def named(name: str) -> Callable[[Tensor], Sequence[Tensor]]:
            return lambda x: ways[name](x, dtype)

        return ways[fastest({name: named(name) for name in ways}, [x], device, partial(_same, dtype=dtype))]


def _same(found: Sequence[Tensor], expected: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Whether scales agree, and numbers but for a last digit where a quotient lies between two."""
    more, least = (
        (0.13, 2.0**-9) if dtype.is_floating_point else (0.0, 1.0)
    )  # e4m3 has three bits; whole numbers differ by 1
    close = torch.allclose(found[1], expected[1], rtol=1e-5, atol=0)
    return close and torch.allclose(found[0].float(), expected[0].float(), rtol=more, atol=least)


def _largest(dtype: torch.dtype) -> float:
    return float(torch.finfo(dtype).max) if dtype.is_floating_point else 127.0
