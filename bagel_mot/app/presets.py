"""Sizes to choose from, and presets of several settings at once, made from a checkpoint's own defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bagel_mot.inference.api import Bagel
from bagel_mot.inference.defaults import official_defaults
from bagel_mot.task import Task

Size = tuple[int, int]
Preset = Callable[[Mapping[str, Any]], dict[str, Any]]
"""A function from the defaults to the settings that are changed."""
RATIOS = ((1, 1), (4, 3), (3, 4), (16, 9), (9, 16))
"""Proportions of the sizes to choose from."""


def default_size(bagel: Bagel) -> Size:
    """The size of an image that follows no other."""
    own, task = bagel.defaults, Task.GENERATE
    size: Size = own.of(task).get("size") or official_defaults(bagel.config).of(task)["size"]
    return size


def sizes(bagel: Bagel) -> dict[str, Size]:
    """Sizes by proportion ("4:3"), all of them multiples of the latent stride and within the position table.

    The long side is that of the checkpoint's own size. Of two proportions with the same size, the first one is kept.
    """
    stride, long = bagel.config.latent_stride, max(default_size(bagel))
    found: dict[str, Size] = {}
    for width, height in RATIOS:
        short = max(round(long * min(width, height) / max(width, height) / stride), 1) * stride
        size = (long, short) if width >= height else (short, long)
        if size not in found.values():
            found[f"{width}:{height}"] = size
    return found


def shown(size: Size) -> str:
    """A size as people write it."""
    return f"{size[0]}×{size[1]}"


def _steps(factor: float) -> Preset:
    return lambda own: {"num_timesteps": max(round(own["num_timesteps"] * factor), 2)}


def _guidance(text: float, image: float) -> Preset:
    """Guidance times these factors; guidance that is off (1 or less) stays off."""

    def times(scale: float, factor: float) -> float:
        return scale if scale <= 1 else round(max(scale * factor, 1.0), 2)

    return lambda own: {
        "cfg_text_scale": times(own["cfg_text_scale"], text),
        "cfg_image_scale": times(own["cfg_image_scale"], image),
    }


PRESETS: dict[Task, dict[str, Preset]] = {
    Task.GENERATE: {"fast": _steps(0.5), "balanced": _steps(1), "fine": _steps(2)},
    Task.EDIT: {"gentle": _guidance(0.75, 1.5), "balanced": _guidance(1, 1), "strong": _guidance(1.5, 0.75)},
    Task.ASK: {
        "exact": lambda own: {name: own[name] for name in ("do_sample", "temperature", "top_p")},
        "varied": lambda own: {"do_sample": True, "temperature": 0.7, "top_p": 0.95},
    },
}
"""Presets by task and name; all presets of a task change the same settings."""
