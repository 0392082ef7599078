"""The next tokens of many texts in one call of attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bagel_mot.model.buckets import bucket
from bagel_mot.model.cache import KVReservation, Slab

_LEAST_LENGTH = 256  # tokens of context for which a batch of fixed shape has room at the least


class DecodeRow(NamedTuple):
    """A text whose next token is computed.

    Attributes:
        slot: the und slot of its new token.
        reservation: the room for the token's key and value.
    """

    slot: int
    reservation: KVReservation


class DecodeShape(NamedTuple):
    """Everything that decides the shapes of a batch's tensors. R rows of up to L tokens are laid out one after another.

    Attributes:
        rows: R.
        longest: L.
        parts: the number of rows that write to each slab, and of places that are read from it.
    """

    rows: int
    longest: int
    parts: tuple[tuple[int, int], ...]

    @property
    def sizes(self) -> list[int]:
        """The lengths of the lists of numbers of a batch, one after another: see `DecodeBatch`."""
        found = [self.rows, self.rows]
        for rows, places in self.parts:
            found += [rows, rows, *([] if len(self.parts) == 1 else [places]), places]
        return found


class _SlabPart(NamedTuple):
    """The part of a batch in one slab.

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


class _Tables(NamedTuple):
    """A batch's numbers on one device: und slots (R,), who sees what (R, 1, 1, L), and its part in each slab."""

    und: Tensor
    mask: Tensor
    parts: list[_SlabPart]


class DecodeBatch:
    """The next tokens of many texts in one call of attention, each over its own context.

    All contexts lie in a few slabs, so the tokens that a row sees, shared prefixes among them, are a list of slots. The
    lists are made once for all layers; the number of operations does not depend on the number of rows.

    Attributes:
        slabs: the slabs that the contexts lie in.
        shape: the shapes of its lists.
        numbers: int64 (n,), all lists one after another: the und slot and the length of each row; then for each slab
            the rows that write to it, the slots that they write to, the places of R·L that are read from it (not where
            there is one slab alone, from which all are) and the slots that they are read from.
    """

    def __init__(self, slabs: Sequence[Slab], shape: DecodeShape, numbers: Tensor) -> None:
        self.slabs, self.shape, self.numbers = slabs, shape, numbers
        self._on: dict[torch.device, _Tables] = {}

    @classmethod
    def of(cls, rows: Sequence[DecodeRow], *, static: bool = False) -> DecodeBatch:
        """The batch of some rows, whose chunks are in slabs, with its numbers on the CPU.

        Args:
            rows: the rows.
            static: round the numbers of rows, tokens and places up, so that few shapes come to be. Rows that are there
                in vain do what the first one does, places that are there in vain are read by nobody.
        """
        count = bucket(len(rows)) if static else len(rows)
        rows = [*rows, *[rows[0]] * (count - len(rows))]
        pieces = [row.reservation.parts(1) for row in rows]
        lengths = torch.tensor([sum(tokens for _, tokens in own) for own in pieces])
        most = int(lengths.max())
        # Kernels want masks in steps of 8.
        longest = bucket(most, least=_LEAST_LENGTH) if static else -(-most // 8) * 8
        slabs = list({id(chunk.slab): chunk.slab for own in pieces for chunk, _ in own}.values())
        number = {id(slab): n for n, slab in enumerate(slabs)}
        table = torch.tensor(
            [
                (row, number[id(chunk.slab)], chunk.first, tokens)
                for row, own in enumerate(pieces)
                for chunk, tokens in own
            ]
        )
        # Places beyond a row's length read its own new token: unused memory may hold values that are not numbers.
        ends = torch.tensor([(number[id(own[-1][0].slab)], own[-1][0].first + own[-1][1] - 1) for own in pieces])
        tokens = table[:, 3]
        inside = torch.arange(int(tokens.sum())) - (tokens.cumsum(0) - tokens).repeat_interleave(tokens)
        found = ends[:, None].repeat(1, longest, 1)  # (R, L, 2): slab, slot
        found[torch.arange(longest) < lengths[:, None]] = torch.stack(
            [table[:, 1].repeat_interleave(tokens), table[:, 2].repeat_interleave(tokens) + inside], 1
        )
        slab, slot = found.flatten(0, 1).unbind(1)
        lists, parts = [torch.tensor([row.slot for row in rows]), lengths], []
        if len(slabs) == 1:
            lists += [torch.arange(count), ends[:, 1], slot]
            parts.append((count, count * longest))
        for n in range(len(slabs) if len(slabs) > 1 else 0):
            writing, where = (ends[:, 0] == n).nonzero()[:, 0], (slab == n).nonzero()[:, 0]
            slots = slot[where]
            if static:
                writing = torch.cat([writing, writing[:1].repeat(count - len(writing))])
                spare = bucket(len(where), least=_LEAST_LENGTH) - len(where)
                where = torch.cat([where, torch.full((spare,), count * longest)])  # a place that nobody reads
                slots = torch.cat([slots, slots[:1].repeat(spare)])
            lists += [writing, ends[writing, 1], where, slots]
            parts.append((len(writing), len(slots)))
        return cls(slabs, DecodeShape(count, longest, tuple(parts)), torch.cat(lists))

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
        """Writes keys and values (S, kv_heads, head_dim) of the rows' und slots into the cache, and what their queries
        (S, heads, head_dim) attend to into `out`.
        """
        device = query.device
        if device not in self._on:
            self._on[device] = self._tables(device)
        tables = self._on[device]
        (rows, longest, _), (heads, dim), kv_heads = self.shape, query.shape[1:], key.shape[1]
        new = torch.stack([key, value]).index_select(1, tables.und).transpose(1, 2)  # (2, kv_heads, R, head_dim)
        for slab, part in zip(self.slabs, tables.parts, strict=True):
            memory = slab.layers[layer]
            memory.index_copy_(2, part.new, new if part.where is None else new.index_select(2, part.rows))
        seen = new.new_empty(0)
        for slab, part in zip(self.slabs, tables.parts, strict=True):
            read = slab.layers[layer].index_select(2, part.slots)
            if part.where is None:
                seen = read
            else:  # one place more, for what nobody reads
                seen = seen if seen.numel() else new.new_empty(2, kv_heads, rows * longest + 1, dim)
                seen.index_copy_(2, part.where, read)
        if len(self.slabs) > 1:
            seen = seen.narrow(2, 0, rows * longest)
        keys, values = seen.unflatten(2, (rows, longest)).transpose(1, 2)  # (R, kv_heads, L, head_dim) each
        grouped = query.index_select(0, tables.und).view(rows, kv_heads, heads // kv_heads, dim)
        attended = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=tables.mask)
        out.index_copy_(0, tables.und, attended.reshape(rows, heads, dim))

    def _tables(self, device: torch.device) -> _Tables:
        und, lengths, *rest = self.numbers.to(device).split_with_sizes(self.shape.sizes)
        mask = (torch.arange(self.shape.longest, device=device) < lengths[:, None])[:, None, None]
        width = 3 if len(self.slabs) == 1 else 4
        lists = [rest[first : first + width] for first in range(0, len(rest), width)]
        return _Tables(und, mask, [_SlabPart(own[0], own[1], None if width == 3 else own[2], own[-1]) for own in lists])
