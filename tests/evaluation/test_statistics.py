"""Intervals and tests against closed forms and brute force."""

from __future__ import annotations

from itertools import product

import pytest

from bagel_mot.evaluation.statistics import bootstrap, mcnemar, mean_interval, sign_flip, wilson


def test_wilson_interval() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(160, 200)
    assert (round(low, 4), round(high, 4)) == (0.7391, 0.8495)  # from the closed form, by hand
    assert wilson(200, 200)[1] == pytest.approx(1.0)


def test_a_mean_has_an_interval_around_it_that_shrinks_with_the_items() -> None:
    assert mean_interval([1.0]) is None
    few, many = mean_interval([0.0, 1.0] * 10), mean_interval([0.0, 1.0] * 1000)
    assert few is not None
    assert many is not None
    assert few == mean_interval([0.0, 1.0] * 10)  # the same for the same values
    # The normal approximation is close for 2000 values: 1.96 · 0.5 / √2000.
    assert many == pytest.approx((0.5 - 0.0219, 0.5 + 0.0219), abs=0.0015)
    assert few[1] - few[0] > 5 * (many[1] - many[0])


def test_means_of_groups_are_resampled_group_by_group() -> None:
    assert bootstrap([[0.0] * 9, [1.0] * 3]) == (0.5, 0.5)
    assert bootstrap([[0.0], []]) is None


def test_mcnemar_is_the_binomial_test_of_the_unequal_items() -> None:
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1.0
    assert mcnemar(0, 5) == pytest.approx(2 / 2**5)
    assert mcnemar(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 2**10)


def test_few_differences_are_flipped_in_all_ways() -> None:
    values = [0.5, -0.25, 1.0, 0.75]
    sums = [abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in product((1, -1), repeat=4)]
    assert sign_flip([*values, 0.0]) == pytest.approx(sum(total >= 2.0 for total in sums) / 16)
    assert sign_flip([0.0, 0.0]) == 1.0
    assert sign_flip([1.0] * 40) < 0.001 < sign_flip([1.0, -1.0] * 20)
