"""The settings by which the published system draws from a text for its benchmarks, where the defaults differ or may."""

from __future__ import annotations

from typing import Any

# The published cap of 2048 counts the token that begins the thought.
THOUGHT_TOKENS = 2047
FIRST_SEED = 42


def drawing_settings(cfg_interval: tuple[float, float], think: bool) -> dict[str, Any]:
    """Settings of `Bagel.generate` for one item. A thought is sampled at temperature 0.3."""
    settings: dict[str, Any] = {
        "size": (1024, 1024),
        "num_timesteps": 50,
        "timestep_shift": 3.0,
        "cfg_text_scale": 4.0,
        "cfg_interval": cfg_interval,
        "cfg_renorm_type": "global",
        "cfg_renorm_min": 0.0,
        "think": think,
    }
    if think:
        settings |= {"do_sample": True, "temperature": 0.3, "max_think_tokens": THOUGHT_TOKENS}
    return settings


def seeds_of(index: int, count: int = 1) -> tuple[int, ...]:
    """The seeds of an item's images: no two images of a run have the same, and none depends on other items.

    The published scripts seed once with 42, so that an image depends on all that were drawn before it; that cannot be
    repeated, and is not imitated.
    """
    return tuple(range(FIRST_SEED + index * count, FIRST_SEED + (index + 1) * count))
