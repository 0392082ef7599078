"""Logical streams: every row once, the same packs with any number of ranks and workers, and from any state."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bagel_mot.data.dataset import Dataset
from bagel_mot.data.documents import Document, Dropout, ImagePart, SampleBuilder, TextPart
from bagel_mot.data.draws import Draws
from bagel_mot.data.feed import GroupItem, SampleFeed, SampleMaker
from bagel_mot.data.mixing import BySamples, ByTokens
from bagel_mot.data.packer import AnyPackConfig, PackConfig, PublishedPackConfig
from bagel_mot.data.readers.base import Reader, Row, Unit
from bagel_mot.data.rows import SkipRow
from bagel_mot.data.skips import SkipList
from bagel_mot.data.sources.mini import MiniConfig
from bagel_mot.data.streams import PackStream, pack_gauges
from bagel_mot.data.supply import DrawnSupply, KeyedItem, RowSupply, SampleGroup, check_groups
from bagel_mot.data.workers import Workers
from bagel_mot.errors import DataError
from bagel_mot.images import ImageTransform
from bagel_mot.sequence import PackSpec
from bagel_mot.tokenizer import Tokenizer

TRANSFORM = ImageTransform(64, 16, 16)
ROWS = PackConfig(rows=2, und=90, gen=40, buffer=5)
PUBLISHED = PublishedPackConfig(
    expected_num_tokens=90,
    max_num_tokens=100,
    max_num_tokens_per_sample=90,
    prefer_buffer_before=128,
    max_buffer_size=3,
)


class Lines(Reader):
    """Units of rows {"number": n}."""

    def __init__(self, lengths: Sequence[int], known: bool = True, random_access: bool = False) -> None:
        self.lengths, self.known, self.random_access = tuple(lengths), known, random_access

    def units(self) -> Sequence[Unit]:
        return [Unit(f"unit {n}", length if self.known else None) for n, length in enumerate(self.lengths)]

    def read(self, unit: int, start: int = 0) -> Iterator[Row]:
        for row in range(start, self.lengths[unit]):
            yield {"number": 100 * unit + row}


class Same(Lines):
    """A unit of rows with one and the same number."""

    def __init__(self, number: int, rows: int) -> None:
        super().__init__((rows,))
        self.number = number

    def read(self, unit: int, start: int = 0) -> Iterator[Row]:
        for _ in range(start, self.lengths[unit]):
            yield {"number": self.number}


def numbered(row: Row, draws: Draws) -> Document:
    """A text as long as the number and the draws say; every 7th is skipped, and some end a worker."""
    number = int(row["number"])
    if number % 7 == 3:
        raise SkipRow("a number is bad", f"the number is {number}")
    if number == 6661:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 6662:
        raise ZeroDivisionError("by zero")
    return [TextPart("ab " * (1 + number % 9 + draws.below(5)), loss=True), TextPart("c", droppable=True)]


@pytest.fixture(scope="module")
def tokenizer(golden: Any) -> Tokenizer:
    return Tokenizer.from_folder(golden.checkpoint)


def group_of(name: str, reader: Reader, **kinds: Any) -> SampleGroup:
    return SampleGroup(name, RowSupply(name, (Dataset(name, reader, numbered),)), **kinds)


GROUPS = [
    group_of("known", Lines((5, 40, 1, 0, 17)), weight=2.0),
    group_of("lines", Lines((30,), random_access=True)),
    group_of("tars", Lines((9, 8, 7), known=False), weight=0.5, mandatory=True),
]


class Run:
    """The streams of one process of a run."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        groups: Sequence[SampleGroup] = GROUPS,
        streams: Sequence[int] = (0,),
        total: int = 1,
        config: AnyPackConfig = ROWS,
        workers: int = 0,
        by_tokens: bool = False,
        transform: ImageTransform = TRANSFORM,
    ) -> None:
        builder = SampleBuilder(tokenizer, transform, transform, 16, 16, Dropout(0.5, 0.5, 0.5))
        self.spec = PackSpec(tokenizer.special, 8, 8, 768, 16)
        maker = SampleMaker(tuple(group.supply for group in groups), builder, self.spec, 5)
        self.workers: Workers[GroupItem, Any] = Workers(maker, workers)
        weights = [group.weight for group in groups]
        self.streams = {
            n: PackStream(
                SampleFeed(
                    groups, ByTokens(weights) if by_tokens else BySamples(weights, f"{n}"), self.workers, 5, n, total
                ),
                self.spec,
                config,
            )
            for n in streams
        }

    def packs(self, count: int) -> dict[int, list[Any]]:
        return {n: [contents(s.next_rows()) for _ in range(count)] for n, s in self.streams.items()}

    def states(self) -> dict[int, str]:
        return {n: json.dumps(stream.state_dict()) for n, stream in self.streams.items()}

    def load(self, states: Mapping[int, str]) -> None:
        for n, stream in self.streams.items():
            stream.load_state_dict(json.loads(states[n]))


