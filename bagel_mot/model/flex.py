"""Attention of a training pack by FlexAttention: blocks of the mask in which nobody sees anybody are not computed.

On a GPU, with rows in which many samples are packed, that is most of them. It is compiled when it is first used, and
has no gradients on the CPU, where `MaskedAttention` serves.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from bagel_mot.model.attention import Attend, Pair
from bagel_mot.sequence import TrainingLayout


class FlexMaskedAttention:
    """As `MaskedAttention`, for a pack of the same mask."""

    def __init__(self, layout: TrainingLayout) -> None:
        mask = layout.mask()  # (rows, L, L)
        self.rows, length = mask.shape[0], mask.shape[1]

        def may_attend(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return mask[row, query, key]

        self.blocks = create_block_mask(may_attend, self.rows, None, length, length, device=str(mask.device))

    def for_layer(self, layer: int) -> Attend:
        return self

    def __call__(self, query: Pair, key: Pair, value: Pair) -> Pair:
        def by_row(pair: Pair) -> Tensor:  # -> (rows, heads, L, head_dim)
            parts = [part.view(self.rows, -1, *part.shape[1:]) for part in pair]
            return torch.cat(parts, dim=1).transpose(1, 2)

        und_len = query[0].shape[0] // self.rows
        out = _attend(query[0].device.type)(
            by_row(query), by_row(key), by_row(value), block_mask=self.blocks, enable_gqa=True
        ).transpose(1, 2)
        return out[:, :und_len].flatten(0, 1), out[:, und_len:].flatten(0, 1)


@cache
def _attend(device: str) -> Any:
    """Compiled where that pays: elsewhere, as written, it holds all scores at once."""
    return torch.compile(flex_attention, dynamic=False) if device == "cuda" else flex_attention
