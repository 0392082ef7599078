"""A walk over all training data before a run: what there is, how long it becomes, and what would be left out."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from bagel_mot.data.dataset import Dataset
from bagel_mot.data.documents import Dropout, Opener, SampleBuilder
from bagel_mot.data.feed import GroupItem, GroupSample, check_fits_tables
from bagel_mot.data.packer import AnyPackConfig
from bagel_mot.data.rows import RowKey, SkipRow
from bagel_mot.data.supply import KeyedItem, RowSupply, Supply
from bagel_mot.data.workers import Workers
from bagel_mot.errors import DataError
from bagel_mot.sequence import NOISED, FramesSegment, PackSpec, Sample, Segment, TextSegment, VitSegment
from bagel_mot.training.open_data import OpenData

_LISTED = 20  # rows that are listed of each reason
_DRAWN = 1000  # documents that are looked at of a source that never ends
_TOO_LARGE = "larger than a pack"

_opened: list[tuple[int, int]] = []  # the sizes of the images that this process has opened for the row at hand


def nothing_usable(group: str, rows: int, first: tuple[str, str] | None) -> DataError:
    """The error of data of which not one row can be used.

    Args:
        group: the name of the group.
        rows: the number of its rows.
        first: the place of the first of them, and the sentence about it.
    """
    if first is None:
        return DataError(f"the data of {group} have no rows, so there is nothing to train on")
    rest = f"none of the {rows} rows of {group} can be used" if rows > 1 else f"the only row of {group} cannot be used"
    return DataError(f"{rest}, so there is nothing to train on; {first[0].removeprefix(f'{group}: ')}: {first[1]}")


class RowFacts(NamedTuple):
    """The facts about a row that can be used.

    Attributes:
        shape: the sample in letters, such as "T N".
        tokens: the tokens of its sample, before dropout.
        learnt: the tokens of its texts that are learnt.
        sizes: (width, height) of each image in its file.
    """

    shape: str
    tokens: int
    learnt: int
    sizes: tuple[tuple[int, int], ...]


def letters(sample: Sample) -> str:
    """A sample in letters: T a text, *T* one that is learnt, N a noised image, C a clean one, V one for the ViT, and
    how many frames those of a clip have.
    """
    return " ".join(map(_letter, sample.segments))


def _letter(segment: Segment) -> str:
    if isinstance(segment, TextSegment):
        return "*T*" if segment.labels else "T"
    if isinstance(segment, VitSegment):
        return "V"
    letter = "N" if segment.mode == NOISED else "C"
    return f"{letter}×{len(segment.frames)}" if isinstance(segment, FramesSegment) else letter


@dataclass(frozen=True)
class _Noting:
    """An opener of files that notes the sizes of images."""

    opens: Callable[[bytes | Path], Image.Image]

    def __call__(self, file: bytes | Path) -> Image.Image:
        image = self.opens(file)
        _opened.append(image.size)
        return image


def _noting(dataset: Dataset) -> Dataset:
    opener = dataset.images.opener
    return replace(dataset, images=replace(dataset.images, opener=Opener(_Noting(opener.image), _Noting(opener.frame))))


@dataclass(frozen=True)
class RowChecker:
    """Makes the sample of a row and tells about it: the work of the worker processes.

    Attributes:
        supplies: the supply of each group.
        builder: makes samples, without dropout.
        spec: the packing facts of the model.
        pack: the size of a pack.
        seed: the seed of the run.
    """

    supplies: tuple[Supply, ...]
    builder: SampleBuilder
    spec: PackSpec
    pack: AnyPackConfig
    seed: int

    @classmethod
    def of(cls, data: OpenData, supplies: Sequence[Supply], seed: int) -> RowChecker:
        """The checker of the data of a recipe."""
        builder = replace(data.builder, dropout=Dropout(0.0, 0.0, 0.0, 0.0))
        return cls(tuple(supplies), builder, data.spec, data.pack, seed)

    def __call__(self, task: GroupItem) -> RowFacts | SkipRow:
        _opened.clear()
        try:
            sample = self.supplies[task.group].sample(task.item, self.builder, self.seed)
            check_fits_tables(sample, self.spec)
            if why := self.pack.packer().misfit(GroupSample(task.group, sample)):
                raise SkipRow(_TOO_LARGE, why)
        except SkipRow as reason:
            return reason
        learnt = sum(len(run.labels) for segment in sample.segments for run in segment.runs)
        return RowFacts(letters(sample), sample.und_len + sample.gen_len, learnt, tuple(_opened))


@dataclass
class DatasetFacts:
    """All that is known of a data set so far.

    Attributes:
        name, group, weight, licence: the data set, its group, the group's weight, and the licence.
        rows: the rows that were looked at.
        total: the rows that there are; None if that is not known.
        shapes: the number of rows of each kind of document.
        tokens: the tokens of each row that can be used.
        learnt: the tokens of texts that are learnt, in all.
        sizes: the number of images of each (width, height).
        skipped: the number of rows that would be left out, by reason.
        listed: the first of those: (reason, place, sentence).
        unreadable: sentences about files that cannot be read to their end.
    """

    name: str
    group: str
    weight: float
    licence: str | None
    rows: int = 0
    total: int | None = None
    shapes: Counter[str] = field(default_factory=Counter)
    tokens: list[int] = field(default_factory=list)
    learnt: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    listed: list[tuple[str, str, str]] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def add(self, facts: RowFacts | SkipRow, place: Callable[[], str]) -> None:
        """Counts a row in; `place` gives the words that a person finds it by."""
        self.rows += 1
        if isinstance(facts, SkipRow):
            self.skipped[facts.reason] += 1
            if self.skipped[facts.reason] <= _LISTED:
                self.listed.append((facts.reason, place(), str(facts)))
            return
        self.shapes[facts.shape] += 1
        self.tokens.append(facts.tokens)
        self.learnt += facts.learnt
        self.sizes.update(facts.sizes)

    def histogram(self) -> dict[int, int]:
        """The number of rows by their tokens: those of more than half a power of two and up to it."""
        found = Counter(1 << math.ceil(math.log2(max(tokens, 1))) for tokens in self.tokens)
        return dict(sorted(found.items()))

    def tokens_of_an_epoch(self) -> int | None:
        """The tokens of all rows, estimated if not all were looked at; None where the number of rows is not known."""
        if not self.rows or self.total is None:
            return None
        return round(sum(self.tokens) * max(self.total, self.rows) / self.rows)

    def report(self) -> dict[str, Any]:
        """All of it as JSON."""
        sides = [side for size in self.sizes for side in size]
        ordered = sorted(self.tokens)
        return {
            "name": self.name,
            "group": self.group,
            "weight": self.weight,
            "licence": self.licence,
            "rows": self.total,
            "checked": self.rows,
            "usable": len(self.tokens),
            "documents": dict(self.shapes.most_common()),
            "tokens": {
                "least": ordered[0] if ordered else None,
                "median": ordered[len(ordered) // 2] if ordered else None,
                "most": ordered[-1] if ordered else None,
                "mean": sum(ordered) / len(ordered) if ordered else None,
                "learnt_text": self.learnt,
                "an_epoch": self.tokens_of_an_epoch(),
                "histogram": {str(most): count for most, count in self.histogram().items()},
            },
            "images": {
                "count": sum(self.sizes.values()),
                "shortest_side": min(sides, default=None),
                "longest_side": max(sides, default=None),
                "sizes": {f"{width}x{height}": count for (width, height), count in self.sizes.most_common(20)},
            },
            "skipped": dict(self.skipped.most_common()),
            "skipped_rows": [{"reason": r, "place": p, "sentence": s} for r, p, s in self.listed],
            "unreadable": self.unreadable,
        }


class DataCheck:
    """A walk over the data of a recipe, which can be ended at any row.

    Attributes:
        datasets: the facts about each data set so far, by the number of its group and its name.
    """

    def __init__(self, data: OpenData, seed: int, workers: int = 0, limit: int | None = None) -> None:
        """Begins a walk.

        Args:
            data: the data.
            seed: the seed of all draws.
            workers: worker processes.
            limit: the most rows of each data set; None takes all.
        """
        supplies = [
            replace(group.supply, datasets=tuple(map(_noting, group.supply.datasets)))
            if isinstance(group.supply, RowSupply)
            else group.supply
            for group in data.groups
        ]
        checker = RowChecker.of(data, supplies, seed)
        self.data, self._supplies, self.limit = data, supplies, limit
        self._workers: Workers[GroupItem, RowFacts | SkipRow] = Workers(checker, workers)
        self.datasets: dict[tuple[int, str], DatasetFacts] = {}
        for number, (group, supply) in enumerate(zip(data.groups, supplies, strict=True)):
            for dataset in supply.datasets if isinstance(supply, RowSupply) else (None,):
                name = group.name if dataset is None else dataset.name
                licence = None if dataset is None else dataset.licence
                facts = DatasetFacts(name, group.name, group.weight, licence)
                if dataset is not None:
                    counts = [unit.rows for unit in dataset.reader.units()]
                    facts.total = None if None in counts else sum(count or 0 for count in counts)
                self.datasets[number, name] = facts

    @property
    def total(self) -> int | None:
        """The rows to be looked at; None if that is not known."""
        totals = [facts.total for facts in self.datasets.values()]
        most = [total if self.limit is None or total is None else min(total, self.limit) for total in totals]
        return None if None in most else sum(total or 0 for total in most)

    def run(self, progress: Callable[[int, int | None], None] = lambda done, total: None) -> None:
        """Looks at all rows. After an interruption what is known so far stays.

        Args:
            progress: is told the number of rows so far, and of all if that is known.
        """
        pending: deque[tuple[DatasetFacts, GroupItem, Any]] = deque()
        done, total = 0, self.total

        def take() -> None:
            nonlocal done
            facts, task, result = pending.popleft()
            facts.add(result.result(), lambda: self._supplies[task.group].place_of(task.item.key))
            done += 1
            progress(done, total)

        try:
            for facts, task in self._items():
                pending.append((facts, task, self._workers.submit(task)))
                if len(pending) > 4 * self._workers.count:
                    take()
            while pending:
                take()
        finally:
            self._workers.close()

    def _items(self) -> Iterator[tuple[DatasetFacts, GroupItem]]:
        for number, supply in enumerate(self._supplies):
            if isinstance(supply, RowSupply):
                for dataset in supply.datasets:
                    yield from self._rows(number, dataset)
            else:
                facts = self.datasets[number, self.data.groups[number].name]
                for index in range(self.limit or _DRAWN):
                    yield facts, GroupItem(number, KeyedItem(index, None))

    def _rows(self, group: int, dataset: Dataset) -> Iterator[tuple[DatasetFacts, GroupItem]]:
        facts, left = self.datasets[group, dataset.name], self.limit
        for unit in range(len(dataset.reader.units())):
            try:
                for key, row in dataset.rows(unit):
                    if left == 0:
                        return
                    left = None if left is None else left - 1
                    yield facts, GroupItem(group, KeyedItem([0, *RowKey(*key)], row))
            except DataError as error:
                facts.unreadable.append(str(error))

    def check_usable(self) -> None:
        """Checks what is known so far.

        Raises:
            DataError: all rows of a group have been looked at, and not one can be used.
        """
        for group in self.data.groups:
            parts = [facts for facts in self.datasets.values() if facts.group == group.name]
            if all(not facts.tokens and self._is_over(facts) for facts in parts):
                listed = [row for facts in parts for row in facts.listed]
                raise nothing_usable(group.name, sum(facts.rows for facts in parts), listed[0][1:] if listed else None)

    def _is_over(self, facts: DatasetFacts) -> bool:
        """Whether all rows of a data set have been looked at."""
        if facts.total is not None:
            return facts.rows >= facts.total
        return self.limit is None or facts.rows < self.limit

    def report(self) -> dict[str, Any]:
        """All that is known so far, as JSON."""
        found = [facts.report() for facts in self.datasets.values()]
        tokens = [one["tokens"]["an_epoch"] for one in found]
        return {
            "datasets": found,
            "tokens_an_epoch": None if None in tokens else sum(tokens),
            "tokens_a_pack": self.data.pack.tokens,
            "complete": self.limit is None
            and all(f.total is None or f.rows >= f.total for f in self.datasets.values()),
        }
