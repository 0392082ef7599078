"""Copies to a device that the host does not wait for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pinned(given: Tensor, device: torch.device) -> Tensor:
    """A tensor (any shape) in memory from which it can be copied to a device while the host goes on."""
    return given.pin_memory() if given.device.type == "cpu" and device.type == "cuda" else given


def to_device(given: Tensor | Sequence[int], device: torch.device) -> Tensor:
    """A tensor of any shape, or whole numbers as int64 (n,), on a device; the host does not wait for it."""
    found = given if isinstance(given, Tensor) else torch.tensor(given)
    return pinned(found, device).to(device, non_blocking=True)
