"""The verification of recorded scores: what the published evaluation made of small data sets in the official layouts.

A set holds a folder for each benchmark: its data, the prompts, answers and replies of judges, what the scorers made of
them, and the structure of what judges were asked. Every benchmark is run by its own class in both modes, published and
fixed, with the recorded answers and replies. What is recorded must agree: texts, labels, counts and scores exactly,
means to 1e-6 or, where they were printed rounded, to the last digit. A set with a benchmark, file, mark or source that
is not known is refused, and a value that nothing compared fails: nothing passes by being skipped.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from bagel_mot.verify.golden_eval.judge import Check
from bagel_mot.verify.golden_eval.recorded import BENCHMARKS, RecordedBenchmark, check_folder, is_golden_eval
from bagel_mot.verify.records import Case, Comparison

__all__ = ["CHECKS", "is_golden_eval", "verify_benchmark", "verify_golden_eval"]

# The module and the function that compare a benchmark; they are imported when they are needed.
CHECKS = {
    **{name: ("understanding", f"check_{name}") for name in BENCHMARKS[:7]},
    "geneval": ("geneval", "check_geneval"),
    **{name: ("wise", f"check_{name}") for name in BENCHMARKS[8:10]},
    **{name: ("edits", f"check_{name}") for name in BENCHMARKS[10:]},
}


def verify_golden_eval(folder: Path, progress: Callable[[Case], None] | None = None) -> list[Comparison]:
    """Compares all benchmarks of a set.

    Args:
        folder: the set.
        progress: a callback that receives the name and kind of each benchmark before it is compared.

    Raises:
        DataError: the set lacks a file, one is damaged, or something in it is not known.
    """
    check_folder(folder)
    recorded = [RecordedBenchmark(folder / name) for name in BENCHMARKS]
    rows = []
    for one in recorded:
        if progress is not None:
            progress({"kind": "benchmark", "name": one.name})
        rows += _compared(one)
    return rows


def verify_benchmark(folder: Path) -> list[Comparison]:
    """Compares one benchmark of a set, whose folder has its name. Errors as `verify_golden_eval`."""
    return _compared(RecordedBenchmark(folder))


def _compared(recorded: RecordedBenchmark) -> list[Comparison]:
    check = Check(recorded)
    module, function = CHECKS[recorded.name]
    with check.at("check"):
        getattr(importlib.import_module(f"{__name__}.{module}"), function)(check)
    left: dict[str, list[str]] = {}
    for place in recorded.left():
        left.setdefault(place.split("/")[0], []).append(place)
    for document, places in left.items():
        check.where = document
        named = ", ".join(places[:3]) + (", …" if len(places) > 3 else "")
        check.fail("not compared", f"recorded, but nothing compares {len(places)} values: {named}")
    return check.rows