def contents(rows: Sequence[Sequence[Any]]) -> Any:
    """All that a pack has been made of: keys, tokens, what dropout left."""
    return [
        [(s.index, s.length, [run.ids for segment in s.segments for run in segment.runs]) for s in row] for row in rows
    ]


def keys_of(packs: Sequence[Any]) -> list[tuple[Any, ...]]:
    return [tuple(key) for pack in packs for row in pack for key, _, _ in row]


@pytest.mark.parametrize("config", [ROWS, PUBLISHED])
@pytest.mark.parametrize("total", [1, 3])
def test_every_usable_row_comes_once_an_epoch(tokenizer: Tokenizer, config: AnyPackConfig, total: int) -> None:
    run = Run(tokenizer, streams=range(total), total=total, config=config)
    seen: list[tuple[Any, ...]] = []
    for packs in run.packs(60 // total).values():
        seen += keys_of(packs)
    for stream in run.streams.values():
        waiting = [*stream.packer.waiting, *getattr(stream.packer, "deferred", [])]
        seen += [tuple(item.sample.index) for item in waiting]
    assert len(seen) == len(set(seen))
    for group in GROUPS:
        (dataset,) = group.supply.datasets  # type: ignore[attr-defined]
        whole = {
            (unit, row)
            for unit, length in enumerate(dataset.reader.lengths)
            for row in range(length)
            if (100 * unit + row) % 7 != 3
        }
        places = [json.loads(s)["groups"][group.name] for s in run.states().values()]
        finished = min(place["epoch"] for place in places)
        assert finished >= 1
        for epoch in range(finished):
            assert {key[2:] for key in seen if key[:2] == (epoch, group.name)} == whole


@pytest.mark.parametrize("config", [ROWS, PUBLISHED])
@pytest.mark.parametrize("by_tokens", [False, True])
def test_other_ranks_go_on_with_the_same_packs(tokenizer: Tokenizer, config: AnyPackConfig, by_tokens: bool) -> None:
    """Four streams on one process for seven packs, then on two and on four."""
    kinds: dict[str, Any] = {"total": 4, "config": config, "by_tokens": by_tokens}
    whole = Run(tokenizer, streams=range(4), **kinds)
    whole.packs(7)
    states = whole.states()
    assert all(len(state) < 2000 for state in states.values())
    expected, ends = whole.packs(5), whole.states()
    for ranks in (1, 2, 4):
        for rank in range(ranks):
            part = Run(tokenizer, streams=range(rank, 4, ranks), **kinds)
            part.load(states)
            for n, packs in part.packs(5).items():
                assert packs == expected[n]
                assert json.loads(part.states()[n]) == json.loads(ends[n])


def test_worker_processes_change_neither_packs_nor_states(tokenizer: Tokenizer) -> None:
    inline = Run(tokenizer)
    expected = [inline.packs(3), inline.states(), inline.packs(3)]
    run = Run(tokenizer, workers=2)
    try:
        assert [run.packs(3), run.states(), run.packs(3)] == expected
        skipped = [stream.feed.take_skipped() for stream in (run.streams[0], inline.streams[0])]
        assert skipped[0] == skipped[1]
    finally:
        run.workers.close()
    resumed = Run(tokenizer, workers=1)
    try:
        resumed.load(expected[1])  # type: ignore[arg-type]
        assert resumed.packs(3) == expected[2]
    finally:
        resumed.workers.close()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (6661, "a worker process of the data has ended abruptly, as when memory runs out or it is killed"),
        (6662, "a worker process of the data failed: ZeroDivisionError: by zero"),
    ],
)
def test_a_worker_that_dies_or_fails_is_an_error_of_one_sentence(tokenizer: Tokenizer, bad: int, message: str) -> None:
    run = Run(tokenizer, [group_of("bad", Same(bad, 50))], workers=1)
    try:
        with pytest.raises(DataError, match=message):
            run.packs(50)
        with pytest.raises(DataError):
            run.packs(50)
    finally:
        run.workers.close()


