"""The content of a report: what the records of a run hold, and how two runs differ on the items of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bagel_mot.evaluation.records import read_records, record_files
from bagel_mot.evaluation.run_summary import read_summaries
from bagel_mot.evaluation.runner import IMAGES, RESULTS, scores_name
from bagel_mot.evaluation.statistics import mcnemar, sign_flip

SHOWN = 24  # items of a run that are shown
_DIFFERENT = 20  # items of a comparison that are shown


@dataclass(frozen=True)
class ShownItem:
    """One item as a report shows it.

    Attributes:
        id: the item.
        prompt: the text that the model was given.
        texts: its answers, or thoughts.
        images: the files of drawn images.
        values: the numbers of its score.
        detail: the way the score came about.
    """

    id: str
    prompt: str
    texts: tuple[str, ...]
    images: tuple[Path, ...]
    values: Mapping[str, float | None]
    detail: Mapping[str, Any]


@dataclass(frozen=True)
class ReportedRun:
    """A run of one benchmark with one judge: its summary, and its items by id."""

    folder: Path
    summary: Mapping[str, Any]
    items: Mapping[str, ShownItem]

    @property
    def key(self) -> tuple[str, ...]:
        """The parts that runs share which may be compared: the benchmark, its variant, data and protocol, the judge."""
        parts = (self.summary[name] for name in ("benchmark", "variant", "data", "protocol"))
        return (*map(str, parts), str(self.summary["judge"].get("model", "")))

    def shown(self) -> list[ShownItem]:
        """The items to look at: spread evenly over all, so that none is chosen for its score."""
        items = list(self.items.values())
        step = max(len(items) / SHOWN, 1.0)
        return [items[int(number * step)] for number in range(min(SHOWN, len(items)))]


def read_runs(folder: Path) -> list[ReportedRun]:
    """The runs below a folder.

    Raises: EvaluationError, DataError if there are none, or one cannot be read.
    """
    return [
        ReportedRun(path.parent, summary, _items(path.parent, summary))
        for path, summary in read_summaries(folder).items()
    ]


def _items(folder: Path, summary: Mapping[str, Any]) -> dict[str, ShownItem]:
    results, scores = (
        {id: line for path in record_files(folder, name) for id, line in read_records(path)[1].items()}
        for name in (RESULTS, scores_name(summary["judge"]))
    )
    found = {}
    for id, line in results.items():
        score = scores.get(id, {}).get("score")
        if "result" in line and score is not None:
            images = tuple(folder / IMAGES / path for path in line["result"]["images"])
            texts = tuple(line["result"]["texts"])
            found[id] = ShownItem(id, line.get("prompt", ""), texts, images, score["values"], score["detail"])
    return found


def compare(first: ReportedRun, second: ReportedRun) -> list[dict[str, Any]]:
    """The paired differences of two runs, one for each number of their scores.

    Returns: for each number {"name", "items", "first", "second", "difference", "test", "p", "only_first",
        "only_second", "most": [(item, first, second)]}. The test is McNemar's exact one for numbers that are 0 or 1,
        else a paired permutation test of the mean difference.
    """
    both = [id for id in first.items if id in second.items]
    names = list(dict.fromkeys(name for id in both for name in first.items[id].values))
    found = []
    for name in names:
        pairs = [
            (id, a, b)
            for id in both
            if (a := first.items[id].values.get(name)) is not None
            and (b := second.items[id].values.get(name)) is not None
        ]
        if pairs:
            found.append(_difference(name, pairs))
    return found


def _difference(name: str, pairs: Sequence[tuple[str, float, float]]) -> dict[str, Any]:
    more = sum(a > b for _, a, b in pairs)
    less = sum(a < b for _, a, b in pairs)
    is_share = all(value in (0.0, 1.0) for _, *values in pairs for value in values)
    first, second = (sum(pair[i] for pair in pairs) / len(pairs) for i in (1, 2))  # type: ignore[misc]
    unequal = sorted((pair for pair in pairs if pair[1] != pair[2]), key=lambda pair: -abs(pair[1] - pair[2]))
    return {
        "name": name,
        "items": len(pairs),
        "first": first,
        "second": second,
        "difference": second - first,
        "test": "McNemar, exact" if is_share else "paired permutation",
        "p": mcnemar(more, less) if is_share else sign_flip([b - a for _, a, b in pairs]),
        "only_first": more,
        "only_second": less,
        "most": unequal[:_DIFFERENT],
    }
