"""Filling packs: samples of many lengths into rows of fixed size, or into one long row as the published loop does.

Nothing is lost: a sample that does not fit waits and is tried again in later packs, and one that is too large for any
pack is reported. A packer takes its samples from a feed, which decides what comes next; the samples that wait are all
that it remembers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass as section

from bagel_mot.config import Count, Section, Whole
from bagel_mot.data.feed import GroupSample
from bagel_mot.errors import DataError, did_you_mean
from bagel_mot.sequence import Sample

_MISFITS = 200
_BLOCK = 128  # the number of slots that FlexAttention looks at together
_TOO_LARGE = "larger than a pack"


class PackFeed(Protocol):
    """Samples for a packer."""

    @property
    def mandatory(self) -> Sequence[int]:
        """The numbers of the groups of which every pack has a sample."""

    def draw(self) -> int:
        """The number of the group of the next sample."""

    def take(self, group: int) -> GroupSample:
        """The next sample of a group."""

    def reject(self, item: GroupSample, reason: str, sentence: str) -> None:
        """Leaves out a sample that was taken, and reports it."""


class Packer(ABC):
    """Fills one pack after the other.

    Attributes:
        waiting: samples that wait for a pack, the oldest first.
        note: is told what happens: where a sample comes from, the sample, and what becomes of it.
    """

    def __init__(self) -> None:
        self.waiting: list[GroupSample] = []
        self.note: Callable[[str, GroupSample | None, str], None] = lambda source, item, what: None

    @abstractmethod
    def next_rows(self, feed: PackFeed) -> list[list[GroupSample]]:
        """The samples of the next pack, by row.

        Raises:
            DataError: sample after sample is larger than a pack.
        """

    @abstractmethod
    def misfit(self, item: GroupSample) -> str | None:
        """Says why a sample is larger than any pack; None if it is not."""

    def state_dict(self) -> dict[str, Any]:
        """The packer's state besides the samples that wait, as JSON."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Goes to a state; the samples that wait are put back by themselves."""

    def _fresh(self, feed: PackFeed, group: int | None, misfit: Callable[[GroupSample], str | None]) -> GroupSample:
        """The next sample of a group that is not larger than a pack.

        Args:
            feed: the samples.
            group: the group; None draws it.
            misfit: says why a sample is larger than a pack, or None.
        """
        for _ in range(_MISFITS):
            item = feed.take(feed.draw() if group is None else group)
            why = misfit(item)
            if why is None:
                return item
            self.note("draw" if group is None else "mandatory", item, "too long")
            feed.reject(item, _TOO_LARGE, why)
        raise DataError(f"{_MISFITS} samples in a row are larger than a pack; of the last one {why}")


@section(frozen=True, kw_only=True)
class PackConfig(Section):
    """The size of a pack: `rows` rows of `und` and `gen` slots each; `buffer` samples may wait for a row that fits."""

    fixed_shape: ClassVar[bool] = True

    loop: Literal["rows"] = "rows"
    rows: Count = 1
    und: Count
    gen: Count
    buffer: Whole = 64

    @property
    def tokens(self) -> int:
        """The most tokens of a pack."""
        return self.rows * (self.und + self.gen)

    def packer(self) -> Packer:
        return RowPacker(self)

    def slots(self, rows: Sequence[Sequence[Sample]]) -> tuple[int, int]:
        """The und and gen slots of each row of a pack."""
        return self.und, self.gen


class RowPacker(Packer):
    """Fills rows with two capacities, und and gen slots: a sample goes into the first row with room for both.

    One that fits no row waits, and is tried first in the next pack. A pack is full once more samples than it has rows
    found no room, or the buffer is full: nothing that waits fits any row then. Of each mandatory group the oldest
    sample that waits, or the next one, opens the pack.
    """

    def __init__(self, config: PackConfig) -> None:
        super().__init__()
        self.config = config

    def next_rows(self, feed: PackFeed) -> list[list[GroupSample]]:
        shape = self.config
        rows: list[list[GroupSample]] = [[] for _ in range(shape.rows)]
        und = [shape.und] * shape.rows
        gen = [shape.gen] * shape.rows

        def place(item: GroupSample) -> bool:
            needs_und, needs_gen = item.sample.und_len, item.sample.gen_len
            for row in range(shape.rows):
                if needs_und <= und[row] and needs_gen <= gen[row]:
                    rows[row].append(item)
                    und[row] -= needs_und
                    gen[row] -= needs_gen
                    return True
            return False

        opening = [self._opens(feed, group) for group in feed.mandatory]
        self.waiting = [item for item in [*opening, *self.waiting] if not place(item)]
        misses = 0
        while misses <= shape.rows and len(self.waiting) <= shape.buffer:
            item = self._fresh(feed, None, self.misfit)
            if not place(item):
                self.waiting.append(item)
                misses += 1
        return rows

    def _opens(self, feed: PackFeed, group: int) -> GroupSample:
        for number, item in enumerate(self.waiting):
            if item.group == group:
                return self.waiting.pop(number)
        return self._fresh(feed, group, self.misfit)

    def misfit(self, item: GroupSample) -> str | None:
        shape, und, gen = self.config, item.sample.und_len, item.sample.gen_len
        if und <= shape.und and gen <= shape.gen:
            return None
        return (
            f"it needs {und} und and {gen} gen slots, and an empty row has {shape.und} and {shape.gen}: enlarge the "
            "pack (pack.und and pack.gen, or pack.text, pack.seen and pack.latents where these are given), shorten the "
            "texts, or lower the limits of the image transforms"
        )


