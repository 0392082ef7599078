"""Runs the rows of `bagel eval mini` one after the other, and makes the report whose file the command writes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bagel_mot.errors import EvaluationError
from bagel_mot.evaluation.base import Item
from bagel_mot.evaluation.benchmarks.mini import Mini, summary
from bagel_mot.evaluation.respondents.base import Respondent
from bagel_mot.evaluation.runner import ItemRunner
from bagel_mot.evaluation.statistics import wilson
from bagel_mot.evaluation.team import Team
from bagel_mot.parallel.launch import Launch
from bagel_mot.task import Task
from bagel_mot.worlds.mini.scene import WORLD

if TYPE_CHECKING:
    from bagel_mot.inference.api import Bagel

BATCH = 25
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class RowScore:
    """One line of the report."""

    name: str
    right: int
    total: int
    seconds: float

    @property
    def share(self) -> float:
        """The part of the items that is right, from 0 to 1; 0 without items."""
        return self.right / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% Wilson score interval of the share."""
        return wilson(self.right, self.total)


def side_of(bagel: Bagel) -> int:
    """The width and height in pixels that a model of the image world draws."""
    size = bagel.defaults.of(Task.GENERATE).get("size")
    return int(size[0]) if size else WORLD


def evaluate(
    mini: Mini,
    respondent: Respondent,
    *,
    batch: int = BATCH,
    limit: int | None = None,
    folder: Path | None = None,
    launch: Launch | None = None,
    facts: Mapping[str, Any] | None = None,
    progress: Report | None = None,
    known: Mapping[str, RowScore] | None = None,
    on_row: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Runs the evaluation.

    Args:
        mini: the items.
        respondent: the model that answers them.
        batch: requests that run together.
        limit: only the first items of each row; None takes all.
        folder: the folder of records and images, with which a run goes on where it was; None keeps nothing.
        launch: the processes of the run, which need a folder if they are several.
        facts: further entries of the head of the records.
        progress: called with a row's name, items done and items in all.
        known: rows that need not be run again, by name.
        on_row: called with the report so far after each row that was run.

    Returns: {"items", "seed", "rows": {name: {"right", "total", "share", "interval", "seconds"}}, "summary": {…}}.

    Raises: EvaluationError if an item cannot be answered: every one counts.
    """
    known = known or {}
    done: list[RowScore] = []
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in mini.rows:
            if name in known:
                done.append(known[name])
                continue
            team = Team(launch, f"mini/{name}")
            runner = ItemRunner(mini, respondent, folder, batch=batch, team=team, facts=facts)
            done.append(run_row(runner, name, mini.items_of(name)[:limit], progress))
            if on_row is not None and team.rank == 0:
                on_row(_report(done, mini, limit))
    return _report(done, mini, limit)


def run_row(runner: ItemRunner, name: str, items: Sequence[Item], progress: Report | None = None) -> RowScore:
    """Runs the items of one row."""
    runner.run(items, None if progress is None else lambda done, total: progress(name, done, total))
    runner.team.wait()
    runner.read_again()
    found = runner.outcomes(items)
    if found.failed:
        id, sentence = next(iter(found.failed.items()))
        raise EvaluationError(f"item {id!r} could not be answered: {sentence}")
    right = sum(score.values["right"] or 0.0 for score in found.scores.values())
    return RowScore(name, round(right), len(found.scores), sum(found.seconds.values()))


def _report(done: Sequence[RowScore], mini: Mini, limit: int | None) -> dict[str, Any]:
    return {
        "items": mini.count if limit is None else min(limit, mini.count),
        "seed": mini.seed,
        "rows": {
            row.name: {
                "right": row.right,
                "total": row.total,
                "share": round(row.share, 4),
                "interval": [round(bound, 4) for bound in row.interval],
                "seconds": round(row.seconds, 1),
            }
            for row in done
        },
        "summary": summary({row.name: row.share for row in done}),
    }


def rows_of(report: Mapping[str, Any]) -> dict[str, RowScore]:
    """The rows of a report, for `known`."""
    return {
        name: RowScore(name, row["right"], row["total"], row["seconds"])
        for name, row in report["rows"].items()
        if row["total"] == report["items"]
    }
