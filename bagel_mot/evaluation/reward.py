"""The score of a benchmark's item as a reward, for reinforcement learning on the same rules that evaluation has."""

from __future__ import annotations

import math
from collections.abc import Callable

from bagel_mot.errors import SettingError, did_you_mean
from bagel_mot.evaluation.base import Benchmark, Item, ItemResult
from bagel_mot.evaluation.judges.base import Judges


class BenchmarkReward:
    """A reward that is one number of a benchmark's score. It keeps nothing: equal results have equal rewards, as far
    as the judge says the same.

    Args:
        benchmark: the benchmark whose rules decide.
        judges: the judges, detectors and classifiers that it needs.
        value: the number of the score that is the reward; None takes the first, which is the one that the benchmark's
            own summary is made of.
        missing: the reward where that number could not be had, such as after a judge's failure. NaN tells a trainer
            to leave the result out; 0 punishes it.
        scale: makes the reward of the number; None takes it as it is.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        judges: Judges | None = None,
        *,
        value: str | None = None,
        missing: float = math.nan,
        scale: Callable[[float], float] | None = None,
    ) -> None:
        self.benchmark = benchmark
        self.judges = judges or Judges()
        self.value = value
        self.missing = missing
        self.scale = scale

    def __call__(self, item: Item, result: ItemResult) -> float:
        """The reward of one result.

        Raises: SettingError if the score has no number of the name that was asked for; EvaluationError if a judge
            refuses for good.
        """
        values = self.benchmark.score(item, result, self.judges).values
        name = self.value if self.value is not None else next(iter(values), "")
        if name not in values:
            title = self.benchmark.info.title
            raise SettingError(f"the scores of {title} have no value {name!r}: {did_you_mean(name, values)}")
        number = values[name]
        if number is None:
            return self.missing
        return float(number) if self.scale is None else self.scale(float(number))