@section(frozen=True, kw_only=True)
class PublishedPackConfig(Section):
    """The published packing loop, by its published names: one long row that is full at about a number of tokens.

    Attributes:
        expected_num_tokens: the tokens at which a pack is full.
        max_num_tokens: the most tokens of a pack.
        max_num_tokens_per_sample: the most tokens of a sample; longer ones are left out and reported.
        prefer_buffer_before: the tokens up to which a pack is filled with samples that wait.
        max_buffer_size: the most samples that may wait.
    """

    fixed_shape: ClassVar[bool] = False

    loop: Literal["published"] = "published"
    expected_num_tokens: Count = 32_768
    max_num_tokens: Count = 36_864
    max_num_tokens_per_sample: Count = 16_384
    prefer_buffer_before: Whole = 16_384
    max_buffer_size: Whole = 50

    def __post_init__(self) -> None:
        if self.expected_num_tokens > self.max_num_tokens:
            raise ValueError(
                f"expected_num_tokens is {self.expected_num_tokens}; it must be at most max_num_tokens, "
                f"{self.max_num_tokens}"
            )

    @property
    def tokens(self) -> int:
        """The most tokens of a pack."""
        return self.max_num_tokens

    def packer(self) -> Packer:
        return PublishedPacker(self)

    def slots(self, rows: Sequence[Sequence[Sample]]) -> tuple[int, int]:
        """The und and gen slots of the row, rounded up to whole blocks of the attention."""
        used = [(sample.und_len, sample.gen_len) for row in rows for sample in row]
        und, gen = (-(-sum(lengths) // _BLOCK) * _BLOCK for lengths in zip(*used, strict=True))
        return max(und, _BLOCK), gen


class PublishedPacker(Packer):
    """The published loop without its faults.

    A sample of each mandatory group opens the pack. Then, as long as the pack holds fewer tokens than
    `prefer_buffer_before`, the oldest sample that waits comes next, else a fresh one of a group that is drawn. One that
    does not fit waits in the buffer; where that is full, the pack is done. Whether a sample fits is decided by its
    length before dropout, how full the pack is by what dropout left.

    The published loop loses a sample that comes from the buffer, or while that is full, and does not fit; lets
    mandatory samples exceed the maximum; and makes packs without samples where one is longer than a pack. Here such a
    sample opens the next pack, before the mandatory ones, and one longer than a pack is reported.

    Attributes:
        deferred: samples that found no room and open the next packs; never more than there are mandatory groups, and
            one.
    """

    def __init__(self, config: PublishedPackConfig) -> None:
        super().__init__()
        self.config = config
        self.deferred: list[GroupSample] = []
        self._oldest_opens = False  # the oldest sample of the buffer found no room in the pack before

    def next_rows(self, feed: PackFeed) -> list[list[GroupSample]]:
        row = list(self._fill(feed))
        self.note("", None, "emit")
        return [row]

    def _fill(self, feed: PackFeed) -> Iterator[GroupSample]:
        config, used, groups = self.config, 0, set()
        opening, self.deferred = self.deferred, []
        for item in opening:
            if used + item.sample.length > config.max_num_tokens:
                self.deferred.append(item)
            else:
                used += self._add("buffer", item)
                yield item
            groups.add(item.group)
        if self._oldest_opens and used + self.waiting[0].sample.length <= config.max_num_tokens:
            item, self._oldest_opens = self.waiting.pop(0), False
            used += self._add("buffer", item)
            groups.add(item.group)
            yield item
        for group in feed.mandatory:
            if group in groups:
                continue
            item = self._fresh(feed, group, self.misfit)
            if used + item.sample.length > config.max_num_tokens:
                self.deferred.append(item)
            else:
                used += self._add("mandatory", item)
                yield item
        while True:
            if used < config.prefer_buffer_before and self.waiting:
                item = self.waiting[0]
                if used + item.sample.length > config.max_num_tokens:
                    self._oldest_opens = True
                    return
                source = "buffer"
                self.waiting.pop(0)
            else:
                has_room = len(self.waiting) < config.max_buffer_size
                if self.deferred and not has_room:
                    return
                item = self._fresh(feed, None, self.misfit)
                if used + item.sample.length > config.max_num_tokens:
                    if has_room:
                        self.waiting.append(item)
                        self.note("draw", item, "buffer")
                        continue
                    self.deferred.append(item)
                    return
                source = "draw"
            used += self._add(source, item)
            yield item
            if used >= config.expected_num_tokens:
                return

    def _add(self, source: str, item: GroupSample) -> int:
        """Tells that a sample is added; the tokens that dropout left of it."""
        self.note(source, item, "pack")
        return item.sample.und_len + item.sample.gen_len

    def misfit(self, item: GroupSample) -> str | None:
        config, length = self.config, item.sample.length
        for name in ("max_num_tokens_per_sample", "max_num_tokens"):
            if length > (most := getattr(config, name)):
                return f"it has {length} tokens, and pack.{name} is {most}"
        return None

    def state_dict(self) -> dict[str, Any]:
        return {"oldest_opens": self._oldest_opens}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._oldest_opens = state["oldest_opens"]


AnyPackConfig = PackConfig | PublishedPackConfig
LOOPS: dict[str, type[AnyPackConfig]] = {"rows": PackConfig, "published": PublishedPackConfig}


def read_pack_config(content: Any) -> AnyPackConfig:
    """A recipe's `pack` section, of the type that its `loop` selects: ours by default.

    Raises:
        ValueError: the loop is unknown, or the type refuses the rest.
    """
    if isinstance(content, AnyPackConfig):
        return content
    if not isinstance(content, Mapping):
        raise ValueError(f"it is {content!r}; it must be a section with und and gen, or with loop: published")
    loop = content.get("loop", "rows")
    if loop not in LOOPS:
        raise ValueError(f"loop is {loop!r}, which there is not; {did_you_mean(str(loop), LOOPS)}")
    return TypeAdapter(LOOPS[loop]).validate_python(content)
