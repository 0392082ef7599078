"""The key/value cache: append-only chunks, shared by prefix.

A `Context` holds everything that a request has read so far: a list of views into chunks. Forking a context, or cutting
it back to an earlier segment, copies nothing: the result shares the same memory. As with Go's slices, whoever appends
first at the end of a chunk goes on in place; a second one that appends at a place already taken starts a chunk of its
own. Chunks grow geometrically and are never moved, so the cache is never copied.

Memory is occupied as long as a view refers to it. A chunk knows its living views by weak references, so what a dropped
fork, a finished answer or a cancelled request had appended is free again without anybody giving it back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakSet, finalize

import torch
from torch import Tensor

from bagel_mot.model.passes import Passes
from bagel_mot.sequence import Segment, segment_length

_SMALLEST_CHUNK = 64
SLAB_TOKENS = 8192
"""Tokens of cache that small chunks take from an accelerator at a time."""


Stretches = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values of some tokens, a pair for each layer, or one for each piece of memory."""


class CacheSpec(NamedTuple):
    """The shape and place of a decoder's keys and values: `bagel_mot.model.decoder.Decoder.cache_spec`.

    Attributes:
        kv_heads: the number of KV heads computed in this process.
        head_dim: the number of channels of a key or value.
        dtype: the precision of keys and values.
        devices: the device of each layer.
        pool: shares slabs between contexts, so that their next tokens can be computed in one call of attention; without
            it each chunk has memory of its own.
        passes: the compiled passes by which next tokens attend where all layers are on the CPU, if there are any.
    """

    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    devices: tuple[torch.device, ...]
    pool: CachePool | None = None
    passes: Passes | None = None


class Slab:
    """Memory for `capacity` tokens in all layers: `layers` are (2, kv_heads, capacity, head_dim) each, keys first, on
    their layer's device. Layers of one device share one block.
    """

    def __init__(self, spec: CacheSpec, capacity: int) -> None:
        shape = (2, spec.kv_heads, capacity, spec.head_dim)
        self.spec, self.capacity = spec, capacity
        blocks = {
            device: torch.empty(count, *shape, dtype=spec.dtype, device=device)
            for device, count in Counter(spec.devices).items()
        }
        self.layers: tuple[Tensor, ...] = self._by_layer({place: block.unbind() for place, block in blocks.items()})
        self.nbytes = sum(block.nbytes for block in blocks.values())
        self._blocks = blocks  # (layers, 2, kv_heads, capacity, head_dim) each
        # With the batch of one that attention wants, (layers, 1, kv_heads, capacity, head_dim) each.
        self._keys = {place: block[:, :1] for place, block in blocks.items()}
        self._values = {place: block[:, 1:] for place, block in blocks.items()}
        # With the tokens first, (layers, capacity, kv_heads, head_dim) each.
        self._new_keys = {place: block[:, 0].transpose(1, 2) for place, block in blocks.items()}
        self._new_values = {place: block[:, 1].transpose(1, 2) for place, block in blocks.items()}
        self._free = [(0, capacity)]  # ranges of slots, in order

    def _by_layer(self, parts: Mapping[torch.device, Sequence[Tensor]]) -> tuple[Tensor, ...]:
        """The tensors of each device's layers in the order of all layers."""
        following = {device: iter(own) for device, own in parts.items()}
        return tuple(next(following[device]) for device in self.spec.devices)

    def _stretch(self, blocks: Mapping[torch.device, Tensor], axis: int, start: int, stop: int) -> tuple[Tensor, ...]:
        """Slots of such blocks, an axis of theirs, for each layer: views, by two operations for all layers together."""
        return self._by_layer(
            {place: block.narrow(axis, start, stop - start).unbind() for place, block in blocks.items()}
        )

    def stretch(self, start: int, stop: int) -> Stretches:
        """Keys and values of a range of slots, (1, kv_heads, n, head_dim) each, for each layer."""
        keys, values = (self._stretch(blocks, 3, start, stop) for blocks in (self._keys, self._values))
        return tuple(zip(keys, values, strict=True))

    def both(self, start: int, stop: int) -> tuple[Tensor, ...]:
        """The same in one tensor, keys first: (2, kv_heads, n, head_dim) for each layer."""
        return self._stretch(self._blocks, 3, start, stop)

    def room(self, start: int, stop: int) -> Stretches:
        """The same with the tokens first, to be written to: (n, kv_heads, head_dim) each."""
        keys, values = (self._stretch(blocks, 1, start, stop) for blocks in (self._new_keys, self._new_values))
        return tuple(zip(keys, values, strict=True))

    def address(self, slot: int) -> tuple[int, int, int]:
        """The address of a slot's key in the first head and layer, the bytes from a layer to the next, and the slots
        from a head to the next; the values lie behind the keys of all heads. All layers are on one device.
        """
        (block,) = self._blocks.values()
        size = block.element_size()
        return block.data_ptr() + slot * self.spec.head_dim * size, block.stride(0) * size, self.capacity

    def take(self, tokens: int) -> int | None:
        """The first of `tokens` neighbouring slots, which are in use from now on; None where there are none."""
        for index, (start, stop) in enumerate(self._free):
            if stop - start >= tokens:
                self._free[index] = (start + tokens, stop)
                return start
        return None

    def release(self, start: int, stop: int) -> None:
        """Makes a range of slots free again."""
        merged: list[tuple[int, int]] = []
        for begin, end in sorted([*self._free, (start, stop)]):
            if merged and merged[-1][1] == begin:
                begin = merged.pop()[0]
            merged.append((begin, end))
        self._free = merged


