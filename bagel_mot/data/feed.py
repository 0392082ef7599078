"""The samples of one logical stream, group by group: read here, made by worker processes, taken in order.

What cannot be used is counted by reason and told with the pack that came next. The state of a feed is that behind the
last sample that was taken; what workers have made ahead of it is made again after resuming.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from bagel_mot.data.documents import IndexedSample, SampleBuilder
from bagel_mot.data.mixing import Mixture
from bagel_mot.data.rows import SkipRow
from bagel_mot.data.supply import Cursor, KeyedItem, SampleGroup, Supply
from bagel_mot.data.workers import Pending, Workers
from bagel_mot.errors import DataError
from bagel_mot.sequence import VAE, VIT, PackSpec, Sample

_NEVER_USED, _NO_LONGER_USED = 1_000, 10_000
"""Items in a row that cannot be used, before and after the first one that can: then the data must be wrong."""


class GroupItem(NamedTuple):
    """A task of a worker: an item of a group."""

    group: int
    item: KeyedItem


class SkippedItem(NamedTuple):
    """An item that no sample is made of.

    Attributes:
        group: the name of the group.
        place: the words that a person finds it by, such as a file and a row.
        reason: the short name of the reason, by which it is counted.
        sentence: the particulars.
    """

    group: str
    place: str
    reason: str
    sentence: str


class GroupSample(NamedTuple):
    """A sample, and the number of the group that it is from."""

    group: int
    sample: IndexedSample


@dataclass(frozen=True)
class SampleMaker:
    """Makes samples of items: the work of the worker processes.

    Attributes:
        supplies: the supply of each group.
        builder: makes samples of documents.
        spec: the packing facts of the model that trains.
        seed: the seed of the run.
    """

    supplies: tuple[Supply, ...]
    builder: SampleBuilder
    spec: PackSpec
    seed: int

    def __call__(self, task: GroupItem) -> IndexedSample | SkipRow:
        """The sample of an item, or why there is none."""
        try:
            sample = self.supplies[task.group].sample(task.item, self.builder, self.seed)
            check_fits_tables(sample, self.spec)
        except SkipRow as reason:
            return reason
        return sample


def check_fits_tables(sample: Sample, spec: PackSpec) -> None:
    """Checks that the images of a sample fit the model's position tables.

    Raises:
        SkipRow: one does not.
    """
    if spec.interpolate:
        return
    sides = {VIT: (spec.vit_side, "ViT"), VAE: (spec.latent_side, "latent")}
    for segment in sample.segments:
        for run in segment.runs:
            side, name = sides.get(run.kind, (max(run.grid), ""))
            if max(run.grid) > side:
                raise SkipRow(
                    "an image is beyond the position table",
                    f"an image of {run.grid[0]}×{run.grid[1]} {name} tokens is beyond the model's position table of "
                    f"{side}×{side}: lower the limits of the image transform",
                )


class SampleFeed:
    """The samples of one logical stream."""

    def __init__(
        self,
        groups: Sequence[SampleGroup],
        mixture: Mixture,
        workers: Workers[GroupItem, IndexedSample | SkipRow],
        seed: int,
        stream: int = 0,
        streams: int = 1,
    ) -> None:
        """Opens it at the beginning.

        Args:
            groups: the groups of data.
            mixture: decides which group comes next.
            workers: make the samples.
            seed: the seed of the run.
            stream, streams: the stream's number, and how many there are.
        """
        self.groups, self.mixture, self.workers = tuple(groups), mixture, workers
        self.mandatory = tuple(number for number, group in enumerate(self.groups) if group.mandatory)
        self._cursors: list[Cursor] = [group.supply.cursor(seed, stream, streams) for group in self.groups]
        self._places: list[Any] = [cursor.place() for cursor in self._cursors]
        self._made: list[deque[tuple[Any, Any, Pending[IndexedSample | SkipRow]]]] = [deque() for _ in self.groups]
        total = sum(group.weight for group in self.groups) or 1.0
        # Two tasks for each worker are under way, shared among the groups as their samples are drawn.
        self._ahead = [-(-2 * workers.count * group.weight // total) for group in self.groups]
        self._unusable = [(0, _NEVER_USED) for _ in self.groups]
        self.counts: dict[str, int] = {}
        self._skipped: list[SkippedItem] = []

    def draw(self) -> int:
        """The number of the group of the next sample."""
        return self.mixture.draw()

    def take(self, group: int) -> GroupSample:
        """The next sample of a group that can be made.

        Raises:
            DataError: a file cannot be read, a worker has ended, or item after item cannot be used.
        """
        while True:
            while len(self._made[group]) < max(self._ahead[group], 1):
                item = self._cursors[group].take()
                pending = self.workers.submit(GroupItem(group, item))
                self._made[group].append((item.key, self._cursors[group].place(), pending))
            key, place, pending = self._made[group].popleft()
            made = pending.result()
            self._places[group] = place
            if isinstance(made, SkipRow):
                self._skip(group, key, made)
                continue
            self._unusable[group] = (0, _NO_LONGER_USED)
            self.mixture.count(group, made.und_len + made.gen_len)
            return self._of_group(group, made)

    def again(self, group: str, key: Any) -> GroupSample:
        """A sample that was taken before.

        Raises:
            DataError: it is no longer there, or can no longer be used.
        """
        number = next((n for n, one in enumerate(self.groups) if one.name == group), None)
        if number is None:
            raise DataError(f"a sample of the group {group} waits for a pack, and the data have no such group any more")
        made = self.workers.submit(GroupItem(number, self.groups[number].supply.again(key))).result()
        if isinstance(made, SkipRow):
            where = self.groups[number].supply.place_of(key)
            raise DataError(f"{where} waited for a pack and can no longer be used: {made}")
        return self._of_group(number, made)

    def _of_group(self, group: int, made: IndexedSample) -> GroupSample:
        return GroupSample(group, replace(made, replayed=True) if self.groups[group].replayed else made)

    def reject(self, item: GroupSample, reason: str, sentence: str) -> None:
        """Leaves out a sample that was taken."""
        self._note(item.group, item.sample.index, reason, sentence)

    def take_skipped(self) -> tuple[SkippedItem, ...]:
        """The items that were left out since the last call."""
        skipped, self._skipped = tuple(self._skipped), []
        return skipped

    def _skip(self, group: int, key: Any, why: SkipRow) -> None:
        self._note(group, key, why.reason, str(why))
        count, limit = self._unusable[group]
        self._unusable[group] = (count + 1, limit)
        if count + 1 >= limit:
            raise DataError(
                f"{limit} items of {self.groups[group].name} in a row cannot be used; the last one is "
                f"{self.groups[group].supply.place_of(key)}: {why}"
            )

    def _note(self, group: int, key: Any, reason: str, sentence: str) -> None:
        self.counts = {**self.counts, reason: self.counts.get(reason, 0) + 1}
        place = self.groups[group].supply.place_of(key)
        self._skipped.append(SkippedItem(self.groups[group].name, place, reason, sentence))

    def state_dict(self) -> dict[str, Any]:
        """The place of each group, the draws and the counts, as JSON."""
        names = [group.name for group in self.groups]
        return {
            "groups": dict(zip(names, self._places, strict=True)),
            "mixture": self.mixture.state_dict(),
            "skipped": self.counts,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to the state of a feed of the same groups, before the first sample.

        Raises:
            DataError: the groups or the data are others.
        """
        names = [group.name for group in self.groups]
        if list(state["groups"]) != names:
            raise DataError(
                f"the run was begun with the groups {', '.join(state['groups'])} and now has {', '.join(names)}: go on "
                "with the data it has, or give another output"
            )
        for number, group in enumerate(self.groups):
            if group.resumes:
                self._cursors[number].go_to(state["groups"][group.name])
            self._places[number] = self._cursors[number].place()
        self.mixture.load_state_dict(state["mixture"])
        self.counts = dict(state["skipped"])
