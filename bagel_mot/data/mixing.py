"""Mixing groups of data: which group the next sample is drawn from."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import Any


def drawn_group(weights: Sequence[float], number: float) -> int:
    """The group that a uniform number in [0, 1) draws: the first whose cumulative share exceeds it."""
    total = sum(weights)
    for group, share in enumerate(accumulate(weights)):
        if share / total > number:
            return group
    return max(group for group, weight in enumerate(weights) if weight)  # shares that do not quite add up to 1


class Mixture(ABC):
    """Decides which group comes next. Its state is small, plain JSON."""

    @abstractmethod
    def draw(self) -> int:
        """The number of the group of the next sample."""

    def count(self, group: int, tokens: int) -> None:  # noqa: B027
        """Takes note of a sample that came from a group."""

    @abstractmethod
    def state_dict(self) -> Any: ...

    @abstractmethod
    def load_state_dict(self, state: Any) -> None: ...


class BySamples(Mixture):
    """Random draws: each group has its weight's share of the samples. The n-th draw depends on the seed and on n."""

    def __init__(self, weights: Sequence[float], seed: str) -> None:
        self.weights, self.seed = tuple(weights), seed
        self.draws = 0

    def draw(self) -> int:
        number = random.Random(f"mix {self.seed} {self.draws}").random()
        self.draws += 1
        return drawn_group(self.weights, number)

    def state_dict(self) -> Any:
        return self.draws

    def load_state_dict(self, state: Any) -> None:
        self.draws = state


class ByTokens(Mixture):
    """Each group has its weight's share of the tokens: the next sample is from the group that is furthest behind.

    A group is never further from its share than by the tokens of a sample, however long the samples of each are.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = tuple(weights)
        self.tokens = [0] * len(self.weights)

    def draw(self) -> int:
        behind = [
            (tokens / weight, group)
            for group, (tokens, weight) in enumerate(zip(self.tokens, self.weights, strict=True))
            if weight
        ]
        return min(behind)[1]

    def count(self, group: int, tokens: int) -> None:
        self.tokens[group] += tokens

    def state_dict(self) -> Any:
        return list(self.tokens)

    def load_state_dict(self, state: Any) -> None:
        self.tokens = list(state)
