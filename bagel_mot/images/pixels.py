"""Pixels as tensors in [-1, 1], their patches, and the way back to images."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bagel_mot.errors import SizeError


def to_levels(image: Image.Image | np.ndarray) -> Tensor:
    """The uint8 levels (H, W, 3) of an RGB image or a uint8 array (H, W, 3), at its own size."""
    return torch.from_numpy(np.array(image, dtype=np.uint8))


def scale_levels(levels: Tensor) -> Tensor:
    """Levels of 0..255, uint8 of any shape, as new float32 pixels in [-1, 1] of that shape."""
    return levels.to(torch.float32, memory_format=torch.contiguous_format, copy=True).div_(255).sub_(0.5).div_(0.5)


def to_pixels(image: Image.Image | np.ndarray) -> Tensor:
    """The float32 pixels (3, H, W) in [-1, 1] of an RGB image or a uint8 array (H, W, 3), at its own size."""
    return scale_levels(to_levels(image).permute(2, 0, 1))


def patchify(pixels: Tensor, patch: int) -> Tensor:
    """Cuts pixels or a latent (C, H, W) into patches (H/patch · W/patch, patch·patch·C) in reading order.

    Inside a patch the order is row, column, channel.

    Raises:
        SizeError: if pixels is not 3-dimensional or a side is not a multiple of `patch`.
    """
    if pixels.ndim != 3 or pixels.shape[1] % patch or pixels.shape[2] % patch:
        raise SizeError(
            f"shape {tuple(pixels.shape)} cannot be cut into {patch}×{patch} patches: "
            f"give (C, H, W) with H and W multiples of {patch}."
        )
    channels, height, width = pixels.shape
    grid = pixels.reshape(channels, height // patch, patch, width // patch, patch)
    return grid.permute(1, 3, 2, 4, 0).reshape(-1, patch * patch * channels)


def unpatchify(patches: Tensor, height: int, width: int, patch: int) -> Tensor:
    """The inverse of `patchify`: (H/patch · W/patch, patch·patch·C) back to (C, height, width).

    Args:
        patches: rows in reading order.
        height, width: the size of the result in pixels (or latent cells), multiples of `patch`.
        patch: the side of a patch.

    Raises:
        SizeError: if the number or length of the patches does not fit.
    """
    rows, columns = height // patch, width // patch
    fits = patches.ndim == 2 and height % patch == 0 and width % patch == 0 and patches.shape[0] == rows * columns
    if not fits or patches.shape[1] % (patch * patch):
        raise SizeError(
            f"patches of shape {tuple(patches.shape)} do not fill {height}×{width} (height × width) "
            f"in {patch}×{patch} patches: {rows * columns} patches of {patch * patch} × channels are needed."
        )
    grid = patches.reshape(rows, columns, patch, patch, -1)
    return grid.permute(4, 0, 2, 1, 3).reshape(-1, height, width)


def to_uint8(pixels: Tensor) -> Tensor:
    """Pixels (3, H, W) or (B, 3, H, W), in [-1, 1], as uint8 (H, W, 3) or (B, H, W, 3).

    Values beyond the range are clamped; levels are truncated, not rounded, as the published code does.

    Raises:
        SizeError: if the shape is neither.
    """
    if pixels.ndim not in (3, 4) or pixels.shape[-3] != 3:
        raise SizeError(f"pixels have shape {tuple(pixels.shape)}: give (3, H, W) or (B, 3, H, W).")
    levels = (pixels.float() * 0.5 + 0.5).clamp(0, 1) * 255
    return levels.to(torch.uint8).movedim(-3, -1).contiguous()


def to_pil(pixels: Tensor) -> Image.Image:
    """Pixels (3, H, W) in [-1, 1] as an RGB image.

    Raises:
        SizeError: if the shape is another.
    """
    if pixels.ndim != 3:
        raise SizeError(f"pixels have shape {tuple(pixels.shape)}: give one picture (3, H, W).")
    return Image.fromarray(to_uint8(pixels).cpu().numpy())
