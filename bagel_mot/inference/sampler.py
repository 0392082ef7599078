"""The sampler: from noise to data along a learned velocity. It knows tensors only, nothing of the model.

Rectified flow (Liu et al. 2022): x_t = (1 − t)·data + t·noise, velocity v = noise − data; steps from t = 1 to 0.
Guidance extrapolates away from the velocities of poorer contexts, and brings the result back to the length it had.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum

import torch
from torch import Tensor

from bagel_mot.inference.settings import GenerationSettings


class Role(Enum):
    """The contexts under which a velocity is asked for."""

    FULL = "full"
    WITHOUT_TEXT = "without text"
    WITHOUT_IMAGE = "without image"


def timesteps(num_timesteps: int, shift: float) -> Tensor:
    """Times (num_timesteps,) float32 from 1 to 0, evenly spaced, then shifted: s·t / (1 + (s − 1)·t)."""
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


def step(x: Tensor, v: Tensor, t: float, following: float, eta: float = 0.0, fresh: Tensor | None = None) -> Tensor:
    """One step from time `t` to the time `following`.

    A velocity v at (x, t) says which data and noise x is a mixture of: x − t·v and x + (1 − t)·v. A step mixes them
    anew for the next time, which without fresh noise is Euler's step. Otherwise the noise n gives way to
    √(1 − eta²)·n + eta·z with z fresh, as in DDIM (Song et al. 2021, equation 12, with σ a share of the noise at the
    next time): what one step decided wrongly, later ones can decide again.

    Args:
        x: (N, C) float32, the image at time `t`.
        v: (N, C) float32, its velocity.
        t: the time of `x`.
        following: the time to go to, less than `t`.
        eta: the share of fresh noise, in [0, 1].
        fresh: (N, C) float32 fresh noise, or None for Euler's step.

    Returns: (N, C) float32, the image at the time `following`.
    """
    stepped = x - v * (t - following)
    if fresh is None:
        return stepped
    noise = x + (1 - t) * v
    return stepped + following * ((math.sqrt(1 - eta**2) - 1) * noise + eta * fresh)
