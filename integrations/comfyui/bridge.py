"""Conversion of images between ComfyUI and BAGEL, progress, previews, and the button that stops a run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bagel_mot.errors import SizeError
from bagel_mot.files import size_text

_PREVIEW_SIDE = 512  # pixels, at most
_EVERY = 0.2  # seconds between two reports of text or of bytes


def to_arrays(*batches: Tensor | None) -> list[np.ndarray]:
    """Converts ComfyUI IMAGEs, (B, H, W, channels) in 0..1, to uint8 arrays (H, W, channels); None adds none."""
    arrays: list[np.ndarray] = []
    for images in batches:
        if images is not None:
            levels = (images.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
            arrays += [image.numpy() for image in levels]
    return arrays


def to_images(images: Sequence[Image.Image]) -> Tensor:
    """Converts images of one size to a ComfyUI IMAGE: float32 (B, H, W, 3) in 0..1.

    Raises:
        SizeError: they have several sizes.
    """
    if len(sizes := {image.size for image in images}) > 1:
        found = " and ".join(f"{width}×{height}" for width, height in sorted(sizes))
        raise SizeError(f"the pictures drawn are {found}, and a batch of ComfyUI has one size: set width and height.")
    levels = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(levels).float() / 255


class Watch:
    """Reports BAGEL's progress to ComfyUI: a progress bar of the steps, previews of the image, the text as it is
    written; and whether the run was stopped. Without ComfyUI it does nothing.

    Args:
        node: ComfyUI's id of the node that runs.
        images: images that are drawn together; the bar counts the steps of all.
    """

    def __init__(self, node: str | None = None, images: int = 1) -> None:
        self._node, self._images = node, images
        self._bar: Any = None
        self._preview: Image.Image | None = None
        self._stopped: BaseException | None = None
        self._done, self._text, self._told, self._stage = 0, "", 0.0, ""
        try:
            import comfy.model_management  # type: ignore[import-not-found]  # there inside ComfyUI only
            import comfy.utils  # type: ignore[import-not-found]
        except ImportError:
            self._comfy: Any = None
        else:
            self._comfy = comfy

    def loading(self, stage: str, done: int, total: int) -> None:
        """A callback for the bytes that are downloaded and loaded; the bar counts MiB."""
        self._check()
        if self._comfy is None or (stage == self._stage and done < total and not self._is_time()):
            return
        if stage != self._stage:
            self._stage, self._bar = stage, self._comfy.utils.ProgressBar(max(1, total >> 20))
        self._bar.update_absolute(done >> 20, max(1, total >> 20))
        if stage == "downloading":
            self._tell(f"downloading: {size_text(done)} of {size_text(total)}")
        self._told = time.monotonic()
        if done >= total:
            self._bar = None  # the steps have their own

    def step(self, _: int, total: int) -> None:
        """A callback for the denoising steps of one image, done and in all."""
        self._check()
        self._done += 1
        if self._comfy is None:
            return
        if self._bar is None:
            self._bar = self._comfy.utils.ProgressBar(total * self._images)
        preview = None if self._preview is None else ("JPEG", self._preview, _PREVIEW_SIDE)
        self._preview = None
        self._bar.update_absolute(self._done, total * self._images, preview)

    def preview(self, image: Image.Image) -> None:
        """A callback for previews, each called just before `step`."""
        self._preview = image.convert("RGB")

    def text(self, piece: str) -> None:
        """A callback for each piece of text as it is written."""
        self._check()
        self._text += piece
        if self._is_time():
            self._tell(self._text)
            self._told = time.monotonic()

    def _is_time(self) -> bool:
        return time.monotonic() - self._told >= _EVERY

    def _tell(self, text: str) -> None:
        """Shows a text on the node."""
        if self._node is None:
            return
        try:
            from server import PromptServer  # type: ignore[import-not-found]
        except ImportError:
            return
        tell = getattr(getattr(PromptServer, "instance", None), "send_progress_text", None)
        if tell is not None:
            tell(text, self._node)

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
