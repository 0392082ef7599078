"""The kinds `read`, `frames` and `config`: which rows are used, which frames of a clip, and which files."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

from bagel_mot.data.draws import all_outcomes
from bagel_mot.data.readers.jsonl import JsonlReader
from bagel_mot.data.readers.parquet import ParquetReader
from bagel_mot.data.tasks.frames import FrameSampler
from bagel_mot.verify.data.judge import Judge
from bagel_mot.verify.data.plans import outcomes_of
from bagel_mot.verify.data.recorded import RecordedData

_NOT_COMPARED = "which files are read: published, those that the parquet JSON names"


def rows_of(recorded: RecordedData, group: str) -> list[tuple[str, str]]:
    """(file relative to the set, recorded name) of every row of a group, in the order of its readers."""
    found: list[tuple[str, str]] = []
    for dataset in recorded.groups()[group].datasets:
        reader, name = dataset.reader, dataset.name.partition("/")[2]
        for unit in range(len(reader.units())):
            for key, _ in dataset.rows(unit):
                if isinstance(reader, JsonlReader):
                    file, place = reader.files[unit], f"{name}/{reader.line(unit, key.row)}"
                else:
                    assert isinstance(reader, ParquetReader)
                    at = reader.row_group(unit, key.row)
                    file, place = at.file, f"{name}/{at.file.stem}/{at.number}/{at.row}"
                found.append((file.relative_to(recorded.folder).as_posix(), place))
    return found


def judge_read(recorded: RecordedData, judge: Judge) -> None:
    """Judges a pass over a group: every row comes once, and what is skipped is skipped there and here."""
    case = judge.case
    rows = rows_of(recorded, case["group"])
    listed = case.get("files")
    if listed is not None:
        files = {file if isinstance(file, str) else file[0] for file in listed}
        judge.holds("files", files <= {file for file, _ in rows}, f"{len(files)} files are read")
        extra = sorted({file for file, _ in rows} - files)
        judge.same("further files", extra, [], may_differ=_NOT_COMPARED)
        rows = [(file, name) for file, name in rows if file in files]
    names = [name for _, name in rows]
    want = [*case["read"], *case["skipped"], *case.get("skipped_by_draw", ())]
    judge.same("rows", Counter(names), Counter(want))
    judge.same("order", [n for n in names if n in set(case["read"])], case["read"], may_differ=judge.quirk)
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


def judge_frames(recorded: RecordedData, judge: Judge) -> None:
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


def judge_config(recorded: RecordedData, judge: Judge) -> None:
    """Judges files that the published parquet JSON does not name: all files of the folder are read here."""
    case = judge.case
    info = recorded.dataset_info[case["group"]][case["data_set"]]
    reader = recorded.dataset(case["group"], case["data_set"]).reader
    assert isinstance(reader, ParquetReader)
    files = {str(file.relative_to(recorded.folder)) for file in reader.files}
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
