"""The summary of a run: its numbers and everything that one has to know to read them, as JSON in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bagel_mot.errors import DataError, EvaluationError
from bagel_mot.evaluation.base import Benchmark, Item, Score
from bagel_mot.evaluation.runner import Findings, ItemRunner, head_of, scores_name
from bagel_mot.files import read_json, write_text, writing


def summarize(runner: ItemRunner, items: Sequence[Item], of: int) -> dict[str, Any]:
    """The summary of what a run's records hold of some items.

    Args:
        runner: the run.
        items: the items that were run.
        of: the number of items in the benchmark.

    Returns: the head of the records; "title" and "scale" of the benchmark; "judge"; "items" (run), "of" (in the
        set), "scored"; "rows" {name: {"value",
        "count", "interval"}}; "headline"; "extra"; "failed" {item: sentence}; "unscored" [item]; "unparsable" and
        "truncated" counts; "seconds"; "settings" of each kind of item; "published".
    """
    found = runner.outcomes(items)
    return _summary(runner.benchmark, runner.results.head, runner.judge, found, items, of)


def scale_of(summary: Mapping[str, Any]) -> float:
    """The factor by which rows are shown; earlier versions did not write it."""
    return float(summary.get("scale", 1.0))


def published_by_row(summary: Mapping[str, Any]) -> dict[str, list[str]]:
    """All published numbers of each row, each with the model and the way in which it was run: which of them is to be
    compared depends on that.
    """
    found: dict[str, list[str]] = {}
    for one in summary["published"]:
        found.setdefault(one["row"], []).append(f"{scale_of(summary) * one['value']:g} ({one['model']})")
    return found


def summarize_scores(benchmark: Benchmark, scores: Mapping[str, Score], source: str) -> dict[str, Any]:
    """The summary of scores that the benchmark's own scorer has made of a model's results; see `summarize`.

    Args:
        benchmark: the benchmark.
        scores: the scores by item.
        source: the file that they are from, which is named in the place of the model.
    """
    items = [item for item in benchmark.items() if item.id in scores]
    head = {**head_of(benchmark), "model": source}
    judge = {"model": "the benchmark's own scorer"}
    return _summary(benchmark, head, judge, Findings(scores=dict(scores)), items, len(benchmark.items()))


def _summary(
    benchmark: Benchmark,
    head: Mapping[str, Any],
    judge: Mapping[str, Any],
    found: Findings,
    items: Sequence[Item],
    of: int,
) -> dict[str, Any]:
    summary = benchmark.aggregate(found.scores) if found.scores else None
    rows = summary.rows if summary else {}
    settings: dict[str, Any] = {}
    for item in items:
        settings.setdefault(item.kind, dict(item.settings))
    return {
        "title": benchmark.info.title,
        "scale": benchmark.info.scale,
        **head,
        "judge": dict(judge),
        "items": len(items),
        "of": of,
        "scored": len(found.scores),
        "rows": {
            name: {"value": row.value, "count": row.count, "interval": list(row.interval) if row.interval else None}
            for name, row in rows.items()
        },
        "headline": list(summary.headline) if summary else [],
        "extra": dict(summary.extra) if summary else {},
        "failed": found.failed,
        "unscored": found.unscored,
        "unparsable": found.unparsable,
        "truncated": sum(any(result.truncated) for result in found.results.values()),
        "seconds": round(sum(found.seconds.values()), 1),
        "settings": settings,
        "published": [vars(one) for one in benchmark.info.published],
    }


def write_summary(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Writes a summary into the folder of its run; each judge has its own. Returns the file."""
    path = folder / f"{scores_name(summary['judge']).replace('scores', 'summary')}.json"
    with writing(path, "give another folder"):
        write_text(path, json.dumps(summary, indent=2, ensure_ascii=False, default=list) + "\n")
    return path


def read_summaries(folder: Path) -> dict[Path, dict[str, Any]]:
    """The summaries below a folder, by file.

    Raises: EvaluationError if there are none; DataError if one cannot be read.
    """
    if not folder.is_dir():
        raise EvaluationError(f"{folder} is not a folder: give the --out of an evaluation.")
    found = {path: read_json(path, DataError) for path in sorted(folder.rglob("summary*.json"))}
    found = {path: summary for path, summary in found.items() if {"rows", "benchmark", "judge"} <= summary.keys()}
    if not found:
        raise EvaluationError(f"{folder} holds no summary of an evaluation: give its --out, once it has ended.")
    return found
