"""Rewards are the numbers of a benchmark's scores."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from bagel_mot.errors import SettingError
from bagel_mot.evaluation.base import BenchmarkOptions, Item, ItemResult
from bagel_mot.evaluation.benchmarks.wise import Wise
from bagel_mot.evaluation.judges.base import JudgeRequest, Judges
from bagel_mot.evaluation.reward import BenchmarkReward

DATA = Path(__file__).parents[1] / "golden-eval/wise/data"


class Always:
    """A judge with one reply."""

    def __init__(self, reply: str | None) -> None:
        self.reply = reply

    def complete(self, request: JudgeRequest) -> str | None:
        return self.reply


def rewarded(reply: str | None, **options: Any) -> float:
    benchmark = Wise(BenchmarkOptions(DATA, partial=True))
    item: Item = benchmark.items()[0]
    result = ItemResult(images=(DATA / "images" / item.outputs[0],))
    return BenchmarkReward(benchmark, Judges(chat=Always(reply)), **options)(item, result)


REPLY = "Consistency: 2, Realism: 1, Aesthetic Quality: 0"


def test_the_reward_is_the_score_unless_another_number_is_named() -> None:
    assert rewarded(REPLY) == pytest.approx((0.7 * 2 + 0.2 * 1) / 2)
    assert rewarded(REPLY, value="realism") == 1.0
    assert rewarded(REPLY, value="consistency", scale=lambda number: number / 2 - 1) == 0.0


def test_a_number_that_could_not_be_had_is_left_out_or_punished() -> None:
    assert math.isnan(rewarded(None))
    assert rewarded("fine", missing=0.0) == 0.0
    assert rewarded("Consistency: 2", value="consistency") == 2.0


def test_an_unknown_number_is_refused() -> None:
    with pytest.raises(SettingError, match="WISE have no value 'realsm': did you mean realism"):
        rewarded(REPLY, value="realsm")
