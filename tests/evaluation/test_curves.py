"""Abilities over training tokens: tokens of each checkpoint, and where an ability reaches 85% of its last value."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from bagel_mot.errors import EvaluationError
from bagel_mot.evaluation.benchmarks.mini import GROUPS
from bagel_mot.evaluation.curve_figure import LABELS, draw_curves, is_uneven, spread
from bagel_mot.evaluation.curves import (
    REACHED,
    TrainingPoint,
    ability_curves,
    curve_table,
    reached,
    run_points,
    write_curves,
)


def test_the_tokens_of_a_checkpoint_come_from_the_metrics(tmp_path: Path) -> None:
    for step in (2, 6, 9):
        (tmp_path / f"step-{step:08d}" / "training_state").mkdir(parents=True)
        (tmp_path / f"step-{step:08d}" / "training_state.json").write_text("{}")
    lines: list[dict[str, float]] = [
        {"step": 4, "tokens_per_second": 300.0, "steps_per_second": 3.0},
        {"step": 4, "validation/loss": 1.0},
        {"step": 8, "tokens_per_second": 50.0, "steps_per_second": 0.25},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + '\n{"step": 9, "tok')
    assert [(point.step, point.tokens) for point in run_points(tmp_path)] == [
        (2, 200.0), (6, 800.0), (9, 1400.0),
    ]  # fmt: skip

    (tmp_path / "metrics.jsonl").write_text(json.dumps(lines[0]))  # the line after step 8 is not there
    with pytest.raises(EvaluationError, match="says nothing of step 9"):
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
    headings, rows = curve_table(curves)
    assert headings == ["tokens", "step", "questions", "mean of all rows"]
    assert rows == [
        ["100", "1", "0.250", "0.250"], ["200", "2", "0.500", "0.500"], ["85% of the last at", "", "170", "170"]
    ]  # fmt: skip
    assert [path.name for path in files] == ["curves.json", "curves.svg", "curves.png"]
    assert files[2].read_bytes().startswith(b"\x89PNG")
    drawn = files[1].read_bytes()
    assert b"<svg" in drawn
    draw_curves(curves, tmp_path, REACHED)
    assert files[1].read_bytes() == drawn  # equal curves make equal files
    image = Image.open(files[2])
    assert image.getpixel((0, 0))[3] == 0  # the page's own background shows through


def test_a_figure_is_drawn_of_whatever_was_scored(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for names, values in ((GROUPS, (0.0, 0.0, 0.0)), ((), (0.5,)), (["draw", "chains"], (0.1, 0.9, 0.2, 1.0))):
        means = {**dict.fromkeys(names), "mean of all rows": None}
        points = [TrainingPoint(tmp_path, step, 10.0**step) for step in range(len(values))]
        reports = [{"items": 1, "seed": 0, "rows": {}, "summary": dict.fromkeys(means, value)} for value in values]
        _, files = write_curves(tmp_path, points, reports)
        assert Image.open(files[2]).width > 600


def test_labels_keep_their_order_and_their_distance() -> None:
    assert spread([0.5, 0.1], 0.1) == [0.5, 0.1]
    assert spread([0.0, 0.0, 0.0], 0.1) == pytest.approx([-0.1, 0.0, 0.1])
    assert spread([0.02, 0.0, 0.9], 0.1, 0.0) == pytest.approx([0.1, 0.0, 0.9])
    random.seed(1)
    for _ in range(50):
        places = [random.random() for _ in range(6)]
        found = spread(places, 0.07)
        order = sorted(range(6), key=lambda i: places[i])
        assert all(found[b] - found[a] >= 0.07 - 1e-9 for a, b in pairwise(order))
        assert sum(found) == pytest.approx(sum(places))


def test_the_axis_is_logarithmic_where_the_first_points_are_dense() -> None:
    assert not is_uneven([250.0 * n for n in range(1, 17)])
    assert is_uneven([10.0 * 2**n for n in range(8)])
    assert not is_uneven([0.0, 1.0, 2.0, 100.0])


def test_every_ability_has_a_name_and_a_panel() -> None:
    assert set(LABELS) == {*GROUPS, "mean of all rows"}
