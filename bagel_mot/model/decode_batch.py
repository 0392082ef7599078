"""The next tokens of many texts, whose caches share slabs, in one call of attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bagel_mot.model.cache import KVReservation


class _Places(NamedTuple):
    """The part of a `DecodeBatch` in one slab, on one device. R rows of up to L tokens are laid out one after another.

    Attributes:
        rows: the rows whose new token is written here.
        new: the slots that they are written to.
        where: the places of R·L that are read from here; None where all are.
        slots: the slots that they are read from.
    """

    rows: Tensor
    new: Tensor
    where: Tensor | None
    slots: Tensor

    def to(self, device: torch.device) -> _Places:
        where = None if self.where is None else self.where.to(device)
        return _Places(self.rows.to(device), self.new.to(device), where, self.slots.to(device))


class DecodeBatch:
    """The next tokens of many texts in one call of attention, each over its own context.

    All contexts lie in a few slabs, so the tokens that a row sees, shared prefixes among them, are a list of slots. The
    lists are made once for all layers; the number of operations does not depend on the number of rows.

    Args:
        reservations: room for one new text token each, whose chunks are in slabs.
        slots: their und slots.
    """

    def __init__(self, reservations: Sequence[KVReservation], slots: Sequence[int]) -> None:
        parts = [own.parts(1) for own in reservations]
        lengths = torch.tensor([sum(tokens for _, tokens in row) for row in parts])
        self.longest = -(-int(lengths.max()) // 8) * 8  # kernels want masks in steps of 8
        self.mask = (torch.arange(self.longest) < lengths[:, None])[:, None, None]  # (R, 1, 1, L)
        self.und = torch.tensor(slots)
        self.slabs = list({id(chunk.slab): chunk.slab for row in parts for chunk, _ in row}.values())
        number = {id(slab): n for n, slab in enumerate(self.slabs)}
        table = torch.tensor(
            [
                (row, number[id(chunk.slab)], chunk.first, tokens)
                for row, own in enumerate(parts)
                for chunk, tokens in own
            ]
        )
        # Places beyond a row's length read its own new token: unused memory may hold values that are not numbers.
        ends = torch.tensor([(number[id(own[-1][0].slab)], own[-1][0].first + own[-1][1] - 1) for own in parts])
        tokens = table[:, 3]
        inside = torch.arange(int(tokens.sum())) - (tokens.cumsum(0) - tokens).repeat_interleave(tokens)
        found = ends[:, None].repeat(1, self.longest, 1)  # (R, L, 2): slab, slot
        found[self.mask[:, 0, 0]] = torch.stack(
            [table[:, 1].repeat_interleave(tokens), table[:, 2].repeat_interleave(tokens) + inside], 1
        )
        slab, slot = found.flatten(0, 1).unbind(1)
        self.places: list[_Places] = []
        for n in range(len(self.slabs)):
            rows, where = (ends[:, 0] == n).nonzero()[:, 0], (slab == n).nonzero()[:, 0]
            alone = len(self.slabs) == 1
            self.places.append(_Places(rows, ends[rows, 1], None if alone else where, slot[where]))
        self._on: dict[torch.device, tuple[Tensor, Tensor, list[_Places]]] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
        """Writes keys and values (S, kv_heads, head_dim) of the rows' und slots into the cache, and what their queries
        (S, heads, head_dim) attend to into `out`.
        """
        device = query.device
        if device not in self._on:
            places = [part.to(device) for part in self.places]
            self._on[device] = self.mask.to(device), self.und.to(device), places
        mask, und, places = self._on[device]
        rows, (heads, dim), kv_heads = len(self.und), query.shape[1:], key.shape[1]
        new = torch.stack([key, value]).index_select(1, und).transpose(1, 2)  # (2, kv_heads, R, head_dim)
        seen = new.new_empty(0)
        for slab, part in zip(self.slabs, places, strict=True):
            memory = slab.layers[layer]
            memory.index_copy_(2, part.new, new if part.where is None else new.index_select(2, part.rows))
        for slab, part in zip(self.slabs, places, strict=True):
            read = slab.layers[layer].index_select(2, part.slots)
            if part.where is None:
                seen = read
            else:
                seen = seen if seen.numel() else new.new_empty(2, kv_heads, rows * self.longest, dim)
                seen.index_copy_(2, part.where, read)
        keys, values = seen.unflatten(2, (rows, -1)).transpose(1, 2)  # (R, kv_heads, L, head_dim) each
        grouped = query.index_select(0, und).view(rows, kv_heads, heads // kv_heads, dim)
        attended = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
        out.index_copy_(0, und, attended.reshape(rows, heads, dim))
