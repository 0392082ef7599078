"""`bagel eval mini`: the rows of the image world, one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import TaskID

from bagel_mot.cli.evaluation.folders import bars, owned
from bagel_mot.cli.evaluation.options import How
from bagel_mot.cli.evaluation.tables import print_scores
from bagel_mot.cli.options import write_json
from bagel_mot.errors import DataError
from bagel_mot.files import read_json, user_path

if TYPE_CHECKING:
    from bagel_mot.evaluation.benchmarks.mini import Mini
    from bagel_mot.evaluation.respondents.base import Respondent
    from bagel_mot.parallel.launch import Launch


def run_mini(how: How, respondent: Respondent, folder: Path | None, json: str | None, launch: Launch) -> dict[str, Any]:
    from bagel_mot.evaluation.benchmarks.mini import ITEMS, Mini, pick_rows
    from bagel_mot.evaluation.benchmarks.mini_report import BATCH, side_of
    from bagel_mot.evaluation.benchmarks.mini_report import evaluate as run

    count, seed = how.items or ITEMS, how.seed or 0
    bagel = getattr(respondent, "bagel", None)
    head = {key: value for key, value in respondent.facts.items() if key != "model" or bagel is None}
    known = _known_rows(json, {**head, "items": min(count, how.limit or count), "seed": seed})
    chosen = pick_rows(how.rows)
    options: dict[str, Any] = {} if bagel is None else {"side": side_of(bagel)}
    names = [name for name in pick_rows(None) if name in chosen or name in known]
    mini = Mini(rows=names, count=count, seed=seed, **options)
    with bars(launch.rank == 0) as progress:
        shown: dict[str, TaskID] = {}

        def tell(row: str, done: int, total: int) -> None:
            if row not in shown:
                shown[row] = progress.add_task(row, total=total)
            progress.update(shown[row], completed=done)

        def go(folder: Path | None) -> dict[str, Any]:
            return run(
                mini,
                respondent,
                batch=how.batch or BATCH,
                limit=how.limit,
                folder=folder,
                launch=launch,
                progress=tell,
                known=known,
                on_row=lambda so_far: write_json(json, {**head, **so_far}) if json != "-" else None,
            )

        if folder is None:
            report = go(None)
        else:
            place = folder / "mini"
            with owned(place, launch):
                report = go(place)
                if launch.rank == 0:
                    summarize_mini(mini, respondent, place, how.limit)
    report = {**head, **report}
    if json != "-" and launch.rank == 0:
        print_scores(report)
    return report


def summarize_mini(mini: Mini, respondent: Respondent, folder: Path, limit: int | None = None) -> None:
    """Writes the summary of a run of mini that is kept in a folder, for its report.

    Args:
        mini: the rows.
        respondent: the model that answered.
        folder: the folder of the run.
        limit: only the first items of each row were run; None: all.
    """
    from bagel_mot.evaluation.run_summary import summarize, write_summary
    from bagel_mot.evaluation.runner import ItemRunner

    items = [item for row in mini.rows for item in mini.items_of(row)[:limit]]
    runner = ItemRunner(mini, respondent, folder)
    write_summary(folder, summarize(runner, items, len(mini.rows) * mini.count))


def _known_rows(json: str | None, head: dict[str, Any]) -> dict[str, Any]:
    """The rows of an earlier, interrupted evaluation with the same settings, read from the file of --json."""
    from bagel_mot.evaluation.benchmarks.mini_report import rows_of

    if json is None or json == "-" or not user_path(json).is_file():
        return {}
    try:
        report = read_json(user_path(json), DataError)
        same = all(report[key] == value for key, value in head.items())
        return rows_of(report) if same else {}
    except (DataError, KeyError, TypeError):
        return {}  # not a report, so it is overwritten
