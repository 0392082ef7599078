"""The verification of recorded outputs of the published data pipeline: rows, images, packs, and the order of reading.

A set of recorded data holds small data sets in the published layouts, `cases.json` and `expected.safetensors`. Each
case has a mark, and is judged by it:

- a **contract** must agree;
- a **quirk** must agree where images are opened as published; where ours differ by default, and where a judge says so,
  it is counted apart, by its name;
- a **fault** is where the published program loses data or stops: what happens here must be reported, or be what the
  record says would be right.

A set with a kind, a mark, an outcome or a file that is not known is refused: nothing passes by being skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bagel_mot.verify.data.judge import RecordJudge
from bagel_mot.verify.data.packing import judge_groups, judge_plan, judge_run
from bagel_mot.verify.data.packs import judge_pack
from bagel_mot.verify.data.pictures import judge_limits, judge_picture
from bagel_mot.verify.data.reading import judge_config, judge_frames, judge_read
from bagel_mot.verify.data.recorded import RecordedData
from bagel_mot.verify.data.rows import judge_row
from bagel_mot.verify.data.sharding import judge_resume, judge_resume_run, judge_shard
from bagel_mot.verify.records import Case, Comparison

# A judge of a kind has a file of its own, and adds its line here.
JUDGES: dict[str, Callable[[RecordedData, RecordJudge], None]] = {
    "row": judge_row,
    "picture": judge_picture,
    "read": judge_read,
    "frames": judge_frames,
    "config": judge_config,
    "limits": judge_limits,
    "groups": judge_groups,
    "run": judge_run,
    "plan": judge_plan,
    "pack": judge_pack,
    "shard": judge_shard,
    "resume": judge_resume,
    "resume_run": judge_resume_run,
}


def verify_data(folder: Path, progress: Callable[[Case], None] | None = None) -> list[Comparison]:
    """Judges every case of a set of recorded data.

    Args:
        folder: the set.
        progress: a callback that receives each case before it is judged.

    Raises:
        DataError: the set lacks a file, one is damaged, or something in it is not known.
    """
    recorded = RecordedData(folder)
    comparisons = recorded.check_special()
    for case in recorded.cases:
        if progress is not None:
            progress(case)
        judge = RecordJudge(case, recorded)
        if case["kind"] in JUDGES:
            judge.run(JUDGES[case["kind"]])
        else:
            judge.fail("kind", "no judge is there for it")
        comparisons += judge.rows
    for key in sorted(recorded.tensors.keys() - recorded.seen):
        comparisons.append(Comparison(key, "tensor", None, False, "recorded, but nothing compares it"))
    return comparisons
