"""Attention of inference: each sample's new tokens against its own context, whose cache is appended in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bagel_mot.model.attend_over import MAX_DECODE_QUERIES, attend_over, causal_mask
from bagel_mot.model.attention import Attend, Pair
from bagel_mot.model.cache import KVReservation, Stretches
from bagel_mot.model.decode_batch import DecodeBatch, DecodeRow
from bagel_mot.model.token_attention import TokenAttention
from bagel_mot.model.widened import product_dtype
from bagel_mot.sequence import CAUSAL, SegmentSpan

_SMALL_ROW = 1 << 18  # bytes of keys and values: they are copied in the time that a call of attention takes to start
_STEP = 64  # tokens: what a small image sees is padded to a multiple


@dataclass(frozen=True)
class CachedSample:
    """One sample of an inference pack: the slots of its new tokens, and the room for their keys and values."""

    spans: Sequence[SegmentSpan]
    reservation: KVReservation

    @property
    def decodes(self) -> bool:
        """Whether it is the next token of a text, which can be computed together with others."""
        spec = self.reservation.chunk.slab.spec
        together = spec.pool is not None or spec.passes is not None
        return together and len(self.spans) == 1 and self.spans[0].length == 1

    @property
    def as_row(self) -> DecodeRow:
        """Such a token as a row of a `DecodeBatch` or `TokenAttention`."""
        return DecodeRow(self.spans[0].und[0], self.reservation)


class _SpanRow:
    """A span of a sample's new tokens: where its keys and values go, and what it sees.

    Attributes:
        reservation: the room for it, behind what it sees.
        stop: the end of what it sees in the reservation.
        slots: its first und and gen slot.
        tokens: the numbers of its und and gen tokens. In the cache those of und come first.
        length: the number of its tokens.
        causal: whether its queries see one another causally.
        sees: the number of tokens that it sees in each piece of memory.
        rooms: the places of und's and gen's keys and values, for each layer.
        mask: see `causal_mask`; made by the first layer that needs it.
    """

    def __init__(self, span: SegmentSpan, reservation: KVReservation) -> None:
        self.reservation = reservation
        self.slots = span.und[0], span.gen[0]
        self.tokens = span.und[1] - span.und[0], span.gen[1] - span.gen[0]
        self.length, self.stop = span.length, span.start + span.length
        self.causal = span.mode == CAUSAL and span.length > 1
        self.sees = tuple(tokens for _, tokens in reservation.parts(self.stop))
        middle = span.start + self.tokens[0]
        self.rooms: list[Stretches] = [
            reservation.room(start, stop) if stop > start else ()
            for start, stop in ((span.start, middle), (middle, self.stop))
        ]
        self.mask: Tensor | None = None

    @property
    def company(self) -> tuple[int, ...] | None:
        """The key of the rows that it is computed together with; None where it is computed alone, since copying what it
        sees takes longer than starting a call of attention.

        What an image sees is padded to a length that it has by itself, whether there are others or not: how many keys a
        call is given decides its last bits, and no image depends on its neighbours in a batch. Accelerators attend to
        images one by one.
        """
        spec = self.reservation.chunk.slab.spec
        size = 2 * sum(self.sees) * spec.kv_heads * spec.head_dim * spec.dtype.itemsize
        if self.causal or spec.devices[0].type != "cpu" or size > _SMALL_ROW:
            return None
        return self.tokens if self.length == 1 else (*self.tokens, _padded(sum(self.sees)))


def _padded(tokens: int) -> int:
    """The number of keys that an image is given which sees so many tokens."""
    return -(-tokens // _STEP) * _STEP


class _RowBuffers(NamedTuple):
    """Memory that a row's queries are brought together in, and its share of the outputs, on one device.

    Attributes:
        query: (1, heads, n, head_dim); None where they are together as they come.
        parts: und's and gen's tokens in it, (n, heads, head_dim) each.
        outs: und's and gen's outputs, as `query`.
    """

    query: Tensor | None
    parts: tuple[Tensor, ...]
    outs: tuple[Tensor, ...]


class _SpanGroup:
    """Rows in one call of attention: what they see is copied side by side into memory that serves all layers, and is
    padded with zeros that nobody sees.

    Args:
        rows: the rows.
        together: memory for their queries, (R, n, heads, head_dim).
        outs: the outputs of all und and gen slots.
    """

    def __init__(self, rows: Sequence[_SpanRow], together: Tensor, outs: Pair) -> None:
        self.rows, self.tokens = rows, rows[0].tokens
        count, n, heads, dim = together.shape
        kv_heads, sees = rows[0].reservation.chunk.slab.spec.kv_heads, [sum(row.sees) for row in rows]
        length = _padded(max(sees)) if n > 1 else max(sees)
        memory = together.new_zeros(2, count, kv_heads, length, dim)
        self.keys, self.values = memory.unbind()
        self.grouped = n > 1 and heads > kv_heads
        self.query = together.view(count, kv_heads, heads // kv_heads, dim) if n == 1 else together.transpose(1, 2)
        self.mask: Tensor | None = None
        if n > 1 or min(sees) < length:
            unseen = torch.arange(length) >= torch.tensor(sees)[:, None]
            mask = together.new_zeros(count, length).masked_fill_(unseen, float("-inf"))
            self.mask = mask[:, None, None].expand(-1, 1, self.query.shape[2], -1)
        self.both = [row.reservation.both(row.stop) for row in rows]
        self.places = []
        for row, room in zip(rows, memory.unbind(1), strict=True):
            done = 0
            for piece in row.sees:
                self.places.append(room.narrow(2, done, piece))
                done += piece
        shape = kv_heads, heads // kv_heads, dim  # grouped queries of a single token are its tokens
        self.outs: list[Tensor] = []
        starts = [[row.slots[expert] for row in rows] for expert in (0, 1)]
        self.evenly = all(_evenly(own) for own, tokens in zip(starts, self.tokens, strict=True) if tokens)
        for out, own, tokens in zip(outs, starts, self.tokens, strict=True):
            if not tokens:
                continue
            if self.evenly:
                step = own[1] - own[0] if count > 1 else tokens
                strides = (step * heads * dim, heads * dim, dim, 1)
                if n > 1:
                    place = out.as_strided((count, tokens, heads, dim), strides, own[0] * heads * dim).transpose(1, 2)
                else:
                    strides = (strides[0], heads // kv_heads * dim, dim, 1)
                    place = out.as_strided((count, *shape), strides, own[0] * heads * dim)
                self.outs.append(place)
            else:
                places = (out[start : start + tokens] for start in own)
                self.outs += (place.transpose(0, 1) if n > 1 else place.view(shape) for place in places)

    def attend(self, layer: int) -> tuple[list[Tensor], list[Tensor]]:
        """Where the outputs belong, and the outputs."""
        _copy(self.places, [piece for both in self.both for piece in both[layer]])
        found = F.scaled_dot_product_attention(
            self.query, self.keys, self.values, attn_mask=self.mask, enable_gqa=self.grouped
        )
        parts = found.split_with_sizes(self.tokens, 2) if all(self.tokens) else (found,)
        return self.outs, list(parts) if self.evenly else [own for part in parts for own in part.unbind()]


def _evenly(starts: Sequence[int]) -> bool:
    """Whether numbers grow by the same step."""
    return len({after - before for before, after in pairwise(starts)}) <= 1


class CachedAttention:
    """Each sample's new tokens against its context and themselves.

    A full or noised segment sees everything up to its own end; a text sees everything before it and, causally,
    itself. Both are contiguous stretches of the cache, so no mask is needed except a small one for a text behind a
    context.

    On the CPU small rows of one shape are computed together. All layers do the same, so views of what they read and
    write are made once for all of them. Slots behind those of the last sample are padding.

    Args:
        samples: the samples, those among them that are decoded together included.
        batch: texts that are decoded together, in place of samples.
    """

    def __init__(self, samples: Sequence[CachedSample], batch: DecodeBatch | None = None) -> None:
        batched = [sample.as_row for sample in samples if sample.decodes]
        self.batch: DecodeBatch | TokenAttention | None = batch
        if batched and (passes := batched[0].reservation.chunk.slab.spec.passes) is not None:
            self.batch = TokenAttention(batched, passes)
        elif len(batched) > 1:
            self.batch = DecodeBatch.of(batched)
        self.rows = [
            _SpanRow(span, sample.reservation)
            for sample in samples
            for span in sample.spans
            if not (self.batch and sample.decodes)
        ]
        company: dict[tuple[int, ...] | None, list[_SpanRow]] = {}
        for row in self.rows:
            company.setdefault(row.company, []).append(row)
        self.groups = [
            rows for shape, rows in company.items() if shape is not None and (len(rows) > 1 or rows[0].length > 1)
        ]
        self._on: dict[torch.device, tuple[Pair, list[_RowBuffers], list[_SpanGroup]]] = {}

    def for_layer(self, layer: int) -> Attend:
        return partial(self._attend, layer)

    def _attend(self, layer: int, query: Pair, key: Pair, value: Pair) -> Pair:
        whole = query[0].shape[0], query[1].shape[0]
        if len(self.rows) == 1 and not self.groups and self.rows[0].tokens == whole and sum(whole) > 1:
            return self._attend_one(layer, self.rows[0], query, key, value)
        if query[0].device not in self._on:
            self._on[query[0].device] = self._buffers(query, key[0].shape[1])
        outs, buffers, groups = self._on[query[0].device]
        if self.batch:
            self.batch.attend(layer, query[0], key[0], value[0], outs[0])
        if not self.rows:
            return outs
        queries, keys, values = (self._by_row(pair) for pair in (query, key, value))
        targets: list[Tensor] = []
        sources: list[Tensor] = []
        for index, (row, own) in enumerate(zip(self.rows, buffers, strict=True)):
            for expert, tokens in enumerate(row.tokens):
                if tokens:
                    targets += row.rooms[expert][layer]
                    sources += (keys[expert][index], values[expert][index])
                    if own.query is not None:
                        targets.append(own.parts[expert])
                        sources.append(queries[expert][index])
        _copy(targets, sources)
        targets, sources = [], []
        for group in groups:
            places, found_by_row = group.attend(layer)
            targets += places
            sources += found_by_row
        for index, (row, own) in enumerate(zip(self.rows, buffers, strict=True)):
            if not own.outs:  # its group has them
                continue
            together = queries[0][index].transpose(0, 1)[None] if own.query is None else own.query
            found = _attend_row(row, layer, together)
            targets += own.outs
            sources += (found,) if len(own.outs) == 1 else found.split_with_sizes(row.tokens, 2)
        _copy(targets, sources)
        return outs

    def _attend_one(self, layer: int, row: _SpanRow, query: Pair, key: Pair, value: Pair) -> Pair:
        """A single row, whose output stays where attention leaves it."""
        places = [
            place for rooms, tokens in zip(row.rooms, row.tokens, strict=True) if tokens for place in rooms[layer]
        ]
        news = [new for pair in zip(key, value, strict=True) for new in pair if new.shape[0]]
        _copy(places, news)
        if not row.tokens[1]:
            return _attend_row(row, layer, query[0].transpose(0, 1)[None])[0].transpose(0, 1), query[1]
        found = _attend_row(row, layer, torch.cat(query).transpose(0, 1)[None])[0].transpose(0, 1)
        und, gen = found.split_with_sizes(row.tokens)
        return und, gen

    def _by_row(self, pair: Pair) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Slots (S, heads, head_dim) of each expert in pieces, one for each row; padding and texts that are decoded in
        a batch are left out.
        """
        found = []
        for expert, slots in enumerate(pair):
            if not slots.shape[0]:
                found.append([slots] * len(self.rows))
                continue
            sizes, kept, done = [], [], 0
            for row in self.rows:
                if row.slots[expert] > done and row.tokens[expert]:
                    sizes.append(row.slots[expert] - done)
                    done = row.slots[expert]
                kept.append(len(sizes))
                sizes.append(row.tokens[expert])
                done += row.tokens[expert]
            if done < slots.shape[0]:
                sizes.append(slots.shape[0] - done)
            pieces = slots.split_with_sizes(sizes) if len(sizes) > 1 else (slots,)
            found.append([pieces[place] for place in kept])
        return found[0], found[1]

    def _buffers(self, query: Pair, kv_heads: int) -> tuple[Pair, list[_RowBuffers], list[_SpanGroup]]:
        """Memory for the outputs of all slots, zero where no row is, for each row, and for each group of rows."""
        outs, (heads, dim) = tuple(torch.zeros_like(part) for part in query), query[0].shape[1:]

        def as_attended(slots: Tensor, alone: bool) -> Tensor:
            """Tokens (n, heads, head_dim) as attention has them: grouped queries of a single token are its tokens."""
            return slots.view(1, kv_heads, heads // kv_heads, dim) if alone else slots.transpose(0, 1)[None]

        rows: list[_RowBuffers] = []
        groups = []
        together_of: dict[int, Tensor] = {}
        for members in self.groups:
            wide = product_dtype(query[0].dtype, query[0].device.type)
            memory = query[0].new_empty(len(members), members[0].length, heads, dim, dtype=wide)
            groups.append(_SpanGroup(members, memory, (outs[0], outs[1])))
            together_of |= {id(row): own for row, own in zip(members, memory.unbind(), strict=True)}
        for row in self.rows:
            if (own_memory := together_of.get(id(row))) is not None:
                split = own_memory.split_with_sizes(row.tokens) if all(row.tokens) else (own_memory,) * 2
                rows.append(_RowBuffers(own_memory, tuple(split), ()))
                continue
            alone = row.length == 1
            whole: Tensor | None = None
            parts: Sequence[Tensor] = ()
            if row.tokens[1] or row.length <= MAX_DECODE_QUERIES:
                together = query[0].new_empty(row.length, heads, dim)
                whole, parts = as_attended(together, alone), together.split_with_sizes(row.tokens)
            own = [out[slot : slot + n] for out, slot, n in zip(outs, row.slots, row.tokens, strict=True) if n]
            rows.append(_RowBuffers(whole, tuple(parts), tuple(as_attended(out, alone) for out in own)))
        return (outs[0], outs[1]), rows, groups


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copies each source into its target: one operation for all."""
    if targets:
        torch._foreach_copy_(targets, sources)


def _attend_row(row: _SpanRow, layer: int, query: Tensor) -> Tensor:
    """Attention of a row's queries, (1, heads, n, head_dim), over what it sees."""
    pieces = row.reservation.visible(row.stop)[layer]
    if row.causal and row.mask is None and (len(pieces) > 1 or pieces[0][0].shape[2] > row.length):
        row.mask = causal_mask(row.length, pieces[-1][0].shape[2], query.device)
    elif row.mask is not None:
        row.mask = row.mask.to(query.device)
    return attend_over(query, pieces, causal=row.causal, mask=row.mask)
