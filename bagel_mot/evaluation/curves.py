"""Emerging abilities: the share right of each ability of mini over the tokens of a training run, and its figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bagel_mot.errors import EvaluationError
from bagel_mot.evaluation.benchmarks.mini import JUDGE_ROWS
from bagel_mot.evaluation.curve_figure import LABELS, draw_curves
from bagel_mot.files import write_text, writing
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
    line before; steps after the last line, at which a run was stopped, count as those before it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path} cannot be read: the tokens of each step stand there ({error}).") from error
    found: dict[int, float] = {0: 0.0}
    before, tokens, longest = 0, 0.0, 1
    for line in lines:
        try:
            row = json.loads(line)
            step, tokens = int(row["step"]), row["tokens_per_second"] / row["steps_per_second"]
        except (ValueError, KeyError, TypeError, ZeroDivisionError):
            continue  # a line of another kind, or a torn one
        for one in range(before + 1, step + 1):
            found[one] = found[before] + tokens * (one - before)
        before, longest = max(before, step), max(longest, step - before)
    if before:
        found |= {before + more: found[before] + tokens * more for more in range(1, longest + 1)}
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


def curve_table(curves: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The headings and rows of a table: abilities after each checkpoint, and the tokens at which they are learnt."""
    abilities = curves["abilities"]
    rows = [
        [f"{tokens:,.0f}", str(step), *(f"{ability['shares'][at]:.3f}" for ability in abilities.values())]
        for at, (tokens, step) in enumerate(zip(curves["tokens"], curves["steps"], strict=True))
    ]
    found = (ability["reached"] for ability in abilities.values())
    rows.append([f"{REACHED:.0%} of the last at", "", *("–" if at is None else f"{at:,.0f}" for at in found)])
    return ["tokens", "step", *(LABELS.get(name, name) for name in abilities)], rows


def write_curves(
    out: Path, points: Sequence[TrainingPoint], reports: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], list[Path]]:
    """Writes curves.json, curves.svg and curves.png into a folder; returns the curves and the files."""
    curves = ability_curves(points, reports)
    data = out / "curves.json"
    with writing(data, "give another --out"):
        write_text(data, json.dumps(curves, indent=2) + "\n")
    return curves, [data, *draw_curves(curves, out, REACHED)]
