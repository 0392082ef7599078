"""Attention of both experts' tokens in one softmax.

The decoder hands over queries, keys and values of und and gen slots; an *attend* object knows who sees whom:

- `MaskedAttention` for training: rows of slots under one mask;
- `CachedAttention` (`bagel_mot.model.cached_attention`) for inference: each sample's new tokens against its own
  context, whose cache is appended in place.

Keys and values are never repeated for grouped queries. Nothing here needs flash-attn or any other package.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from bagel_mot.sequence import TrainingLayout

Pair = tuple[Tensor, Tensor]  # und slots (S, heads, head_dim) and gen slots (G, heads, head_dim)


class Attend(Protocol):
    """One layer's attention: queries, keys and values of all slots in, attended values out."""

    def __call__(self, query: Pair, key: Pair, value: Pair) -> Pair: ...


class Attention(Protocol):
    """Who sees whom, for all layers of one forward pass."""

    def for_layer(self, layer: int) -> Attend: ...


class MaskedAttention:
    """Attention over the rows of a pack by PyTorch's SDPA.

    Args:
        layout: the pack.
        mask: (rows, L, L) bool, True = may attend, as `TrainingLayout.mask` makes it.
        dtype: the type of the queries. The mask becomes numbers of it here, once, and not in each layer, which would
            keep them for the backward pass too.
    """

    def __init__(self, layout: TrainingLayout, mask: Tensor | None = None, dtype: torch.dtype | None = None) -> None:
        self.rows, self.und_len = layout.rows, layout.und_len
        self.mask = (layout.mask() if mask is None else mask)[:, None]  # (rows, 1, L, L)
        if dtype is not None:
            hidden = torch.zeros((), dtype=dtype, device=self.mask.device).new_full((), float("-inf"))
            self.mask = torch.where(self.mask, 0.0, hidden)

    def for_layer(self, layer: int) -> Attend:
        return self

    def __call__(self, query: Pair, key: Pair, value: Pair) -> Pair:
        def by_row(pair: Pair) -> Tensor:  # -> (rows, heads, L, head_dim)
            return torch.cat([part.view(self.rows, -1, *part.shape[1:]) for part in pair], dim=1).transpose(1, 2)

        out = self.attend(by_row(query), by_row(key), by_row(value)).transpose(1, 2)
        return out[:, : self.und_len].flatten(0, 1), out[:, self.und_len :].flatten(0, 1)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Queries (rows, heads, L, head_dim), keys and values (rows, kv_heads, L, head_dim) -> as queries."""
        grouped = query.shape[1] > key.shape[1]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask, enable_gqa=grouped)
