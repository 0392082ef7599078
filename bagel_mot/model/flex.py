"""Attention of a training pack by FlexAttention: blocks of the mask in which nobody sees anybody are not computed.

On a GPU, with rows in which many samples are packed, that is most of them. It is compiled when it is first used, and
has no gradients on the CPU, where `MaskedAttention` serves.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from bagel_mot.model.attention import MaskedAttention
from bagel_mot.sequence import TrainingLayout, may_attend

_BLOCK = 128  # tokens, of queries and of keys
_BLOCKS_AT_ONCE = 4


class FlexMaskedAttention(MaskedAttention):
    """`MaskedAttention` with a mask that is computed where it is needed and is never in memory as a whole."""

    def __init__(self, layout: TrainingLayout) -> None:
        self.rows, self.und_len = layout.rows, layout.und_len
        self.blocks = block_mask(layout)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Queries (rows, heads, L, head_dim), keys and values (rows, kv_heads, L, head_dim) -> as queries."""
        grouped = query.shape[1] > key.shape[1]
        return _attend(query.device.type)(query, key, value, block_mask=self.blocks, enable_gqa=grouped)


def block_mask(layout: TrainingLayout) -> BlockMask:
    """The blocks of a pack's (rows, L, L) mask that are seen in part or as a whole, and the rule inside the former.

    It is found a few blocks of queries at a time from the O(L) numbers that decide who sees whom.
    """
    length = layout.place.shape[1]
    spare = -length % _BLOCK
    alone = torch.arange(-length - spare, -length, device=layout.place.device)  # padding sees itself alone
    place, sample, segment, mode = (F.pad(part, (0, spare), value=-1) for part in layout.visibility)
    sample[:, length:] = alone
    fields = place, sample, segment, mode
    partial, full = [], []
    for start in range(0, length, _BLOCK * _BLOCKS_AT_ONCE):
        queries = [part[:, start : start + _BLOCK * _BLOCKS_AT_ONCE, None] for part in fields]
        seen = may_attend(queries, [part[:, None] for part in fields])
        seen = seen.unflatten(2, (-1, _BLOCK)).unflatten(1, (-1, _BLOCK))  # (rows, q blocks, q, k blocks, k)
        whole = seen.all(4).all(2)
        full.append(whole)
        partial.append(seen.any(4).any(2) & ~whole)

    def rule(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return may_attend([part[row, query] for part in fields], [part[row, key] for part in fields])

    made: BlockMask = BlockMask.from_kv_blocks(
        *_numbered(partial), *_numbered(full), BLOCK_SIZE=_BLOCK, mask_mod=rule, seq_lengths=(length, length)
    )
    return made


def _numbered(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Blocks (rows, q blocks, k blocks) bool as counts (rows, 1, q blocks) and indices, the chosen ones first."""
    chosen = torch.cat(parts, dim=1)[:, None]
    return chosen.sum(-1, dtype=torch.int32), chosen.int().argsort(dim=-1, descending=True, stable=True).int()


@cache
def _attend(device: str) -> Any:
    """FlexAttention, compiled where that pays: elsewhere, as written, it holds all scores at once."""
    return torch.compile(flex_attention, dynamic=False) if device == "cuda" else flex_attention
