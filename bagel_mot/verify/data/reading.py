"""The kinds `read`, `frames` and `config`: which rows are used, which frames of a clip, and which files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from bagel_mot.data.dataset import Dataset
from bagel_mot.data.draws import all_outcomes
from bagel_mot.data.published_order import PublishedSupply
from bagel_mot.data.readers.jsonl import JsonlReader
from bagel_mot.data.readers.parquet import ParquetReader
from bagel_mot.data.tasks.frames import FrameSampler
from bagel_mot.verify.data.judge import RecordJudge
from bagel_mot.verify.data.plans import outcomes_of
from bagel_mot.verify.data.recorded import RecordedData

_MORE_FILES = "files that the parquet JSON does not name are left out"


def row_name(dataset: Dataset, unit: int, row: int) -> str:
    """The recorded name of a row: data set, file, row group and row, or data set and line."""
    reader, name = dataset.reader, dataset.name.partition("/")[2]
    if isinstance(reader, JsonlReader):
        return f"{name}/{reader.line(unit, row)}"
    assert isinstance(reader, ParquetReader)
    at = reader.row_group(unit, row)
    return f"{name}/{at.file.stem}/{at.number}/{at.row}"


def _all_rows(datasets: Sequence[Dataset]) -> list[str]:
    """The recorded names of all rows of data sets."""
    units = [(dataset, unit) for dataset in datasets for unit in range(len(dataset.reader.units()))]
    return [row_name(dataset, unit, key.row) for dataset, unit in units for key, _ in dataset.rows(unit)]


def _with_files(dataset: Dataset, files: Sequence[Path]) -> Dataset:
    """A data set of some Parquet files alone."""
    reader = dataset.reader
    assert isinstance(reader, ParquetReader)
    return replace(dataset, reader=ParquetReader(files, reader.columns, reader.by))


def _published_order(group: str, datasets: Sequence[Dataset], seed: int) -> list[str]:
    """The recorded names of all rows, in the published order of one rank without workers."""
    supply = PublishedSupply(group, tuple(datasets), seed)
    names: list[str] = []
    for stretch in supply.order(seed, 0, 1).stretches(0):
        dataset, unit, about = supply.units[stretch.unit]
        stop = about.rows if stretch.stop is None else stretch.stop
        names += [row_name(dataset, unit, row) for row in range(stretch.start, stop or 0)]
    return names


def judge_read(recorded: RecordedData, judge: RecordJudge) -> None:
    """Judges a pass over a group: every row comes once, and what is skipped is skipped there and here."""
    case = judge.case
    datasets = list(recorded.groups()[case["group"]].datasets)
    if "files" in case:
        readers = [dataset.reader for dataset in datasets]
        there = [file for reader in readers if isinstance(reader, ParquetReader) for file in reader.files]
        listed = {recorded.folder / (file if isinstance(file, str) else file[0]) for file in case["files"]}
        judge.holds("files", listed <= set(there), f"{len(listed)} files are read")
        judge.same("further files", [f.name for f in there if f not in listed], [], may_differ=_MORE_FILES)
        datasets = [_with_files(dataset, sorted(listed)) for dataset in datasets]
    want = [*case["read"], *case["skipped"], *case.get("skipped_by_draw", ())]
    judge.same("rows", Counter(_all_rows(datasets)), Counter(want))
    order = _published_order(case["group"], datasets, case["data_seed"])
    judge.same("published order", [name for name in order if name in set(case["read"])], case["read"])
    for what, used in (("read", (True,)), ("skipped", (False,)), ("skipped_by_draw", (False, True))):
        for name in case.get(what, ()):
            row = recorded.by_name(name)
            outcomes = outcomes_of(recorded, row, "published")
            found = {outcome.plan is not None for _, outcome in outcomes}
            if row["mark"] == "fault" and what == "skipped":  # judged by itself
                reported = found == {True} or all(o.reason for _, o in outcomes)
                judge.holds(f"{name} {what}", reported, "used, or skipped with a reason")
            else:
                judge.holds(f"{name} {what}", set(used) <= found, f"used: {sorted(found)}")


def judge_frames(recorded: RecordedData, judge: RecordJudge) -> None:
    """Judges the choice of frames: every choice, with its probability."""
    case = judge.case
    sampler = FrameSampler(case.get("max_num_frames", max(case["wanted"], 1)), 1, case["sample"])
    outcomes = all_outcomes(
        lambda draws: tuple(sampler.choose(case["wanted"], case["available"], draws, case.get("input_fps")))
    )
    got: dict[tuple[int, ...], Fraction] = {}
    for probability, frames in outcomes:
        got[frames] = got.get(frames, Fraction(0)) + probability
    want = {tuple(choice["frames"]): Fraction(*choice["weight"]) for choice in case["one_of"]}
    judge.same("one_of", got, want)


def judge_config(recorded: RecordedData, judge: RecordJudge) -> None:
    """Judges files that the published parquet JSON does not name: all files of the folder are read here."""
    case = judge.case
    info = recorded.dataset_info[case["group"]][case["data_set"]]
    reader = recorded.dataset(case["group"], case["data_set"]).reader
    assert isinstance(reader, ParquetReader)
    files = {str(Path(str(file)).relative_to(recorded.folder)) for file in reader.files}
    folder = recorded.folder / info["data_dir"]
    there = {str(file.relative_to(recorded.folder)) for file in folder.glob("*.parquet")}
    judge.same("files", files, there)
    for key in ("files", "left_out"):
        if key in case:
            judge.holds(key, set(case[key]) <= files, f"{sorted(files)} are read")
    judge.holds("instead", case["instead"] in _INSTEAD, f"{case['instead']!r} is judged")


_INSTEAD = {
    "the files' own footers are read, or the mismatch is reported with both names",
    "read, or reported",
}
