"""The kinds `shard`, `resume` and `resume_run`: who reads what, and what comes after a run went on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from bagel_mot.config import parse
from bagel_mot.data.documents import OPENERS, IndexedSample
from bagel_mot.data.feed import GroupItem, SampleFeed, SampleMaker
from bagel_mot.data.mixing import BySamples
from bagel_mot.data.order import Stretch
from bagel_mot.data.packer import PublishedPackConfig
from bagel_mot.data.published import published_group
from bagel_mot.data.published_order import PublishedSupply
from bagel_mot.data.readers.parquet import ParquetReader
from bagel_mot.data.rows import SkipRow
from bagel_mot.data.streams import PackStream
from bagel_mot.data.supply import RowCursor, RowSupply, SampleGroup
from bagel_mot.data.workers import Workers
from bagel_mot.errors import DataError
from bagel_mot.sequence import PackSpec
from bagel_mot.verify.data.judge import RecordJudge
from bagel_mot.verify.data.plans import outcomes_of
from bagel_mot.verify.data.recorded import FAULT, PATCH, RecordedData
from bagel_mot.verify.records import Case

_IDLE = "a worker without units ends or says so, or the units are dealt out otherwise"
_BEGINS = "that worker starts at the beginning"
_ONCE = "each row once: none missed, none repeated"
_PACKS_AFTER = 4


class _Rows:
    """The rows of a group in the published order, by their recorded names."""

    def __init__(self, recorded: RecordedData, case: Case, status: Sequence[Mapping[str, Any]] = ()) -> None:
        name, folder = case["group"], recorded.folder
        settings = {
            **recorded.configuration("small")[name],
            "dataset_names": case["data_sets"],
            "num_used_data": case["num_used_data"],
            **{key: case[key] for key in ("shuffle_lines", "shuffle_seed") if key in case},
        }
        group = published_group(
            name, settings, recorded.dataset_info, str(case["name"]), "dataset_info", folder, OPENERS["published"]
        )
        self.folder, self.world, self.workers = folder, case["world"], case["workers"]
        self.each = max(self.workers, 1)
        datasets = tuple(group.datasets)
        self.supply = PublishedSupply(name, datasets, case["data_seed"], self.workers, tuple(status))
        self.ours = RowSupply(name, datasets)

    @property
    def streams(self) -> int:
        """The number of all readers."""
        return self.world * self.each

    def unit(self, stretch: Stretch) -> Any:
        """The recorded name of a unit: a file, a file and a row group, or the id of a line."""
        dataset, unit, _ = self.supply.units[stretch.unit]
        reader = dataset.reader
        if not isinstance(reader, ParquetReader):
            return reader.row(unit, stretch.start)["id"]
        if reader.by == "file":
            return self._file(reader.files[unit])
        return [self._file(reader.groups[unit].file), reader.groups[unit].number]

    def row(self, unit: int, row: int) -> Any:
        """The recorded name of a row: its file, row group and number, or the id of its line."""
        dataset, number, _ = self.supply.units[unit]
        if not isinstance(dataset.reader, ParquetReader):
            return dataset.reader.row(number, row)["id"]
        at = dataset.reader.row_group(number, row)
        return [self._file(at.file), at.number, at.row]

    def _file(self, file: Any) -> str:
        return str(file.relative_to(self.folder).as_posix())

    def rows_of(self, stretch: Stretch) -> list[tuple[int, int]]:
        """The (unit, row) of a stretch that is not shuffled."""
        assert stretch.stop is not None
        return [(stretch.unit, row) for row in range(stretch.start, stretch.stop)]


def judge_shard(recorded: RecordedData, judge: RecordJudge) -> None:
    """Judges the published order, which is needed to go on from a published run, and the order here."""
    case, rows = judge.case, _Rows(recorded, judge.case)
    judge.same(
        "units", sorted(map(json.dumps, map(rows.unit, rows.supply.shared))), sorted(map(json.dumps, case["units"]))
    )
    if judge.mark == FAULT:
        _judge_idle(judge, rows)
    else:
        _judge_order(judge, rows)
    _judge_ours(judge, rows)


def _readers(rows: _Rows) -> list[tuple[str, int]]:
    return [(f"{stream // rows.each}/{stream % rows.each}", stream) for stream in range(rows.streams)]


def _judge_order(judge: RecordJudge, rows: _Rows) -> None:
    order: dict[str, Any] = {}
    status: dict[str, Any] = {}
    read: list[str] = []
    for name, stream in _readers(rows):
        stretches = rows.supply.order(0, stream, rows.streams).stretches(0)
        found = [(n, row) for n, stretch in enumerate(stretches) for row in rows.rows_of(stretch)]
        order[name] = [rows.row(*row) for _, row in found]
        status[name] = [rows.supply.status_of(stretches, n, row) for n, (_, row) in found]
        read += [json.dumps(rows.unit(stretch)) for stretch in stretches]
    judge.same("order", order, judge.case["order"])
    judge.same("status", status, judge.case["status"])
    every = Counter(json.dumps(rows.unit(stretch)) for stretch in rows.supply.shared)
    unused = sorted(every.keys() - set(read))
    judge.same("unused", unused, sorted(map(json.dumps, judge.case["unused"])))
    judge.same("idle", [], judge.case.get("idle", []))


def _judge_idle(judge: RecordJudge, rows: _Rows) -> None:
    said = []
    for name, stream in _readers(rows):
        try:
            rows.supply.order(0, stream, rows.streams)
        except DataError as error:
            if "has nothing to read" in str(error):
                said.append(name)
    judge.same("readers that say they have nothing", said, judge.case["idle"])
    judge.same("order", {name: [] for name, _ in _readers(rows)}, judge.case["order"])
    judge.same("status", {name: [] for name, _ in _readers(rows)}, judge.case["status"])
    judge.same("unused", sorted(map(json.dumps, judge.case["unused"])), sorted(map(json.dumps, judge.case["units"])))
    judge.same("instead", _IDLE, judge.case["instead"])


def _judge_ours(judge: RecordJudge, rows: _Rows) -> None:
    """Judges our own order: each row once a pass, nobody is idle for ever, and what comes after a resume would have."""
    total = sum(about.rows or 0 for _, _, about in rows.ours.units)
    cursors = [rows.ours.cursor(5, stream, rows.streams) for stream in range(rows.streams)]
    read: Counter[str] = Counter()
    resumed_alike = True
    for stream, cursor in enumerate(cursors):
        taken: list[Any] = []
        while not taken or taken[-1][0] < 1:  # to the first row of another pass
            taken.append(cursor.take().key)
            if len(taken) == 2:
                again = rows.ours.cursor(5, stream, rows.streams)
                again.go_to(json.loads(json.dumps(cursor.place())))
                resumed_alike &= again.take().key == _next(rows, stream, 3)
        read.update(json.dumps(key[1:]) for key in taken if key[0] == 0)
    judge.same("ours: rows of a pass, each once", (len(read), set(read.values())), (total, {1}))
    judge.holds("ours: what comes after a resume would have come", resumed_alike, "compared behind the second row")


def _next(rows: _Rows, stream: int, number: int) -> Any:
    cursor = rows.ours.cursor(5, stream, rows.streams)
    return [cursor.take().key for _ in range(number)][-1]


def judge_resume(recorded: RecordedData, judge: RecordJudge) -> None:
    """Judges what a worker reads behind a position."""
    case = judge.case
    kept = {int(worker): status for worker, status in case["data_status"].items()}
    rows = _Rows(recorded, case, [{case["group"]: kept}] * case["world"])
    stream = case["rank"] * rows.each + case["worker"]
    cursor = rows.supply.cursor(0, stream, rows.streams)
    assert isinstance(cursor, RowCursor)
    stretches = cursor.order.stretches(0)
    if judge.mark == FAULT:
        judge.holds(
            "instead", case["instead"] == _BEGINS and case["worker"] not in kept, f"{case['instead']!r} is judged"
        )
        judge.same("first", cursor.take().key[1:], _begun(rows, stream).take().key[1:])
        return
    reads: list[Any] = []
    status: list[Any] = []
    for _ in case["reads"]:
        _, _, _, row = cursor.take().key
        unit = stretches[cursor.stretch].unit
        reads.append(rows.row(unit, row))
        status.append(rows.supply.status_of(stretches, cursor.stretch, row))
    judge.same("reads", reads, case["reads"])
    judge.same("status", status, case["status"])


def _begun(rows: _Rows, stream: int) -> RowCursor:
    return RowCursor(rows.supply, rows.supply.order(0, stream, rows.streams))


def judge_resume_run(recorded: RecordedData, judge: RecordJudge) -> None:
    """Judges a run that is stopped and goes on: here each row is used once."""
    case = judge.case
    judge.same("instead", _ONCE, case["instead"])
    whole = _stream(recorded, case)
    before = [_keys(whole) for _ in range(case["packs_before"])]
    state = json.loads(json.dumps(whole.state_dict()))
    after = [_keys(whole) for _ in range(_PACKS_AFTER)]
    resumed = _stream(recorded, case)
    resumed.load_state_dict(state)
    judge.same("packs after going on", [_keys(resumed) for _ in range(_PACKS_AFTER)], after)
    used = [key for pack in [*before, *after] for key in pack]
    judge.same("repeated here", [key for key, count in Counter(used).items() if count > 1], [])
    waiting = [json.dumps(item.sample.index) for item in resumed.packer.waiting]
    judge.same("state after going on", resumed.state_dict(), whole.state_dict())
    judge.same("used and waiting", len({*used, *waiting}), len(used) + len(waiting))
    _judge_record(recorded, judge)


def _stream(recorded: RecordedData, case: Case) -> PackStream:
    found = recorded.groups(case["config"]).values()
    groups = [
        SampleGroup(group.name, RowSupply(group.name, tuple(group.datasets)), group.weight, group.mandatory)
        for group in found
    ]
    spec = PackSpec(recorded.tokenizer.special, 64, 64, 3 * PATCH**2, 64)
    maker = SampleMaker(tuple(group.supply for group in groups), recorded.builder(), spec, 0)
    workers: Workers[GroupItem, IndexedSample | SkipRow] = Workers(maker, 0)
    feed = SampleFeed(groups, BySamples([group.weight for group in groups], "0"), workers, 0)
    return PackStream(feed, spec, parse(PublishedPackConfig, case["settings"], case["name"], DataError))


def _keys(stream: PackStream) -> list[str]:
    return [json.dumps(sample.index) for row in stream.next_rows() for sample in row]


def _judge_record(recorded: RecordedData, judge: RecordJudge) -> None:
    """Judges that the record tells what the published program does: what it reads behind the positions it kept."""
    case = judge.case
    packed = [name for pack in case["packed"] for name in pack]
    fetched = [name for names in case["fetched"].values() for name in names]
    judge.same("packed and waiting", sorted([*packed, *case["waiting"]]), sorted(fetched))
    again = [name for names in case["reads_after"].values() for name in names]
    for name, kept in case["data_status"].items():
        group = recorded.groups(case["config"])[name]
        status = ({name: {int(worker): place for worker, place in kept.items()}},)
        cursor = PublishedSupply(name, tuple(group.datasets), 42, 0, status).cursor(0, 0, 1)
        wanted = list(case["reads_after"][name])
        left_out: list[str] = []
        for _ in range(200):
            if not wanted:
                break
            found = _named(recorded, group.datasets[0].reader, cursor.take().key)
            if found == wanted[0]:
                wanted.pop(0)
            else:
                left_out.append(found)
        judge.same(f"{name}: reads_after", wanted, [])
        judge.same(f"{name}: left out", [row for row in left_out if not _may_be_skipped(recorded, row)], [])
    judge.same("repeated", [name for name in again if name in packed and name in case["repeated"]], case["repeated"])
    judge.same("missed", [name for name in case["waiting"] if name not in again], case["missed"])
    judge.same("packs_before", len(case["packed"]), case["packs_before"])


def _named(recorded: RecordedData, reader: Any, key: Sequence[Any]) -> str:
    _, name, unit, row = key
    short = str(name).partition("/")[2]
    if not isinstance(reader, ParquetReader):
        return f"{short}/{reader.line(unit, row)}"
    at = reader.row_group(unit, row)
    return f"{short}/{at.file.stem}/{at.number}/{at.row}"


def _may_be_skipped(recorded: RecordedData, name: str) -> bool:
    try:
        case = recorded.by_name(name)
        skips = any(outcome.plan is None for _, outcome in outcomes_of(recorded, case, "published"))
        return skips or case["mark"] == FAULT  # a fault is judged by itself
    except KeyError:  # a row of a file that the published parquet JSON does not name
        return True
