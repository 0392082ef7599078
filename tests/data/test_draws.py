"""Random decisions: the listed outcomes are exact, and training draws the same ones."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from fractions import Fraction

import pytest

from bagel_mot.data.draws import Draws, RandomDraws, all_outcomes


def walk(draws: Draws) -> tuple[object, ...]:
    start = draws.below(3)
    if start == 2:
        return (start, draws.choice("ab"), draws.chance(Fraction(1, 4)))
    return (start, draws.between(5, 5))


def test_every_outcome_has_its_exact_probability() -> None:
    assert all_outcomes(walk) == [
        (Fraction(1, 3), (0, 5)),
        (Fraction(1, 3), (1, 5)),
        (Fraction(1, 8), (2, "a", False)),
        (Fraction(1, 24), (2, "a", True)),
        (Fraction(1, 8), (2, "b", False)),
        (Fraction(1, 24), (2, "b", True)),
    ]


def test_a_function_without_draws_has_one_outcome() -> None:
    assert all_outcomes(lambda draws: draws.chance(0.0)) == [(1, False)]


@pytest.mark.parametrize(("n", "size"), [(1, 1), (5, 0), (5, 2), (6, 6), (7, 3)])
def test_subsets_are_all_there_and_in_order(n: int, size: int) -> None:
    outcomes = all_outcomes(lambda draws: draws.subset(n, size))
    assert [result for _, result in outcomes] == [list(c) for c in itertools.combinations(range(n), size)]
    assert len({probability for probability, _ in outcomes}) == 1


def test_random_draws_follow_the_listed_probabilities() -> None:
    rng, count = random.Random(0), 20_000
    found = Counter(walk(RandomDraws(rng)) for _ in range(count))
    for probability, result in all_outcomes(walk):
        spread = (probability * (1 - probability) / count) ** 0.5
        assert abs(found.pop(result) / count - probability) < 5 * spread
    assert not found
