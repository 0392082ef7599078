"""Tensors of a source in an order, read by a thread while those before them are worked on.

What is worked on at once and not kept, as weights that are rounded, comes in one ring of memory, which has room for two
of the largest and a few small ones: pages of new memory cost more than reading does. Large and small tensors follow one
another, and reading stays as far ahead as the ring has room, so that neither reading nor rounding waits for the other.

    ring   ▓▓ down ▓▓▓▓ gate ▓▓        down is rounded, gate is being read
           ▓▓ up ▓▓▓▓▓▓ gate ▓▓        gate is rounded, up is being read
           ▓▓ up ▓▓▓▓▓▓ k ▓ o ▓▓ q ▓▓  up is rounded; k, o and q are being read
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from bagel_mot.allocator import on_own_pages
from bagel_mot.checkpoint.source import TensorSource
from bagel_mot.model.quant import QuantisedMatrix

LARGEST_AHEAD = 1 << 28
"""Bytes of the largest tensors that are read ahead."""
_ALIGNED = 256  # bytes: where a tensor of any type may begin


def read_ahead(
    source: TensorSource, names: Sequence[str], passes: Callable[[str], bool]
) -> Iterator[tuple[str, Tensor | QuantisedMatrix]]:
    """Tensors by name, in the order given.

    Args:
        source: the source of tensors; it is closed in the end.
        names: their names.
        passes: whether a tensor is of no use once the next one is asked for. Its memory is used again then.
    """
    sizes = [source.stored_bytes(name) for name in names]
    largest = max((_aligned(size) for size in sizes if size <= LARGEST_AHEAD), default=0)
    room = 2 * largest + largest // 4  # small ones between two large ones leave room for both
    places, done_before = ring_places(sizes, room)
    in_ring = [place is not None and passes(name) for name, place in zip(names, places, strict=True)]
    ring = on_own_pages((room if any(in_ring) else 0,), torch.uint8)

    def read(index: int) -> Tensor | QuantisedMatrix:
        place = places[index]
        if place is None or not in_ring[index]:
            return source.read(names[index])
        return source.read(names[index], ring[place : place + sizes[index]])

    with ThreadPoolExecutor(1, thread_name_prefix="bagel-read") as reader:
        begun: list[Future[Tensor | QuantisedMatrix] | None] = []
        try:
            for index, name in enumerate(names):
                while len(begun) < len(names) and done_before[len(begun)] <= index:
                    begun.append(reader.submit(read, len(begun)))
                future = begun[index]
                assert future is not None
                begun[index] = None  # which would keep the tensor
                yield name, future.result()
                del future
        finally:
            for future in begun:
                if future is not None:
                    future.cancel()
    source.close()


def ring_places(sizes: Sequence[int], room: int) -> tuple[list[int | None], list[int]]:
    """Places of tensors in a ring of memory, and when each is free.

    Args:
        sizes: bytes of the tensors in their order.
        room: bytes of the ring.

    Returns: the first byte of each tensor, None for those that are not read ahead; and for each how many of the first
        tensors have to be done with before it may be read.
    """
    places: list[int | None] = []
    done_before: list[int] = []
    start = wait = 0
    held: list[tuple[int, int, int]] = []  # tensors whose memory is not free yet: index, first byte, end
    for index, size in enumerate(sizes):
        if size > LARGEST_AHEAD:  # beside it nothing else is in memory
            places.append(None)
            wait = index
        else:
            start = 0 if start + size > room else start
            stop = start + _aligned(size)
            wait = max([wait, *(other + 1 for other, first, end in held if first < stop and start < end)])
            held = [entry for entry in held if entry[0] >= wait] + [(index, start, stop)]
            places.append(start)
            start = stop
        done_before.append(wait)
    return places, done_before


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