def test_the_workers_end_when_they_are_closed(tokenizer: Tokenizer) -> None:
    run = Run(tokenizer, workers=1)
    run.packs(1)
    assert run.workers._pool is not None
    processes = run.workers._pool.processes
    assert [process.is_alive() for process in processes] == [True]
    run.workers.close()
    assert [process.is_alive() for process in processes] == [False]


def test_what_is_left_out_is_counted_and_listed(tokenizer: Tokenizer, tmp_path: Path) -> None:
    run, skips = Run(tokenizer, [group_of("known", Lines((5, 12)))]), SkipList(tmp_path)
    stream = run.streams[0]
    for _ in range(3):
        listed = stream.listed
        skips.add(0, listed, stream.next_batch().skipped)
    state = stream.state_dict()
    for _ in range(2):  # two more packs, of which the run that goes on knows nothing
        listed = stream.listed
        skips.add(0, listed, stream.next_batch().skipped)
    beyond = skips.path(0).read_text()
    again, resumed = Run(tokenizer, [group_of("known", Lines((5, 12)))]).streams[0], SkipList(tmp_path)
    again.load_state_dict(state)
    for _ in range(2):
        listed = again.listed
        resumed.add(0, listed, again.next_batch().skipped)
    assert resumed.path(0).read_text() == beyond
    lines = [json.loads(line) for line in beyond.splitlines()]
    assert len(lines) == again.listed == sum(again.feed.counts.values()) == pack_gauges([again.state_dict()])["skipped"]
    assert {
        "group": "known",
        "place": "known: unit 0, row 3",
        "reason": "a number is bad",
        "sentence": "the number is 3",
    } in lines
    assert pack_gauges([again.state_dict()])["skipped/a_number_is_bad"] == again.feed.counts["a number is bad"]
    SkipList(tmp_path).add(0, 0, [])  # a run that begins anew
    assert not resumed.path(0).exists()


def test_data_that_cannot_be_used_at_all_are_an_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(
        DataError, match="1000 items of bad in a row cannot be used; the last one is bad: unit 0, row .*: the number"
    ):
        Run(tokenizer, [group_of("bad", Same(3, 50))]).packs(1)
    for known in (True, False):
        with pytest.raises(DataError, match="the data of none have no rows"):
            Run(tokenizer, [group_of("none", Lines((0, 0), known))], streams=(1,), total=3).packs(1)


def test_other_data_are_noticed(tokenizer: Tokenizer) -> None:
    run = Run(tokenizer, [group_of("known", Lines((5, 12)))])
    run.packs(2)
    states = run.states()
    for groups, message in (
        (
            [group_of("known", Lines((5, 13)))],
            "were 1 data sets, 2 units, 17 rows when the run began and are .* 18 rows",
        ),
        ([group_of("other", Lines((5, 12)))], "begun with the groups known and now has other"),
    ):
        with pytest.raises(DataError, match=message):
            Run(tokenizer, groups).load(states)


def test_a_group_that_does_not_resume_begins_anew(tokenizer: Tokenizer) -> None:
    groups = [group_of("known", Lines((5, 40)), resumes=False), group_of("lines", Lines((30,)))]
    run = Run(tokenizer, groups)
    run.packs(4)
    again = Run(tokenizer, groups)
    again.load(run.states())
    places = again.streams[0].state_dict()["groups"]
    assert (places["known"]["epoch"], places["known"]["done"]) == (0, 0)
    assert places["lines"] == json.loads(run.states()[0])["groups"]["lines"]
    assert all(item.group == 1 for item in again.streams[0].packer.waiting)


