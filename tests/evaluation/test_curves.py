"""Abilities over training tokens: tokens of each checkpoint, and where an ability reaches 85% of its last value."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bagel_mot.errors import EvaluationError
from bagel_mot.evaluation.curves import TrainingPoint, ability_curves, draw_curves, reached, run_points, write_curves


def test_the_tokens_of_a_checkpoint_come_from_the_metrics(tmp_path: Path) -> None:
    for step in (2, 6):
        (tmp_path / f"step-{step:08d}" / "training_state").mkdir(parents=True)
        (tmp_path / f"step-{step:08d}" / "training_state.json").write_text("{}")
    lines: list[dict[str, float]] = [
        {"step": 4, "tokens_per_second": 300.0, "steps_per_second": 3.0},
        {"step": 4, "validation/loss": 1.0},
        {"step": 8, "tokens_per_second": 50.0, "steps_per_second": 0.25},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + '\n{"step": 9, "tok')
    assert [(point.step, point.tokens) for point in run_points(tmp_path)] == [(2, 200.0), (6, 800.0)]
    (tmp_path / "metrics.jsonl").write_text(json.dumps(lines[0]))
    with pytest.raises(EvaluationError, match="says nothing of step 6"):
        run_points(tmp_path)
    with pytest.raises(EvaluationError, match="holds no checkpoints"):
        run_points(tmp_path / "nothing")


def test_an_ability_is_reached_on_the_line_between_two_checkpoints() -> None:
    assert reached([10, 20, 30], [0.0, 0.5, 1.0]) == pytest.approx(27)
    assert reached([10, 20, 30], [0.9, 0.5, 1.0]) == 10
    assert reached([10, 20, 30], [0.9, 0.5, 0.0]) is None


def test_curves_are_written_and_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    points = [TrainingPoint(tmp_path, step, 100.0 * step) for step in (1, 2)]
    reports = [
        {
            "items": 4,
            "seed": 0,
            "rows": {"ask/count": {"share": share}, "judge/fresh pictures": {"share": 1.0}},
            "summary": {"ask": share, "gain of thinking": -0.1, "mean of all rows": share},
        }
        for share in (0.25, 0.5)
    ]
    curves, files = write_curves(tmp_path, points, reports)
    assert curves == ability_curves(points, reports)
    assert set(curves["abilities"]) == {"ask", "mean of all rows"}
    assert set(curves["rows"]) == {"ask/count"}
    assert curves["abilities"]["ask"] == {"shares": [0.25, 0.5], "reached": pytest.approx(170)}
    assert [path.name for path in files] == ["curves.json", "curves.svg", "curves.png"]
    assert files[2].read_bytes().startswith(b"\x89PNG")
    drawn = files[1].read_text(encoding="utf-8")
    assert "<svg" in drawn
    draw_curves(curves, tmp_path)
    assert "<dc:date>" not in files[1].read_text(encoding="utf-8")
