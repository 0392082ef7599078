"""The sampler: schedule, guidance against a plain form of its formula, integration of known paths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bagel_mot.inference.sampler import Role, guidance_on, guide, roles, roles_used, step, timesteps
from bagel_mot.inference.settings import GenerationSettings


def settings(**values: Any) -> GenerationSettings:
    return GenerationSettings(**values)


def test_timesteps() -> None:
    assert timesteps(5, 1.0).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert timesteps(3, 3.0).tolist() == pytest.approx([1, 0.75, 0])
    shifted = timesteps(50, 4.0)
    even = np.linspace(1, 0, 50)
    assert shifted.tolist() == pytest.approx((4 * even / (1 + 3 * even)).tolist(), abs=1e-6)
    assert (shifted.diff() < 0).all()


def test_guidance_interval_excludes_its_low_end() -> None:
    assert not guidance_on(0.4, (0.4, 1.0))
    assert guidance_on(0.41, (0.4, 1.0))
    assert guidance_on(1.0, (0.4, 1.0))
    assert not guidance_on(0.9, (0.0, 0.8))
    assert not guidance_on(0.5, (0.5, 0.5))


@pytest.mark.parametrize(
    ("text", "image", "interval", "expected"),
    [
        (4.0, 2.0, (0.0, 1.0), 3),
        (4.0, 1.0, (0.0, 1.0), 2),
        (1.0, 2.0, (0.0, 1.0), 1),  # without text guidance there is none at all
        (4.0, 2.0, (0.6, 0.9), 1),
    ],
)
def test_roles(text: float, image: float, interval: tuple[float, float], expected: int) -> None:
    wanted = (Role.FULL, Role.WITHOUT_TEXT, Role.WITHOUT_IMAGE)[:expected]
    assert roles(0.5, settings(cfg_text_scale=text, cfg_image_scale=image, cfg_interval=interval)) == wanted


def test_roles_used_looks_at_the_whole_run() -> None:
    late = settings(cfg_interval=(0.0, 0.5), cfg_image_scale=2.0, num_timesteps=5, timestep_shift=1.0)
    assert len(roles_used(late)) == 3
    assert roles_used(settings(cfg_interval=(0.3, 0.45), num_timesteps=3, timestep_shift=1.0)) == (Role.FULL,)
    assert roles_used(settings(cfg_text_scale=1.0)) == (Role.FULL,)


def plain_guidance(v: Any, no_text: Any, no_image: Any, s: GenerationSettings) -> Any:
    """The formula in numpy, token by token."""
    v, no_text = v.double().numpy(), no_text.double().numpy()
    guided = np.empty_like(v)
    for i in range(len(v)):
        guided[i] = no_text[i] + s.cfg_text_scale * (v[i] - no_text[i])
        if s.cfg_renorm_type == "text_channel":
            guided[i] *= min(max(np.linalg.norm(v[i]) / np.linalg.norm(guided[i]), s.cfg_renorm_min), 1)
        if no_image is not None:
            guided[i] = no_image[i].double().numpy() * (1 - s.cfg_image_scale) + s.cfg_image_scale * guided[i]
        if s.cfg_renorm_type == "channel":
            guided[i] *= min(max(np.linalg.norm(v[i]) / np.linalg.norm(guided[i]), s.cfg_renorm_min), 1)
    if s.cfg_renorm_type == "global":
        guided *= min(max(np.sqrt((v**2).sum()) / np.sqrt((guided**2).sum()), s.cfg_renorm_min), 1)
    return guided


@pytest.mark.parametrize("kind", ["global", "channel", "text_channel"])
@pytest.mark.parametrize("minimum", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("image", [None, 1.7])
def test_guidance_against_the_plain_formula(kind: str, minimum: float, image: float | None) -> None:
    v, no_text, no_image = torch.randn(3, 6, 4)
    v[0] *= 5  # so that some norms grow and others shrink
    s = settings(cfg_text_scale=2.5, cfg_image_scale=image or 1.0, cfg_renorm_type=kind, cfg_renorm_min=minimum)
    given = None if image is None else no_image
    got = guide(v, no_text, given, s)
    assert np.abs(got.double().numpy() - plain_guidance(v, no_text, given, s)).max() < 1e-5


def test_guided_velocity_is_never_longer() -> None:
    for _ in range(20):
        v, no_text, no_image = torch.randn(3, 5, 4)
        assert guide(v, no_text, no_image, settings(cfg_image_scale=2.0)).norm() <= v.norm() * (1 + 1e-5)


def integrate(
    velocity: Callable[[Tensor, float], Tensor], noises: Iterator[Tensor], n: int, shift: float, eta: float = 0.0
) -> Tensor:
    """From noise to data in `n` − 1 steps, with fresh noise in every step but the last."""
    x = next(noises)
    for t, following in pairwise(timesteps(n, shift).tolist()):
        x = step(x, velocity(x, t), t, following, eta, next(noises) if eta and following else None)
    return x


def test_straight_paths_are_integrated_exactly() -> None:
    """With v = noise − data everywhere, any number of steps leads to the data."""
    noise, data = torch.randn(2, 7, 3)
    times: list[float] = []

    def velocity(x: Tensor, t: float) -> Tensor:
        times.append(t)
        assert torch.allclose(x, (1 - t) * data + t * noise, atol=1e-5)
        return noise - data

    for count in (2, 3, 50):
        times.clear()
        assert torch.allclose(integrate(velocity, iter([noise]), count, 3.0), data, atol=1e-5)
        assert len(times) == count - 1
        assert times[0] == 1.0


def test_euler_converges_on_a_curved_path() -> None:
    """dx/dt = x from t = 1 to 0 is a factor of 1/e; the error halves as the steps double."""
    start = torch.ones(1)
    errors = [abs(integrate(lambda x, t: x, iter([start]), n + 1, 1.0).item() - np.exp(-1)) for n in (50, 100, 200)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_eta_replaces_that_much_of_the_noise_and_keeps_its_size(eta: float) -> None:
    """Where the velocity knows the data, what is left at any time is noise of full size, √(1 − eta²) of it the old."""
    generator = torch.Generator().manual_seed(0)
    data = torch.linspace(-1, 1, 20_000)
    seen: list[Tensor] = []

    def noises() -> Iterator[Tensor]:
        while True:
            yield torch.randn(data.shape, generator=generator)

    def velocity(x: Tensor, t: float) -> Tensor:
        seen.append((x - (1 - t) * data) / t)
        return (x - data) / t

    assert torch.allclose(integrate(velocity, noises(), 6, 3.0, eta), data, atol=1e-5)
    for before, after in pairwise(seen):
        assert after.std().item() == pytest.approx(1, abs=0.02)
        assert (before * after).mean().item() == pytest.approx(np.sqrt(1 - eta**2), abs=0.03)