class CachePool:
    """The slabs in which chunks are placed. A slab lives as long as a chunk in it."""

    def __init__(self) -> None:
        self._slabs: WeakSet[Slab] = WeakSet()

    def place(self, spec: CacheSpec, tokens: int) -> tuple[Slab, int]:
        """A slab and the first of `tokens` slots in it."""
        for slab in self._slabs:
            if (start := slab.take(tokens)) is not None:
                return slab, start
        # A chunk that leaves no space for another of its kind has a slab of its own size.
        slab = Slab(spec, tokens if 2 * tokens > SLAB_TOKENS else SLAB_TOKENS)
        self._slabs.add(slab)
        slab.take(tokens)
        return slab, 0


class Chunk:
    """Room for `capacity` tokens in a slab, from slot `first` on."""

    def __init__(self, spec: CacheSpec, capacity: int) -> None:
        self.capacity, self.pooled = capacity, spec.pool is not None
        self.views: WeakSet[View] = WeakSet()
        self.slab, self.first = spec.pool.place(spec, capacity) if spec.pool else (Slab(spec, capacity), 0)
        self.nbytes = self.slab.nbytes * capacity // self.slab.capacity
        if self.pooled:
            finalize(self, self.slab.release, self.first, self.first + capacity)

    @property
    def used(self) -> int:
        """The number of tokens that some living view covers; memory behind them may be written."""
        return max((view.stop for view in self.views), default=0)


@dataclass(frozen=True, eq=False)
class View:
    """The first `stop` tokens of a chunk. As long as it lives, nobody else writes there."""

    chunk: Chunk
    stop: int

    def __post_init__(self) -> None:
        self.chunk.views.add(self)


@dataclass(frozen=True)
class Entry:
    """A segment of a context, and the state of the context just after it."""

    segment: Segment
    views: tuple[View, ...]
    length: int
    position: int


class KVReservation:
    """Room for tokens after a context: scratch until `Context.commit` makes it part of the context.

    Scratch may be written again and again; its room is free again once the reservation is dropped.
    """

    def __init__(self, views: tuple[View, ...], chunk: Chunk, start: int, stop: int) -> None:
        self.chunk, self.start, self.stop = chunk, start, stop
        extends_last = bool(views) and views[-1].chunk is chunk
        self.views_before = views
        self.views_after = (*(views[:-1] if extends_last else views), View(chunk, stop))
        # Scratch is written and read in every denoising step.
        self._rooms: dict[tuple[int, int], Stretches] = {}
        self._visible: dict[int, tuple[Stretches, ...]] = {}
        self._both: dict[int, tuple[tuple[Tensor, ...], ...]] = {}

    def room(self, start: int, stop: int) -> Stretches:
        """The places of the reservation's tokens from `start` to `stop` in each layer: (n, kv_heads, head_dim) each."""
        if (start, stop) not in self._rooms:
            first = self.chunk.first + self.start
            self._rooms[start, stop] = self.chunk.slab.room(first + start, first + stop)
        return self._rooms[start, stop]

    def visible(self, stop: int) -> tuple[Stretches, ...]:
        """The pieces of the context and the reservation's first `stop` tokens, for each layer: keys and values, (1,
        kv_heads, n, head_dim) each.
        """
        if stop not in self._visible:
            pieces = [chunk.slab.stretch(chunk.first, chunk.first + end) for chunk, end in self.parts(stop)]
            self._visible[stop] = tuple(zip(*pieces, strict=True))
        return self._visible[stop]

    def both(self, stop: int) -> tuple[tuple[Tensor, ...], ...]:
        """The same pieces for each layer, each in one tensor, keys first: (2, kv_heads, n, head_dim)."""
        if stop not in self._both:
            pieces = [chunk.slab.both(chunk.first, chunk.first + end) for chunk, end in self.parts(stop)]
            self._both[stop] = tuple(zip(*pieces, strict=True))
        return self._both[stop]

    def parts(self, stop: int) -> list[tuple[Chunk, int]]:
        """The chunks with the context and the reservation's first `stop` tokens, and how many tokens of each."""
        return [*((view.chunk, view.stop) for view in self.views_after[:-1]), (self.chunk, self.start + stop)]


