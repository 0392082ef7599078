"""Emerging abilities: the share right of each ability of mini over the tokens of a training run, and its figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bagel_mot.errors import EvaluationError
from bagel_mot.evaluation.benchmarks.mini import JUDGE_ROWS
from bagel_mot.files import write_atomically, write_text, writing
from bagel_mot.installation import install_command
from bagel_mot.training.checkpoints import checkpoint_folders
from bagel_mot.training.metrics import METRICS_FILE

REACHED = 0.85
"""The part of its last value at which an ability counts as learnt."""


@dataclass(frozen=True)
class TrainingPoint:
    """One checkpoint of a run.

    Attributes:
        folder: the checkpoint's folder.
        step: the number of the training step after which it was written.
        tokens: the tokens that the run had trained on.
    """

    folder: Path
    step: int
    tokens: float


def run_points(run: Path) -> list[TrainingPoint]:
    """The checkpoints of a training run with the tokens that they were trained on, oldest first.

    Raises: EvaluationError if the folder is no run's, or its metrics do not reach to a checkpoint.
    """
    folders = checkpoint_folders(run) if run.is_dir() else []
    if not folders:
        raise EvaluationError(f"{run} holds no checkpoints (step-…): give the folder of a training run.")
    tokens = _tokens_by_step(run / METRICS_FILE)
    points = []
    for folder in folders:
        step = int(folder.name.partition("-")[2])
        if step not in tokens:
            raise EvaluationError(
                f"{run / METRICS_FILE} says nothing of step {step}, after which {folder.name} was written."
            )
        points.append(TrainingPoint(folder, step, tokens[step]))
    return points


def _tokens_by_step(path: Path) -> dict[int, float]:
    """The tokens that a run had trained on after each step. A line of the metrics gives the mean of the steps since the
    line before.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path} cannot be read: the tokens of each step stand there ({error}).") from error
    found: dict[int, float] = {0: 0.0}
    for line in lines:
        try:
            row = json.loads(line)
            step, tokens = int(row["step"]), row["tokens_per_second"] / row["steps_per_second"]
        except (ValueError, KeyError, TypeError, ZeroDivisionError):
            continue  # a line of another kind, or a torn one
        before = max(found)
        for one in range(before + 1, step + 1):
            found[one] = found[before] + tokens * (one - before)
    return found


def ability_curves(points: Sequence[TrainingPoint], reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The shares of each ability at each checkpoint, and where they reach 85% of their last value.

    Args:
        points: the checkpoints.
        reports: the report of `bagel eval mini` for each.

    Returns: {"steps", "tokens", "abilities": {name: {"shares", "reached"}}, "rows": the same of each row}. "reached" is
        the number of tokens, on a line between the two checkpoints; None for an ability that is 0 at the end.
    """
    tokens = [point.tokens for point in points]
    names = [name for name in reports[0]["summary"] if name != "gain of thinking"]
    rows = [name for name in reports[0]["rows"] if name not in JUDGE_ROWS]

    def curve(shares: list[float]) -> dict[str, Any]:
        return {"shares": shares, "reached": reached(tokens, shares)}

    return {
        "items": reports[0]["items"],
        "seed": reports[0]["seed"],
        "steps": [point.step for point in points],
        "tokens": tokens,
        "abilities": {name: curve([report["summary"][name] for report in reports]) for name in names},
        "rows": {name: curve([report["rows"][name]["share"] for report in reports]) for name in rows},
    }


def reached(tokens: Sequence[float], shares: Sequence[float]) -> float | None:
    """The tokens at which a curve first reaches 85% of its last value; None if that is 0."""
    goal = REACHED * shares[-1]
    if goal <= 0:
        return None
    first = next(i for i, share in enumerate(shares) if share >= goal)
    if first == 0:
        return tokens[0]
    low, high = shares[first - 1], shares[first]
    return tokens[first - 1] + (tokens[first] - tokens[first - 1]) * (goal - low) / (high - low)


def write_curves(
    out: Path, points: Sequence[TrainingPoint], reports: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], list[Path]]:
    """Writes curves.json, curves.svg and curves.png into a folder; returns the curves and the files."""
    curves = ability_curves(points, reports)
    data = out / "curves.json"
    with writing(data, "give another --out"):
        write_text(data, json.dumps(curves, indent=2) + "\n")
    return curves, [data, *draw_curves(curves, out)]


def draw_curves(curves: Mapping[str, Any], out: Path) -> list[Path]:
    """Draws the curves of the abilities into curves.svg and curves.png; returns both.

    Raises: EvaluationError if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EvaluationError(f"figures need matplotlib: {install_command('eval')}") from error
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, ability) in enumerate(curves["abilities"].items()):
        colour = f"C{number % 10}"
        style = "--" if name == "mean of all rows" else "-"
        axes.plot(curves["tokens"], ability["shares"], style, color=colour, marker="o", markersize=3, label=name)
        if ability["reached"] is not None:
            axes.plot([ability["reached"]], [REACHED * ability["shares"][-1]], "D", color=colour, markersize=6)
    axes.set_xlabel("training tokens")
    axes.set_ylabel("share right")
    axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.3)
    axes.set_title(f"mini, {curves['items']} items a row; ◆ 85% of the last value")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    paths = [out / "curves.svg", out / "curves.png"]
    for path in paths:

        def save(file: Path) -> None:
            # Without the date the same curves make the same file.
            figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else {})

        with writing(path, "give another --out"):
            write_atomically(path, save)
    return paths
