"""mini's evaluation is to the item what it was before there were other benchmarks: `mini_items.json` holds what its
version of then asked of the model, for the first items of each row, and what it found right of mini's results."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bagel_mot.evaluation.benchmarks.mini import JUDGE_ROWS, ROWS, Mini
from bagel_mot.evaluation.benchmarks.mini_report import evaluate
from bagel_mot.evaluation.respondents.local import LocalRespondent
from bagel_mot.evaluation.runner import ItemRunner
from bagel_mot.inference.api import Bagel
from tests.evaluation.benchmarks.asked import Asked

COUNT = 4


@cache
def recorded() -> dict[str, dict[str, str]]:
    return json.loads((Path(__file__).parent / "mini_items.json").read_text(encoding="utf-8"))


def test_every_row_is_recorded() -> None:
    assert set(recorded()["right"]) == set(ROWS)
    assert set(recorded()["requests"]) == set(ROWS) - set(JUDGE_ROWS)


@pytest.mark.parametrize("row", sorted(set(ROWS) - set(JUDGE_ROWS)))
def test_every_item_asks_what_it_asked(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Any = Asked()
    monkeypatch.setattr("bagel_mot.evaluation.respondents.local.draw_together", asked.draw_together)
    evaluate(Mini(rows=[row], count=COUNT), LocalRespondent(asked, {}))
    assert asked.hashes == recorded()["requests"][row].split()


@pytest.mark.slow
def test_every_item_is_right_where_it_was(tmp_path: Path) -> None:
    mini = Mini(count=COUNT)
    with Bagel.from_pretrained("mini", threads=1) as bagel:
        runner = ItemRunner(mini, LocalRespondent(bagel, {}), tmp_path, batch=25)
        runner.run(mini.items())
    scores = runner.outcomes(mini.items()).scores
    found = {
        row: "".join(str(round(scores[item.id].values["right"] or 0.0)) for item in mini.items_of(row)) for row in ROWS
    }
    assert found == {row: right[:COUNT] for row, right in recorded()["right"].items()}
