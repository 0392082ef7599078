"""Conversion of images between ComfyUI and BAGEL, progress, and the button that stops a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_arrays(images: Tensor | None) -> list[np.ndarray]:
    """Converts a ComfyUI IMAGE, (B, H, W, channels) in 0..1, to uint8 arrays (H, W, channels); [] for None."""
    if images is None:
        return []
    levels = (images.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return [image.numpy() for image in levels]


def to_images(images: Sequence[Image.Image]) -> Tensor:
    """Converts images of one size to a ComfyUI IMAGE: float32 (B, H, W, 3) in 0..1."""
    levels = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(levels).float() / 255


class Watch:
    """Reports BAGEL's progress to ComfyUI: a progress bar of the steps, and whether the run was stopped.

    Without ComfyUI it does nothing.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._stopped: BaseException | None = None
        try:
            import comfy.model_management  # type: ignore[import-not-found]  # there inside ComfyUI only
            import comfy.utils  # type: ignore[import-not-found]
        except ImportError:
            self._comfy: Any = None
        else:
            self._comfy = comfy

    def step(self, done: int, total: int) -> None:
        """A callback for the denoising steps done and in all."""
        self._check()
        if self._comfy is None:
            return
        if self._bar is None:
            self._bar = self._comfy.utils.ProgressBar(total)
        self._bar.update_absolute(done, total)

    def text(self, piece: str) -> None:
        """A callback for each piece of text as it is written."""
        self._check()

    def _check(self) -> None:
        """Raises ComfyUI's own exception once the user has pressed stop, then at each call: ComfyUI forgets the request
        to stop as soon as it has raised, but the other images of a batch must end, too.
        """
        if self._stopped is not None:
            raise self._stopped
        if self._comfy is None:
            return
        try:
            self._comfy.model_management.throw_exception_if_processing_interrupted()
        except BaseException as stopped:
            self._stopped = stopped
            raise
