"""One memory for BAGEL and ComfyUI's own models: each makes the other leave when there is no room for both.

ComfyUI keeps its models on the device until another one needs the room, and asks `free_memory` for it. BAGEL is asked
there, too. It is none of ComfyUI's model patchers, since quantised weights and layers that are kept elsewhere cannot be
moved in parts: it leaves as a whole, and is loaded again when it is used.
"""

from __future__ import annotations

import functools
import gc
from typing import Any, Protocol

import torch

from bagel_mot.inference.loading import choose_device

_LARGE = 10**9  # bytes: the way in which larger checkpoints run is chosen by what is free
_WORK = 2**30  # bytes that a small checkpoint may take to compute


class Leaves(Protocol):
    """What holds a model and can let it go."""

    def is_on(self, device: torch.device) -> bool:
        """Whether a model is held that takes memory of a device."""

    def unload(self) -> None:
        """Lets the model go."""


def follow_comfyui(owner: Leaves) -> None:
    """Makes ComfyUI's management of memory ask BAGEL too: `free_memory`, by which a model that is loaded makes others
    leave, and `unload_all_models`, which `/free` and its buttons call. Without ComfyUI it does nothing.
    """
    management = _management()
    if management is None or getattr(management.free_memory, "asks_bagel", False):
        return
    free, unload_all = management.free_memory, management.unload_all_models

    @functools.wraps(free)
    def free_memory(memory_required: float, device: torch.device, *args: Any, **more: Any) -> Any:
        kept = args[0] if args else more.get("keep_loaded", ())
        if owner.is_on(device) and _lacks(management, memory_required, device, kept):
            owner.unload()
        return free(memory_required, device, *args, **more)

    @functools.wraps(unload_all)
    def unload_all_models(*args: Any, **more: Any) -> Any:
        owner.unload()
        return unload_all(*args, **more)

    free_memory.asks_bagel = True  # type: ignore[attr-defined]
    management.free_memory, management.unload_all_models = free_memory, unload_all_models


def device_in_comfyui(device: str) -> str:
    """The device that is asked for, where "auto" is none but the CPU if ComfyUI was started with `--cpu`."""
    management = _management()
    on_cpu = management is not None and management.get_torch_device().type == "cpu"
    return "cpu" if device == "auto" and on_cpu else device


def make_room(device: str, size: int) -> None:
    """Makes ComfyUI's own models leave an accelerator before BAGEL is loaded there: all of them for a large checkpoint,
    for a small one as many as stand in its way.

    Args:
        device: the device that is asked for.
        size: the bytes of the weights.

    Raises:
        DeviceError: the device is unknown, or not to be had here.
    """
    management = _management()
    if management is None or device == "cpu":
        return
    own = management.get_torch_device()
    asked = own if device == "auto" else choose_device(device)
    management.free_memory(1e30 if size > _LARGE else size + _WORK, own if same_device(own, asked) else asked)
    management.soft_empty_cache()


def clean_up() -> None:
    """Gives back what nothing refers to any more."""
    gc.collect()
    management = _management()
    if management is not None:
        management.soft_empty_cache()
    elif torch.cuda.is_available():
        torch.cuda.empty_cache()


def same_device(one: torch.device, other: torch.device) -> bool:
    """Whether two devices are the same, where "cuda" is the first of its kind."""
    return one.type == other.type and (one.index or 0) == (other.index or 0)


def _lacks(management: Any, required: float, device: torch.device, kept: Any) -> bool:
    """Whether room would be missing even without ComfyUI's own models, which are back sooner than BAGEL."""
    try:
        own = sum(
            loaded.model_loaded_memory()
            for loaded in management.current_loaded_models
            if loaded.device == device and loaded.model is not None and loaded not in kept
        )
    except (AttributeError, TypeError):  # a version of ComfyUI that keeps them otherwise: no model may fail for that
        own = 0
    return bool(management.get_free_memory(device) + own < required)


def _management() -> Any:
    """ComfyUI's module for the memory of models; None without ComfyUI."""
    try:
        import comfy.model_management  # type: ignore[import-not-found]  # there inside ComfyUI only
    except ImportError:
        return None
    return comfy.model_management