def test_an_image_beyond_the_position_table_is_skipped(tokenizer: Tokenizer) -> None:
    from PIL import Image

    class Large(DrawnSupply):
        pass

    def document(index: int) -> Document:
        return [ImagePart(Image.new("RGB", (160 if index % 2 else 16, 16)), target=True)]

    run = Run(tokenizer, [SampleGroup("large", Large(document))], transform=ImageTransform(256, 16, 16))
    run.packs(1)
    (why,) = {(s.reason, s.sentence.partition(":")[0]) for s in run.streams[0].feed.take_skipped()}
    assert why == (
        "an image is beyond the position table",
        "an image of 1×10 latent tokens is beyond the model's position table of 8×8",
    )


def test_groups_are_checked() -> None:
    one = GROUPS[0]
    for groups, message in (
        ([], "no group"),
        ([one, one], "two groups of data are called known"),
        ([group_of("a", Lines((1,)), weight=0.0)], "every weight of the data"),
    ):
        with pytest.raises(DataError, match=message):
            check_groups(groups)


# Indices of the samples by pack and row, and a digest of tokens and images, recorded before there were streams.
MINI = [
    [[1, 4, 6], [3, 7, 11], [5]],
    [[8, 9, 14], [10, 17, 19], [12, 18]],
    [[13, 25], [20, 28, 31], [22, 32, 33]],
    [[23], [26, 34, 35], [29, 36, 37, 39]],
    [[30, 40, 42, 44], [41, 43, 45, 51], [46, 47, 52]],
    [[50], [53, 54, 55], [57, 58, 59, 60]],
]
MINI_DIGEST = "06f80d332f4bf90bb5ae09aa45bf3f83134e8bd15f5df0186ec37f7b28419f7e"


def test_the_toy_worlds_one_stream_is_what_it_always_was(tokenizer: Tokenizer) -> None:
    transform = ImageTransform(64, 64, 16)
    builder = SampleBuilder(tokenizer, transform, transform, 16, 16, Dropout(0.1, 0.3, 0.3, 0.1))
    spec = PackSpec(tokenizer.special, 8, 8, 768, 16)
    groups = MiniConfig(target_copies=2).open(5).groups()
    workers: Workers[GroupItem, Any] = Workers(SampleMaker((groups[0].supply,), builder, spec, 5), 0)
    config = PackConfig(rows=3, und=160, gen=128, buffer=6)
    stream = PackStream(SampleFeed(groups, BySamples([1.0], ""), workers, 5), spec, config)
    digest, found = hashlib.sha256(), []
    for _ in MINI:
        state = stream.state_dict()
        found.append([[sample.index for sample in row] for row in stream.next_rows()])
        stream.load_state_dict(state)
        pack = stream.next_batch()
        layout = pack.layout
        tensors = (layout.text_ids, layout.ce_labels, layout.positions, pack.vit_patches, *pack.images)
        for tensor in (*tensors, pack.latent_source):
            digest.update(tensor.numpy().tobytes())
    assert found == MINI
    assert digest.hexdigest() == MINI_DIGEST


def test_streams_of_the_toy_world_take_turns(tokenizer: Tokenizer) -> None:
    groups = MiniConfig().open(5).groups()
    run = Run(tokenizer, groups, streams=range(3), total=3, config=PackConfig(rows=3, und=300, gen=256))
    for number, packs in run.packs(2).items():
        assert {key % 3 for pack in packs for row in pack for key, _, _ in row} == {number}


def test_a_draw_depends_on_the_row_and_the_epoch_alone(tokenizer: Tokenizer) -> None:
    supply = GROUPS[0].supply
    builder = SampleBuilder(tokenizer, TRANSFORM, TRANSFORM, 16, 16, Dropout(0.5, 0.5, 0.5))
    lengths = {}
    for epoch in range(12):
        item = KeyedItem([epoch, "known", 1, 7], {"number": 107})
        made = [supply.sample(item, builder, seed).length for seed in (5, 5, 6)]
        assert made[0] == made[1]
        lengths[epoch] = tuple(made)
    assert len({made[0] for made in lengths.values()}) > 1
    assert any(made[0] != made[2] for made in lengths.values())
