"""TaylorSeer: two of three late evaluations of the model are extrapolated instead of computed."""

from __future__ import annotations

from math import factorial

from torch import Tensor


class TaylorSeer:
    """Extrapolates a quantity that changes smoothly from one evaluation to the next (Liu et al. 2025, TaylorSeer).

    The first five evaluations are computed, then every third. At a computed one, finite differences of rising order are
    taken against the last computed one; in between the value is their Taylor series.
    """

    WARM_UP = 5
    SMOOTH_AFTER = WARM_UP - 2  # steps; from then on differences are taken, which fresh noise would spoil
    EVERY = 3
    MAX_ORDER = 6

    def __init__(self) -> None:
        self._count = 0  # evaluations so far
        self._last = -1  # the last computed one
        self._differences: list[Tensor] = []  # of order 0, 1, …, at the last computed one

    @property
    def must_compute(self) -> bool:
        """Whether the next evaluation cannot be extrapolated."""
        beyond = self._count - (self.WARM_UP - 1)
        return beyond <= 0 or beyond % self.EVERY == 0

    def update(self, value: Tensor) -> Tensor:
        """Takes the computed value of this evaluation, of any shape, and returns it."""
        differences = [value.float()]
        if self._count >= self.WARM_UP - 1:
            distance = self._count - self._last
            for before in self._differences[: self.MAX_ORDER]:
                differences.append((differences[-1] - before) / distance)
        self._differences = differences
        self._last = self._count
        self._count += 1
        return value

    def predict(self) -> Tensor:
        """The extrapolated value of this evaluation, of the same shape, in float32."""
        x = self._count - self._last
        self._count += 1
        total = self._differences[0].clone()
        for order, difference in enumerate(self._differences[1:], start=1):
            total += difference * (x**order / factorial(order))
        return total