class Context:
    """The keys and values of everything that a request has read so far.

    Attributes:
        entries: its segments, in order.
        length: the number of its tokens.
        position: the rotary position of the next token.
    """

    def __init__(self, spec: CacheSpec, reserve: int = 0) -> None:
        """An empty context.

        Args:
            spec: the shape and place of keys and values.
            reserve: the number of tokens expected in all.
        """
        self._spec = spec
        self._reserve = reserve  # expected total length: the first chunk is made this large
        self._most: int | None = None  # upper limit of the total length
        self._views: tuple[View, ...] = ()
        self.entries: tuple[Entry, ...] = ()
        self.length = 0
        self.position = 0

    def fork(self, entries: int | None = None) -> Context:
        """A context that shares this one's memory: all of it, or only its first `entries` segments."""
        other = Context(self._spec, self._reserve)
        if entries is None:
            other._views, other.entries = self._views, self.entries
            other.length, other.position = self.length, self.position
        elif entries > 0:
            last = self.entries[entries - 1]
            other._views, other.entries = last.views, self.entries[:entries]
            other.length, other.position = last.length, last.position
        return other

    def expect(self, length: int) -> None:
        """Makes the next chunk large enough for `length` tokens in all."""
        self._reserve = length

    def bound(self, length: int) -> None:
        """Takes no more memory than `length` tokens in all need. Forks are not bound."""
        self._most = length

    def shared_entries(self, segments: tuple[Segment, ...]) -> int:
        """The number of `segments`, from the first on, that are this context's own (the very same objects)."""
        count = 0
        for entry, segment in zip(self.entries, segments, strict=False):
            if entry.segment is not segment:
                break
            count += 1
        return count

    @property
    def segments(self) -> tuple[Segment, ...]:
        return tuple(entry.segment for entry in self.entries)

    def allocate(self, tokens: int, *, scratch: bool = False) -> KVReservation:
        """Room for `tokens` tokens behind this context: in place where the place is free, else in a chunk of its own.

        Args:
            tokens: the number of tokens.
            scratch: whether nothing will follow them: a chunk of their own has no room to spare then.
        """
        last = self._views[-1] if self._views else None
        if last and last.stop + tokens <= last.chunk.capacity and last.chunk.used == last.stop:
            return KVReservation(self._views, last.chunk, last.stop, last.stop + tokens)
        spare = 0 if scratch else max(self.length, self._reserve - self.length, _SMALLEST_CHUNK)
        if self._most is not None:
            spare = min(spare, self._most - self.length)
        chunk = Chunk(self._spec, max(tokens, spare))
        return KVReservation(self._views, chunk, 0, tokens)

    def commit(
        self,
        reservation: KVReservation,
        segments: Sequence[Segment],
        names: Sequence[Segment | None] | None = None,
    ) -> None:
        """Makes a reservation, whose keys and values have been written, part of this context.

        Args:
            reservation: room allocated for this very context in its present state.
            segments: the tokens in the reservation, in order.
            names: the segment that an entry is kept for, to which the context can be cut back, for each of `segments`:
                by default itself. With None, as for the single tokens of an answer being written or the first part of a
                text, the context grows by an unnamed stretch.

        Raises:
            RuntimeError: the reservation is another context's or an earlier state's, or holds another number of tokens.
        """
        if reservation.views_before != self._views:
            raise RuntimeError("the reservation belongs to another state of this context")
        total, reserved = sum(map(segment_length, segments)), reservation.stop - reservation.start
        if total != reserved:
            raise RuntimeError(f"the reservation holds {reserved} tokens, its segments {total}")
        done = 0
        for segment, name in zip(segments, segments if names is None else names, strict=True):
            done += segment_length(segment)
            self.length += segment_length(segment)
            self.position += segment.advance
            if name is not None:
                last = View(reservation.chunk, reservation.start + done)
                views = (*reservation.views_after[:-1], last) if done else self._views
                self.entries = (*self.entries, Entry(name, views, self.length, self.position))
        if total:
            self._views = reservation.views_after

    @property
    def chunks(self) -> set[Chunk]:
        """The memory that this context refers to, shared with others or not."""
        return {view.chunk for view in self._views}

    @property
    def nbytes(self) -> int:
        """Bytes of cache that this context refers to, shared chunks included."""
        return sum(chunk.nbytes for chunk in self.chunks)
