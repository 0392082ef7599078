"""Intervals of shares and means, and tests of two runs on the same items."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z = 1.959964
"""The normal quantile of a two-sided 95% interval."""
_RESAMPLES = 10_000
_SEED = 20_250


def wilson(right: int, total: int, z: float = Z) -> tuple[float, float]:
    """Wilson score interval of a binomial share (Wilson 1927)."""
    if total == 0:
        return 0.0, 1.0
    share = right / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95% bootstrap interval of a mean (percentiles of 10 000 means of resampled items, from a fixed seed).

    None for fewer than two values, from which nothing can be said.
    """
    if len(values) < 2:
        return None
    return bootstrap([values])


def bootstrap(groups: Sequence[Sequence[float]], weights: Sequence[float] | None = None) -> tuple[float, float] | None:
    """The 95% bootstrap interval of a mean of group means, the items of each group resampled on their own.

    Args:
        groups: the values of each group.
        weights: the weight of each group's mean in the sum; by default the same for all, with the sum 1.

    Returns: low and high; None where a group is empty.
    """
    if not groups or not all(len(group) for group in groups):
        return None
    draws = np.random.default_rng(_SEED)
    means = np.zeros(_RESAMPLES)
    for group, weight in zip(groups, weights or [1 / len(groups)] * len(groups), strict=True):
        values = np.asarray(group, dtype=np.float64)
        # A mean of resampled items is a sum over how often each value is drawn: few values make small tables.
        kinds, counts = np.unique(values, return_counts=True)
        drawn = draws.multinomial(len(values), counts / counts.sum(), size=_RESAMPLES)
        means += weight * (drawn @ kinds) / len(values)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value of McNemar's test: items that only the first, or only the second run has right."""
    unequal = only_first + only_second
    if unequal == 0:
        return 1.0
    tail = sum(math.comb(unequal, k) for k in range(min(only_first, only_second) + 1))
    return float(min(1.0, 2 * tail / 2**unequal))


def sign_flip(differences: Sequence[float]) -> float:
    """The two-sided p-value of a paired permutation test: the signs of the differences are flipped at random.

    All 2ⁿ ways are tried for up to 14 differences that are not 0; for more, 10 000 random ones from a fixed seed.
    """
    values = np.asarray([value for value in differences if value != 0], dtype=np.float64)
    if not len(values):
        return 1.0
    seen = abs(values.sum()) * (1 - 1e-12)
    if len(values) <= 14:
        flips = (np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1
        return float((np.abs((1 - 2 * flips) @ values) >= seen).mean())
    draws = np.random.default_rng(_SEED)
    more = sum(abs(float((1 - 2 * draws.integers(0, 2, len(values))) @ values)) >= seen for _ in range(_RESAMPLES))
    return (more + 1) / (_RESAMPLES + 1)
