"""Sizes that a recipe leaves to the checkpoint: the sides of images, and with them the slots of a pack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from bagel_mot.config import Count, Section, Whole
from bagel_mot.data.packer import AnyPackConfig, PackConfig, read_pack_config
from bagel_mot.errors import RecipeError
from bagel_mot.images import ImageTransform


@dataclass(frozen=True, kw_only=True)
class MaxSides(Section):
    """The most pixels of an image's long side, in its two forms. The checkpoint's own limit counts where it is lower.

    Attributes:
        vae: the limit for images as latents, drawn or given.
        vit: the limit for images to be understood.
    """

    vae: Count | None = None
    vit: Count | None = None

    def limited(self, vae: ImageTransform, vit: ImageTransform) -> tuple[ImageTransform, ImageTransform]:
        """A checkpoint's transforms within these limits."""
        return _limited(vae, self.vae), _limited(vit, self.vit)


def _limited(transform: ImageTransform, side: int | None) -> ImageTransform:
    if side is None or side >= transform.max_size:
        return transform
    side = max(side // transform.stride, 1) * transform.stride
    return replace(transform, max_size=side, min_size=min(side, transform.min_size))


_ENCODED_PIXELS, _ENCODED_IMAGES = 1 << 20, 32


def encoded_together(pixels: int) -> int:
    """The number of images of so many pixels that the autoencoder encodes in one batch: as many as one of 1024×1024
    has pixels, and 32 at most.
    """
    return max(1, min(_ENCODED_IMAGES, _ENCODED_PIXELS // pixels))


def most_tokens(transform: ImageTransform) -> int:
    """The most tokens of an image that a transform lets through: those of a square."""
    return min(transform.max_size**2, transform.max_pixels) // transform.stride**2


@dataclass(frozen=True, kw_only=True)
class PackForImages(Section):
    """The size of a pack in images and text, for a checkpoint of any size: each row has room for as many images of the
    largest size.

    Attributes:
        rows: rows, each with slots of its own.
        latents: images of a row in the form of latents, drawn or given.
        seen: images of a row that are given to be understood.
        text: text tokens of a row.
        buffer: samples that may wait for a row that fits.
    """

    rows: Count = 1
    latents: Whole = 0
    seen: Whole = 0
    text: Count
    buffer: Whole = 64

    def sized(self, vae: ImageTransform, vit: ImageTransform) -> PackConfig:
        """The pack in slots.

        Args:
            vae, vit: the transforms of images.
        """
        markers = 2
        und = self.text + markers * self.latents + (most_tokens(vit) + markers) * self.seen
        gen = max(most_tokens(vae) * self.latents, 1)
        return PackConfig(rows=self.rows, und=und, gen=gen, buffer=self.buffer)


AnyPack = AnyPackConfig | PackForImages


def read_pack(content: Any) -> AnyPack:
    """A recipe's `pack` section: in images and text if it says so, else in slots, or by the published loop.

    Raises:
        ValueError: a key is unknown or missing, or a value is out of its range.
    """
    if isinstance(content, AnyPack):
        return content
    in_images = isinstance(content, Mapping) and {"text", "latents", "seen"} & content.keys()
    return TypeAdapter(PackForImages).validate_python(content) if in_images else read_pack_config(content)


def pack_config(pack: AnyPack, vae: ImageTransform, vit: ImageTransform) -> AnyPackConfig:
    """The size of a pack in slots or tokens, for images that are resized so."""
    return pack.sized(vae, vit) if isinstance(pack, PackForImages) else pack


def slots_to_share(pack: AnyPackConfig, shares: int) -> tuple[int, int]:
    """The und and gen slots of a pack, in all its rows; zeros where their number changes from pack to pack.

    Args:
        pack: the recipe's section.
        shares: the processes that share a pack's tokens.

    Raises:
        RecipeError: the tokens are to be shared, and their number changes.
    """
    if isinstance(pack, PackConfig):
        return pack.rows * pack.und, pack.rows * pack.gen
    if shares > 1:
        raise RecipeError(
            f"parallel.context_parallel_degree is {shares}, which takes packs of a fixed size: give pack.und and "
            "pack.gen"
        )
    return 0, 0
