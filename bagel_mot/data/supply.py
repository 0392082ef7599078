"""Where the samples of a group come from, item by item: a generator of documents, or rows on disk.

A `Cursor` walks over the items of one logical stream in order. An item is a key, which is plain JSON and from which the
item can be had again, and what was read for it. `Supply.sample` makes a sample of an item; it may run in any process.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

from bagel_mot.data.dataset import Dataset
from bagel_mot.data.documents import Document, IndexedSample, SampleBuilder
from bagel_mot.data.draws import RandomDraws
from bagel_mot.data.order import OrderedUnit, ReadingOrder, ShuffledOrder, permuted
from bagel_mot.data.readers.base import Row, Unit
from bagel_mot.data.rows import RowKey
from bagel_mot.errors import DataError
from bagel_mot.sequence import PackSpec


class KeyedItem(NamedTuple):
    """An item that a sample can be made of: its key, plain JSON, and what was read for it."""

    key: Any
    content: Any


class Cursor(ABC):
    """The items of one logical stream of a supply, without end."""

    @abstractmethod
    def take(self) -> KeyedItem:
        """The next item.

        Raises:
            DataError: there are none, or a file cannot be read.
        """

    @abstractmethod
    def place(self) -> Any:
        """The place behind the last item that was taken, as JSON; taking more does not change it."""

    @abstractmethod
    def go_to(self, place: Any) -> None:
        """Goes to a place that it told.

        Raises:
            DataError: the data are others than they were.
        """


class Supply(ABC):
    """All items of a group. It can be pickled: worker processes have copies."""

    @abstractmethod
    def cursor(self, seed: int, stream: int, streams: int) -> Cursor:
        """A cursor of logical stream number `stream` of `streams`, in the order that the seed gives."""

    @abstractmethod
    def again(self, key: Any) -> KeyedItem:
        """An item that was taken before."""

    @abstractmethod
    def sample(self, item: KeyedItem, builder: SampleBuilder, seed: int) -> IndexedSample:
        """The sample of an item, always the same.

        Raises:
            SkipRow: no sample can be made of it.
        """

    def check_sizes(self, builder: SampleBuilder, spec: PackSpec) -> None:  # noqa: B027
        """Checks what is known of the sizes of images before one is read: that the model has positions for them.

        Raises:
            DataError: it has not.
        """

    def place_of(self, key: Any) -> str:
        """The words that a person finds an item by."""
        return f"document {key}"


class DrawnSupply(Supply):
    """Documents that are drawn, by index: stream l of L takes the indices l, l + L, l + 2·L, …"""

    def __init__(self, source: Callable[[int], Document]) -> None:
        self.source = source

    def cursor(self, seed: int, stream: int, streams: int) -> Cursor:
        return _IndexCursor(stream, streams)

    def again(self, key: Any) -> KeyedItem:
        return KeyedItem(key, None)

    def sample(self, item: KeyedItem, builder: SampleBuilder, seed: int) -> IndexedSample:
        # Dropout is drawn apart from the document itself.
        return builder(item.key, self.source(item.key), random.Random(f"sample {seed} {item.key}"))


class _IndexCursor(Cursor):
    def __init__(self, start: int, step: int) -> None:
        self.next, self.step = start, step

    def take(self) -> KeyedItem:
        self.next += self.step
        return KeyedItem(self.next - self.step, None)

    def place(self) -> Any:
        return {"next": self.next}

    def go_to(self, place: Any) -> None:
        self.next = place["next"]


@dataclass(frozen=True)
class RowSupply(Supply):
    """The rows of data sets, each of them once an epoch. A key is [epoch, data set, unit, row].

    Attributes:
        group: the name of the group, for messages.
        datasets: the data sets, which are read as one.
    """

    group: str
    datasets: tuple[Dataset, ...]

    @cached_property
    def units(self) -> list[tuple[Dataset, int, Unit]]:
        """All units: the data set of each, its number there, and what is known of it."""
        return [
            (dataset, number, unit) for dataset in self.datasets for number, unit in enumerate(dataset.reader.units())
        ]

    @cached_property
    def _by_name(self) -> dict[str, Dataset]:
        return {dataset.name: dataset for dataset in self.datasets}

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def order(self, seed: int, stream: int, streams: int) -> ReadingOrder:
        """The order of a logical stream."""
        units = [OrderedUnit(unit.rows, dataset.reader.random_access) for dataset, _, unit in self.units]
        return ShuffledOrder(units, f"{self.group} {seed}", stream, streams)

    def cursor(self, seed: int, stream: int, streams: int) -> Cursor:
        return RowCursor(self, self.order(seed, stream, streams), streams)

    def check_sizes(self, builder: SampleBuilder, spec: PackSpec) -> None:
        for dataset in self.datasets:
            dataset.check_sizes(builder, spec)

    def again(self, key: Any) -> KeyedItem:
        _, name, unit, row = key
        try:
            return KeyedItem(key, self._by_name[name].reader.row(unit, row))
        except (KeyError, IndexError, StopIteration) as error:
            raise DataError(
                f"the row {list(key)} of {self.group}, which waited for a pack, is no longer there: put the data back "
                "as they were, or give another output"
            ) from error

    def sample(self, item: KeyedItem, builder: SampleBuilder, seed: int) -> IndexedSample:
        epoch, name, unit, row = item.key
        dataset, named = self._by_name[name], f"{seed} {epoch} {name} {unit} {row}"
        document = dataset.document(item.content, RandomDraws(random.Random(f"row {named}")))
        return builder(item.key, document, random.Random(f"dropout {named}"), dataset.images, dataset.name)

    def place_of(self, key: Any) -> str:
        _, name, unit, row = key
        return self._by_name[name].place(RowKey(name, unit, row))


class RowCursor(Cursor):
    """The rows of one logical stream, in its order."""

    def __init__(self, supply: RowSupply, order: ReadingOrder, patience: int = 1) -> None:
        """Opens it at the beginning.

        Args:
            supply: the rows.
            order: the order of them.
            patience: the epochs in a row without a single row after which there is an error.
        """
        self.supply, self.order, self._patience = supply, order, patience
        self._empty = 0
        self._begin(0, 0, 0)

    def _begin(self, epoch: int, stretch: int, done: int) -> None:
        """Goes to a place: behind `done` rows of a stretch of an epoch."""
        if epoch != getattr(self, "epoch", None):
            self._stretches = self.order.stretches(epoch)
        self.epoch, self.stretch, self.done = epoch, stretch, done
        self._rows: Iterator[tuple[int, Row]] | None = None

    def take(self) -> KeyedItem:
        while True:
            if self.stretch >= len(self._stretches):
                if self._empty > self._patience:
                    raise DataError(f"the data of {self.supply.group} have no rows, so there is nothing to train on")
                self._empty += 1
                self._begin(self.epoch + 1, 0, 0)
                continue
            dataset, unit, about = self.supply.units[self._stretches[self.stretch].unit]
            if self._rows is None:
                self._rows = self._open(dataset, unit, about)
            row = next(self._rows, None)
            if row is None:
                self._begin(self.epoch, self.stretch + 1, 0)
                continue
            self.done += 1
            self._empty = 0
            return KeyedItem([self.epoch, dataset.name, unit, row[0]], row[1])

    def _open(self, dataset: Dataset, unit: int, about: Unit) -> Iterator[tuple[int, Row]]:
        """The rows of the stretch at hand that are still to come, with their numbers."""
        at = self._stretches[self.stretch]
        start = at.start + self.done * at.step
        if at.shuffle is None:
            rows = enumerate(dataset.reader.read(unit, start), start)
            return islice(rows, 0, None if at.stop is None else max(at.stop - start, 0), at.step)
        assert at.stop is not None
        assert about.rows is not None
        numbers = (permuted(place, about.rows, at.shuffle) for place in range(start, at.stop))
        return ((row, dataset.reader.row(unit, row)) for row in numbers)

    def place(self) -> Any:
        return {"epoch": self.epoch, "stretch": self.stretch, "done": self.done, "data": self._fingerprint}

    @cached_property
    def _fingerprint(self) -> str:
        """A few words by which other data are noticed."""
        units = [unit for _, _, unit in self.supply.units]
        rows = "?" if any(unit.rows is None for unit in units) else str(sum(unit.rows or 0 for unit in units))
        return f"{len(self.supply.datasets)} data sets, {len(units)} units, {rows} rows"

    def go_to(self, place: Any) -> None:
        if place["data"] != self._fingerprint:
            raise DataError(
                f"the data of {self.supply.group} were {place['data']} when the run began and are {self._fingerprint} "
                "now: put them back as they were, or give another output"
            )
        self._begin(place["epoch"], place["stretch"], place["done"])


@dataclass(frozen=True)
class SampleGroup:
    """Samples that are drawn as one, with a share of all.

    Attributes:
        name: the name of the group, unique in a run.
        supply: its items.
        weight: its share, relative to those of the other groups.
        mandatory: whether every pack has at least one sample of it.
        resumes: whether a resumed run goes on where the group was; else it begins anew.
        replayed: whether they are what the model knows already.
    """

    name: str
    supply: Supply
    weight: float = 1.0
    mandatory: bool = False
    resumes: bool = True
    replayed: bool = False


def check_groups(groups: Sequence[SampleGroup]) -> None:
    """Checks that groups can be drawn from.

    Raises:
        DataError: there are none, two have the same name, or every weight is 0.
    """
    names = [group.name for group in groups]
    if not names:
        raise DataError("the recipe's data have no group, so there is nothing to train on")
    if doubled := [name for name in names if names.count(name) > 1]:
        raise DataError(f"two groups of data are called {doubled[0]}: give each a name of its own")
    if not sum(group.weight for group in groups) > 0:
        raise DataError(
            f"every weight of the data ({', '.join(names)}) is 0, so nothing can be drawn: give one a weight"
        )
