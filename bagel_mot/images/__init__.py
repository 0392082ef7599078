"""Images in and out: opening with limits, the resize rule, pixels in [-1, 1], patches, latent tokens.

The way in: `open_image` (any source to RGB, upright, over white), then `ImageTransform` (resized, a tensor (3, H, W) in
[-1, 1]), then `patchify` for the ViT, or the autoencoder and `patchify` again. The way out: `to_uint8` and `to_pil`.
"""

from __future__ import annotations

from bagel_mot.images.opening import MAX_IMAGE_PIXELS, ImageSource, open_image
from bagel_mot.images.pixels import patchify, scale_levels, to_levels, to_pil, to_pixels, to_uint8, unpatchify
from bagel_mot.images.transform import VAE_TRANSFORM, VIT_TRANSFORM, ImageTransform, resize_bicubic

__all__ = [
    "MAX_IMAGE_PIXELS",
    "VAE_TRANSFORM",
    "VIT_TRANSFORM",
    "ImageSource",
    "ImageTransform",
    "open_image",
    "patchify",
    "resize_bicubic",
    "scale_levels",
    "to_levels",
    "to_pil",
    "to_pixels",
    "to_uint8",
    "unpatchify",
]
