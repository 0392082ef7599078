"""Groups come as often as their weights say, by samples or by tokens."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from bagel_mot.data.mixing import BySamples, ByTokens, drawn_group


def test_the_first_group_whose_cumulative_share_exceeds_the_number() -> None:
    assert [drawn_group([1, 2, 1], number) for number in (0.0, 0.2499, 0.25, 0.7499, 0.75, 0.999)] == [0, 0, 1, 1, 2, 2]
    assert drawn_group([0.1] * 3 + [0.0], 1 - 1e-17) == 2
    assert drawn_group([0, 1, 0], 0.0) == 1


def test_samples_follow_the_weights() -> None:
    mixture = BySamples([3, 0, 1], "seed")
    found = Counter(mixture.draw() for _ in range(4000))
    assert found[0] == pytest.approx(3000, abs=120)
    assert found[1] == 0


def test_tokens_follow_the_weights_to_within_a_sample() -> None:
    rng, weights, tokens = random.Random(0), [3.0, 1.0, 0.0, 2.0], [0] * 4
    mixture = ByTokens(weights)
    for _ in range(500):
        group = mixture.draw()
        length = rng.randint(1, 10) * (100 if group == 0 else 7)  # very unlike lengths
        mixture.count(group, length)
        tokens[group] += length
    assert tokens[2] == 0
    for group in (0, 1, 3):
        assert abs(tokens[group] - sum(tokens) * weights[group] / 6) <= 1000


@pytest.mark.parametrize("make", [lambda: BySamples([1, 2, 3], "seed"), lambda: ByTokens([1.0, 2.0, 3.0])])
def test_a_mixture_goes_on_from_its_state(make: object) -> None:
    def step(mixture: BySamples | ByTokens) -> int:
        group = mixture.draw()
        mixture.count(group, 5 + group)
        return group

    first = make()  # type: ignore[operator]
    for _ in range(7):
        step(first)
    second = make()  # type: ignore[operator]
    second.load_state_dict(first.state_dict())
    assert [step(first) for _ in range(20)] == [step(second) for _ in range(20)]
