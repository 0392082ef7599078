"""`bagel eval mini --every-checkpoint`: the abilities of a training run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import count

from rich.progress import Progress, TaskID

from bagel_mot.cli.evaluation.folders import bars, owned
from bagel_mot.cli.evaluation.mini import summarize_mini
from bagel_mot.cli.evaluation.options import How
from bagel_mot.cli.options import new_table, tables, write_json
from bagel_mot.cli.weights import Weights, load
from bagel_mot.errors import SettingError
from bagel_mot.files import user_path


def run_curves(names: list[str], how: How, weights: Weights, json: str | None) -> None:
    """Scores every checkpoint of a training run."""
    from bagel_mot.checkpoint.official import fingerprint
    from bagel_mot.evaluation.benchmarks.mini import ITEMS, Mini, pick_rows
    from bagel_mot.evaluation.benchmarks.mini_report import BATCH, evaluate, side_of
    from bagel_mot.evaluation.curves import run_points, write_curves
    from bagel_mot.evaluation.respondents.local import LocalRespondent
    from bagel_mot.parallel.launch import Launch

    if names != ["mini"]:
        raise SettingError("--every-checkpoint belongs to mini: bagel eval mini --every-checkpoint RUN.")
    assert how.every_checkpoint is not None
    pick_rows(how.rows)
    run = user_path(how.every_checkpoint)
    out = user_path(how.out or run / "evaluation")
    items, seed = how.items or ITEMS, how.seed or 0
    points = run_points(run)
    reports = []
    for number, point in enumerate(points, 1):
        bagel = load(dataclasses.replace(weights, checkpoint=str(point.folder)))
        mini = Mini(rows=how.rows, count=items, seed=seed, side=side_of(bagel))
        facts = {
            "model": point.folder.name,
            "fingerprint": fingerprint(point.folder),
            "precision": bagel.checkpoint.precision.name,
        }
        with owned(out / point.folder.name, Launch()), bars(True) as progress:
            bar = progress.add_task(f"{point.folder.name} ({number} of {len(points)})", total=len(mini.rows))
            respondent, folder = LocalRespondent(bagel, facts), out / point.folder.name
            on_row = counting_rows(progress, bar)
            reports.append(evaluate(mini, respondent, batch=how.batch or BATCH, folder=folder, on_row=on_row))
            summarize_mini(mini, respondent, folder)
        bagel.close()
    content, written = write_curves(out, points, reports)
    if json != "-":
        table = new_table("tokens at which an ability reaches 85% of its last value", "ability", "last", "tokens")
        for name, ability in content["abilities"].items():
            reached = ability["reached"]
            table.add_row(name, f"{ability['shares'][-1]:.3f}", "–" if reached is None else f"{reached:,.0f}")
        tables().print(table)
        for path in written:
            print(path)
    write_json(json, content)


def counting_rows(progress: Progress, bar: TaskID) -> Callable[[object], None]:
    """A callback that moves a bar on by one."""
    done = count(1)
    return lambda so_far: progress.update(bar, completed=next(done))
