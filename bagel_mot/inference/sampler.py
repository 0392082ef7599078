"""The sampler: from noise to data along a learned velocity. It knows tensors only, nothing of the model.

Rectified flow (Liu et al. 2022): x_t = (1 − t)·data + t·noise, velocity v = noise − data; steps from t = 1 to 0.
Guidance extrapolates away from the velocities of poorer contexts, and brings the result back to the length it had.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from enum import Enum
from itertools import pairwise
from math import factorial
from typing import TypeVar

import torch
from torch import Tensor

from bagel_mot.inference.settings import GenerationSettings

Ask = TypeVar("Ask")
Answer = TypeVar("Answer")


class Role(Enum):
    """The contexts under which a velocity is asked for."""

    FULL = "full"
    WITHOUT_TEXT = "without text"
    WITHOUT_IMAGE = "without image"


def timesteps(num_timesteps: int, shift: float) -> Tensor:
    """`num_timesteps` float32 times from 1 to 0, evenly spaced, then shifted: s·t / (1 + (s − 1)·t)."""
    t = torch.linspace(1, 0, num_timesteps)
    return shift * t / (1 + (shift - 1) * t)


def guidance_on(t: float, interval: tuple[float, float]) -> bool:
    """Whether guidance applies at time `t`: low < t ≤ high."""
    low, high = interval
    return low < t <= high


def roles(t: float, settings: GenerationSettings) -> tuple[Role, ...]:
    """The contexts whose velocities a step at time `t` needs."""
    if settings.cfg_text_scale <= 1 or not guidance_on(t, settings.cfg_interval):
        return (Role.FULL,)
    if settings.cfg_image_scale <= 1:
        return Role.FULL, Role.WITHOUT_TEXT
    return Role.FULL, Role.WITHOUT_TEXT, Role.WITHOUT_IMAGE


def roles_used(settings: GenerationSettings) -> tuple[Role, ...]:
    """The contexts that any step of a whole run needs."""
    times = timesteps(settings.num_timesteps, settings.timestep_shift)[:-1].tolist()
    return max((roles(t, settings) for t in times), key=len)


def guide(v: Tensor, v_without_text: Tensor, v_without_image: Tensor | None, settings: GenerationSettings) -> Tensor:
    """The guided velocity of one image.

    Args:
        v: (N, C) velocity under the full context.
        v_without_text: (N, C).
        v_without_image: (N, C), or None where image guidance is off.
        settings: scales and the kind of renormalisation.
    """

    def restore(guided: Tensor, norms: Callable[[Tensor], Tensor]) -> Tensor:
        """Shortens a velocity to the length of `v`, by no less than the least factor allowed."""
        return guided * (norms(v) / (norms(guided) + 1e-8)).clamp(settings.cfg_renorm_min, 1.0)

    def per_token(x: Tensor) -> Tensor:
        return x.norm(dim=-1, keepdim=True)

    guided = v_without_text + settings.cfg_text_scale * (v - v_without_text)
    if settings.cfg_renorm_type == "text_channel":
        guided = restore(guided, per_token)
    if v_without_image is not None:
        guided = v_without_image + settings.cfg_image_scale * (guided - v_without_image)
    if settings.cfg_renorm_type == "global":
        guided = restore(guided, torch.linalg.vector_norm)
    elif settings.cfg_renorm_type == "channel":
        guided = restore(guided, per_token)
    return guided


def sample(
    velocity: Callable[[Tensor, float], Generator[Ask, Answer, Tensor]],
    noises: Iterator[Tensor],
    num_timesteps: int,
    shift: float,
    eta: float = 0.0,
    fresh: int | None = None,
) -> Generator[Ask, Answer, Tensor]:
    """Goes from noise to data in `num_timesteps` − 1 steps.

    A velocity v at (x, t) says which data and noise x is a mixture of: x − t·v and x + (1 − t)·v. A step mixes them
    anew for the next time, which with `eta` 0 is Euler's step. Otherwise the noise n gives way to
    √(1 − eta²)·n + eta·z with z fresh, as in DDIM (Song et al. 2021, equation 12, with σ a share of the noise at the
    next time): what one step decided wrongly, later ones can decide again.

    Args:
        velocity: of (x, t). A generator function, so that what computes it may wait in between; whatever it yields and
            is sent passes through.
        noises: float32, of any shape: the one to start from, then the fresh ones.
        num_timesteps: points of time, both ends included.
        shift: of the schedule.
        eta: in [0, 1].
        fresh: how many of the first steps `eta` acts in; all if not given.

    Returns: the data, of the shape of the noise.
    """
    x = next(noises)
    for step, (t, following) in enumerate(pairwise(timesteps(num_timesteps, shift).tolist())):
        v = yield from velocity(x, t)
        stepped = x - v * (t - following)
        if eta and following and (fresh is None or step < fresh):
            noise = x + (1 - t) * v
            stepped = stepped + following * ((math.sqrt(1 - eta**2) - 1) * noise + eta * next(noises))
        x = stepped
    return x


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
        """Takes the computed value of this evaluation, and returns it."""
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
        """The extrapolated value of this evaluation, in float32."""
        x = self._count - self._last
        self._count += 1
        total = self._differences[0].clone()
        for order, difference in enumerate(self._differences[1:], start=1):
            total += difference * (x**order / factorial(order))
        return total
