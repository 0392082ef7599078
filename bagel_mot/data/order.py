"""The order in which the rows of a group are read: exact shares for any number of logical streams.

In every epoch the units of all data sets are shuffled, and the rows inside those units where any row is as cheap as the
next one. Each stream takes a share of the whole, so that all streams together read every row exactly once an epoch:

- where the numbers of rows are known, contiguous shares that differ by at most one row, which may begin and end inside
  a unit;
- where a number of rows is not known, whole units in turn; or, where there are fewer units than streams, several
  streams share a unit and take its rows in turn.

Which share a stream takes moves on by one with each epoch, so no stream is idle for ever, however few rows there are.
Nothing here depends on the number of processes.
"""

from __future__ import annotations

import hashlib
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class OrderedUnit(NamedTuple):
    """A unit as the order knows it: the number of its rows, None if unknown, and whether any row is cheap to read."""

    rows: int | None
    random_access: bool = False


class Stretch(NamedTuple):
    """Rows of one unit that a stream reads one after the other.

    Attributes:
        unit: the number of the unit among all.
        start: the number of the first row.
        stop: the number of the row before which it ends; None if the unit's end is not known.
        step: the distance from one row to the next.
        shuffle: the seed by which the rows of the unit are shuffled: `start` and `stop` are places in that order then;
            None if they are read as they are.
    """

    unit: int
    start: int
    stop: int | None
    step: int = 1
    shuffle: str | None = None


class ReadingOrder(ABC):
    """The stretches of each epoch of one stream."""

    @abstractmethod
    def stretches(self, epoch: int) -> list[Stretch]:
        """The stretches of an epoch, in order; there may be none."""


class ShuffledOrder(ReadingOrder):
    """The shares of a shuffled whole."""

    def __init__(self, units: Sequence[OrderedUnit], seed: str, stream: int = 0, streams: int = 1) -> None:
        """Makes the order of one stream.

        Args:
            units: all units.
            seed: any text; another text gives another order.
            stream, streams: the stream's number, and how many there are.
        """
        self.units, self.seed, self.stream, self.streams = tuple(units), seed, stream, streams

    def stretches(self, epoch: int) -> list[Stretch]:
        order = list(range(len(self.units)))
        random.Random(f"units {self.seed} {epoch}").shuffle(order)
        share = (self.stream + epoch) % self.streams
        if any(unit.rows is None for unit in self.units):
            return list(self._in_turn(order, share))
        return list(self._contiguous(order, share, epoch))

    def _contiguous(self, order: list[int], share: int, epoch: int) -> Iterator[Stretch]:
        total = sum(unit.rows or 0 for unit in self.units)
        begin, end = share * total // self.streams, (share + 1) * total // self.streams
        first = 0  # the place of the unit's first row among all
        for number in order:
            rows = self.units[number].rows or 0
            start, stop = max(begin - first, 0), min(end - first, rows)
            if start < stop:
                shuffle = f"rows {self.seed} {epoch} {number}" if self.units[number].random_access else None
                yield Stretch(number, start, stop, shuffle=shuffle)
            first += rows

    def _in_turn(self, order: list[int], share: int) -> Iterator[Stretch]:
        if len(order) >= self.streams:
            for number in order[share :: self.streams]:
                yield Stretch(number, 0, self.units[number].rows)
        elif order:
            place = share % len(order)
            sharing = len(range(place, self.streams, len(order)))
            yield Stretch(order[place], share // len(order), self.units[order[place]].rows, sharing)


class PublishedOrder(ReadingOrder):
    """The published order of one worker of one rank, the same in every epoch.

    Units are shuffled by the data seed. A rank takes a run of ⌊units ÷ ranks⌋ of them and a worker a run of ⌊those ÷
    workers⌋, backwards; a rank without workers reads its own forwards. What is left over at either level is never read.
    """

    def __init__(
        self, units: Sequence[Stretch], data_seed: int, rank: int = 0, ranks: int = 1, worker: int = 0, workers: int = 0
    ) -> None:
        """Makes the order of one worker.

        Args:
            units: the units, sorted as the published code sorts them.
            data_seed: the seed of the shuffle.
            rank, ranks: the rank, and how many there are.
            worker, workers: the worker, and how many each rank has; 0 where the rank reads by itself.
        """
        order = list(units)
        random.Random(data_seed).shuffle(order)
        each = len(order) // ranks
        mine = order[rank * each : (rank + 1) * each]
        if workers:
            each = len(mine) // workers
            mine = mine[worker * each : (worker + 1) * each][::-1]
        self.units = mine

    def stretches(self, epoch: int) -> list[Stretch]:
        return list(self.units)


def permuted(place: int, count: int, seed: str) -> int:
    """The item at a place of a random order of `count` items, without the whole order in memory.

    Each round maps pairs (a, b) of numbers below √count to (b, a + hash(b)), which can be undone, so every item has one
    place; results beyond the count are mapped again until one is not.
    """
    side = math.isqrt(count - 1) + 1 if count > 1 else 1
    while True:
        a, b = divmod(place, side)
        for number in range(4):
            digest = hashlib.blake2b(f"{seed} {number} {b}".encode(), digest_size=8).digest()
            a, b = b, (a + int.from_bytes(digest, "big")) % side
        place = a * side + b
        if place < count:
            return place
