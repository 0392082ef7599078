"""`bagel eval mini --every-checkpoint`: the abilities of a training run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import Progress

from bagel_mot.cli.evaluation.folders import bars, owned
from bagel_mot.cli.evaluation.mini import summarize_mini
from bagel_mot.cli.evaluation.options import How
from bagel_mot.cli.options import new_table, notes, tables, write_json
from bagel_mot.cli.weights import Weights, load
from bagel_mot.errors import SettingError
from bagel_mot.files import user_path

if TYPE_CHECKING:
    from bagel_mot.evaluation.curves import TrainingPoint


def run_curves(names: list[str], how: How, weights: Weights, json: str | None) -> None:
    """Scores every checkpoint of a training run; the figure is drawn anew after each."""
    from bagel_mot.evaluation.benchmarks.mini import ITEMS, JUDGE_ROWS, pick_rows
    from bagel_mot.evaluation.curve_figure import check_figures
    from bagel_mot.evaluation.curves import curve_table, run_points, write_curves

    if names != ["mini"]:
        raise SettingError("--every-checkpoint belongs to mini: bagel eval mini --every-checkpoint RUN.")
    assert how.every_checkpoint is not None
    rows = [row for row in pick_rows(how.rows) if row not in JUDGE_ROWS]
    if not rows:
        raise SettingError("the judge's rows say nothing of a model: choose other --rows for --every-checkpoint.")
    run = user_path(how.every_checkpoint)
    out = user_path(how.out or run / "evaluation")
    points = run_points(run)
    check_figures()
    scored: list[TrainingPoint] = []
    reports: list[dict[str, Any]] = []
    written: list[Path] = []
    content: dict[str, Any] = {}
    with bars(True, over=3600) as progress:
        each = min(how.items or ITEMS, how.limit or ITEMS)
        shown = _Bars(progress, len(points) * len(rows) * each)
        seconds, answered = 0.0, 0
        for number, point in enumerate(points, 1):
            if not point.folder.is_dir():
                progress.console.print(f"{point.folder.name} is gone meanwhile: it is left out.", style="yellow")
                continue
            started = time.monotonic()
            report, fresh = _scored(point.folder, rows, how, weights, out, shown.of(point.folder))
            scored.append(point)
            reports.append(report)
            if fresh:
                seconds, answered = seconds + time.monotonic() - started, answered + fresh
            content, written = write_curves(out, scored, reports)
            mean = report["summary"]["mean of all rows"]
            left = seconds / max(answered, 1) * (len(points) - number) * len(rows) * each / 60
            ahead = f"; about {left:.0f} minutes for the others" if left else ""
            notes().print(
                f"{point.folder.name}, {point.tokens:,.0f} tokens ({number} of {len(points)}): {mean:.3f} right{ahead}",
                soft_wrap=True,
            )
    if json != "-" and content:
        headings, lines = curve_table(content)
        table = new_table(f"shares right of {content['items']} items a row", *headings)
        for line in lines:
            table.add_row(*line, end_section=line is lines[-2])
        tables().print(table)
        for path in written:
            print(path)
    write_json(json, content)


def _scored(
    checkpoint: Path, rows: list[str], how: How, weights: Weights, out: Path, tell: Callable[[str, int, int], None]
) -> tuple[dict[str, Any], int]:
    """The report of mini for a checkpoint, and how many items had not been answered before."""
    from bagel_mot.checkpoint.official import fingerprint
    from bagel_mot.evaluation.benchmarks.mini import ITEMS, Mini
    from bagel_mot.evaluation.benchmarks.mini_report import BATCH, evaluate, side_of
    from bagel_mot.evaluation.respondents.local import LocalRespondent
    from bagel_mot.parallel.launch import Launch

    bagel = load(dataclasses.replace(weights, checkpoint=str(checkpoint)))
    facts = {
        "model": checkpoint.name,
        "fingerprint": fingerprint(checkpoint),
        "precision": bagel.checkpoint.precision.name,
    }
    respondent, folder = LocalRespondent(bagel, facts), out / checkpoint.name
    mini = Mini(rows=rows, count=how.items or ITEMS, seed=how.seed or 0, side=side_of(bagel))
    with owned(folder, Launch()):
        before = _answered(folder)
        report = evaluate(mini, respondent, batch=how.batch or BATCH, limit=how.limit, folder=folder, progress=tell)
        summarize_mini(mini, respondent, folder, how.limit)
        fresh = _answered(folder) - before
    bagel.close()
    return report, fresh


def _answered(folder: Path) -> int:
    """The number of items whose results are in a run's folder."""
    from bagel_mot.evaluation.records import read_records, record_files
    from bagel_mot.evaluation.runner import RESULTS

    return len({id for path in record_files(folder, RESULTS) for id in read_records(path)[1]})


class _Bars:
    """Two bars: that of the row at hand, and that of all items which were not answered before.

    Args:
        progress: the display that shows them.
        total: the items of all checkpoints.
    """

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0
        self._all = progress.add_task("all checkpoints", total=total)
        self._row = progress.add_task("", total=None)
        self._seen: dict[tuple[Path, str], int] = {}

    def of(self, checkpoint: Path) -> Callable[[str, int, int], None]:
        """A callback of the rows of a checkpoint, whose first call in each row tells of the items that are known."""

        def tell(name: str, done: int, total: int) -> None:
            seen = self._seen.get((checkpoint, name))
            if seen is None:
                self._total -= done
            else:
                self._done += done - seen
            self._seen[checkpoint, name] = done
            self._progress.update(self._row, description=name, completed=done, total=total)
            self._progress.update(self._all, completed=self._done, total=self._total)

        return tell
