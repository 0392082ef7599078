"""Random decisions, and every way in which they can fall.

What is drawn while a row becomes a document (which caption, which step of a session, which frames) is drawn through
`Draws`. Training takes a random number generator; `all_outcomes` runs the same code over every possible draw and says
how probable each result is, exactly.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Draws(ABC):
    """A supply of random decisions, each of finitely many cases."""

    @abstractmethod
    def below(self, n: int) -> int:
        """A whole number in [0, n), all equally probable; n is at least 1."""

    @abstractmethod
    def chance(self, probability: float | Fraction) -> bool:
        """True with a probability in [0, 1]."""

    def choice(self, items: Sequence[Item]) -> Item:
        """One of a sequence, which has at least one item."""
        return items[self.below(len(items))]

    def between(self, low: int, high: int) -> int:
        """A whole number in [low, high], both included."""
        return low + self.below(high - low + 1)

    def subset(self, n: int, size: int) -> list[int]:
        """`size` different numbers of [0, n) in order, every subset equally probable."""
        rank, chosen, low = self.below(math.comb(n, size)), [], 0
        for left in range(size - 1, -1, -1):
            # Subsets in lexical order: those that begin with `low` come first.
            while rank >= (beginning := math.comb(n - low - 1, left)):
                rank -= beginning
                low += 1
            chosen.append(low)
            low += 1
        return chosen


class RandomDraws(Draws):
    """Decisions by a random number generator."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def below(self, n: int) -> int:
        return self.rng.randrange(n)

    def chance(self, probability: float | Fraction) -> bool:
        return self.rng.random() < probability


class _ListedDraws(Draws):
    """Decisions that follow a list as far as it goes, and take the first case after that.

    Attributes:
        taken: the decisions so far: the case, and the probability of each case that can be.
    """

    def __init__(self, cases: Sequence[int]) -> None:
        self._cases = cases
        self.taken: list[tuple[int, list[Fraction]]] = []

    def _take(self, probabilities: list[Fraction]) -> int:
        number = len(self.taken)
        case = self._cases[number] if number < len(self._cases) else 0
        self.taken.append((case, probabilities))
        return case

    def below(self, n: int) -> int:
        return self._take([Fraction(1, n)] * n)

    def chance(self, probability: float | Fraction) -> bool:
        exact = Fraction(probability)
        if exact in (0, 1):  # no decision at all
            return bool(exact)
        return self._take([1 - exact, exact]) == 1


def all_outcomes(function: Callable[[Draws], Result]) -> list[tuple[Fraction, Result]]:
    """The result of a function for every possible sequence of draws, with its probability.

    The function is called once for each sequence, so it must depend on nothing else that changes. Equal results are not
    merged. An exception is passed on: a function whose failure is a result returns it.

    Returns: (probability, result) in lexical order of the draws; the probabilities sum to 1.
    """
    outcomes: list[tuple[Fraction, Result]] = []
    cases: list[int] = []
    while True:
        draws = _ListedDraws(cases)
        result = function(draws)
        outcomes.append((math.prod((p[case] for case, p in draws.taken), start=Fraction(1)), result))
        taken = draws.taken
        while taken and taken[-1][0] + 1 == len(taken[-1][1]):
            taken.pop()
        if not taken:
            return outcomes
        cases = [case for case, _ in taken]
        cases[-1] += 1
