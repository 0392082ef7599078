"""A few settings at once, by what one wants; worked out from the checkpoint's own defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bagel_mot.inference.settings import Task

Change = Callable[[Mapping[str, Any]], dict[str, Any]]


def _steps(factor: float) -> Change:
    return lambda own: {"num_timesteps": max(round(own["num_timesteps"] * factor), 2)}


def _guidance(text: float, image: float) -> Change:
    """Guidance times these; what is off (1 or less) stays off."""

    def times(scale: float, factor: float) -> float:
        return scale if scale <= 1 else round(max(scale * factor, 1.0), 2)

    return lambda own: {
        "cfg_text_scale": times(own["cfg_text_scale"], text),
        "cfg_image_scale": times(own["cfg_image_scale"], image),
    }


def _sampling(own: Mapping[str, Any]) -> dict[str, Any]:
    return {"do_sample": True, "temperature": 0.7, "top_p": 0.95}


def _own_sampling(own: Mapping[str, Any]) -> dict[str, Any]:
    return {name: own[name] for name in ("do_sample", "temperature", "top_p")}


PRESETS: dict[Task, dict[str, Change]] = {
    "generate": {"fast": _steps(0.5), "balanced": _steps(1), "fine": _steps(2)},
    "edit": {"gentle": _guidance(0.75, 1.5), "balanced": _guidance(1, 1), "strong": _guidance(1.5, 0.75)},
    "ask": {"exact": _own_sampling, "varied": _sampling},
}
"""By task and name: from the defaults to the settings that are changed, the same ones in all presets of a task."""
