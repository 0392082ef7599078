"""What a checkpoint says about its own use: default settings and image sizes, in an optional `bagel_defaults.json`.

    {"generate": {"size": [64, 64], "num_timesteps": 25}, "edit": {…}, "ask": {…},
     "vae_transform": {"max_size": 64, "min_size": 64, "stride": 16}, "vit_transform": {…}}

Whatever it does not say is official. An optional `preview_pictures.png` beside it is a sheet of typical images, of
eight latent cells a side each, that previews are fitted to.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from bagel_mot.checkpoint.side_files import DEFAULTS_FILE, PREVIEW_FILE
from bagel_mot.config import BagelConfig
from bagel_mot.errors import CheckpointError, ImageError, SettingError, SizeError
from bagel_mot.images import VAE_TRANSFORM, VIT_TRANSFORM, ImageTransform, open_image
from bagel_mot.inference.settings import TASKS, Task, parse_settings

_OFFICIAL_SIZE = 1024


@dataclass(frozen=True)
class Defaults:
    """Default settings by task, how images are resized on their way in, and what previews are fitted to."""

    vae_transform: ImageTransform
    vit_transform: ImageTransform
    tasks: Mapping[Task, Mapping[str, Any]] = field(default_factory=dict)
    preview_images: Image.Image | None = None

    def of(self, task: Task) -> Mapping[str, Any]:
        return self.tasks.get(task, {})


def official_defaults(config: BagelConfig) -> Defaults:
    """The published values; for a model with smaller position tables, what these allow."""
    stride, patch = config.latent_stride, config.vit.patch_size
    largest = config.max_latent_size * stride
    vit_largest = min(config.vit.side, config.vit_max_num_patch_per_side) * patch
    side = min(_OFFICIAL_SIZE, largest)
    return Defaults(
        vae_transform=ImageTransform(side, min(VAE_TRANSFORM.min_size, largest), stride),
        vit_transform=ImageTransform(
            min(VIT_TRANSFORM.max_size, vit_largest), min(VIT_TRANSFORM.min_size, vit_largest), patch
        ),
        tasks={"generate": {"size": (side, side)}},
    )


def read_defaults(folder: Path, config: BagelConfig) -> Defaults:
    """The defaults of a checkpoint folder.

    Raises:
        CheckpointError: its file is damaged, or holds an unknown key or a value out of range.
    """
    defaults = dataclasses.replace(official_defaults(config), preview_images=_preview_images(folder, config))
    path = folder / DEFAULTS_FILE
    if not path.exists():
        return defaults
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} could not be read as JSON: {error}") from error
    known = (*TASKS, "vae_transform", "vit_transform")
    if not isinstance(raw, dict) or not all(key in known and isinstance(value, dict) for key, value in raw.items()):
        raise CheckpointError(f"{path} must hold an object with no keys but {', '.join(known)}, objects themselves.")
    try:
        tasks = {task: {**defaults.of(task), **parse_settings(task, raw.get(task, {}))} for task in TASKS}
        size = tasks["generate"].get("size")
        if size is not None:
            check_size(size, config)
        return dataclasses.replace(
            defaults,
            vae_transform=_transform(raw.get("vae_transform", {}), defaults.vae_transform),
            vit_transform=_transform(raw.get("vit_transform", {}), defaults.vit_transform),
            tasks=tasks,
        )
    except (SettingError, SizeError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _preview_images(folder: Path, config: BagelConfig) -> Image.Image | None:
    path = folder / PREVIEW_FILE
    if not path.exists():
        return None
    try:
        sheet = open_image(path)
    except ImageError as error:
        raise CheckpointError(str(error)) from error
    side = config.vae.downsample * 8
    if min(sheet.size) < side:
        raise CheckpointError(f"{path} is {sheet.width}×{sheet.height}: its pictures must be {side} pixels a side.")
    return sheet


def _transform(raw: Mapping[str, Any], default: ImageTransform) -> ImageTransform:
    names = [f.name for f in dataclasses.fields(ImageTransform)]
    unknown = sorted(set(raw) - set(names))
    if unknown:
        raise SettingError(f"an image transform has no {unknown[0]!r}, only {', '.join(names)}.")
    return dataclasses.replace(default, **raw)


def check_size(size: tuple[int, int], config: BagelConfig, what: str = "size") -> None:
    """
    Raises:
        SizeError: width or height is no multiple of the latent stride, or beyond the latent position table.
    """
    stride = config.latent_stride
    # A table that is stretched over the image has no end.
    largest = None if config.interpolate_pos else config.max_latent_size * stride
    for name, value in zip(("width", "height"), size, strict=True):
        if value >= stride and value % stride == 0 and (largest is None or value <= largest):
            continue
        nearest = max(round(value / stride), 1) * stride
        nearest = nearest if largest is None else min(nearest, largest)
        upto = "" if largest is None else f", at most {largest}"
        raise SizeError(
            f"{what} is {size[0]}×{size[1]}: the {name} {value} must be a multiple of {stride}{upto}, as {nearest} is."
        )


def check_grid(pixels: tuple[int, int], config: BagelConfig, patch: int) -> None:
    """
    Raises:
        SizeError: an image resized to (width, height) for the ViT does not fit its position tables.
    """
    side = config.vit.side if config.interpolate_pos else min(config.vit.side, config.vit_max_num_patch_per_side)
    if not config.interpolate_pos and max(pixels) > side * patch:
        raise SizeError(
            f"a picture of {pixels[0]}×{pixels[1]} pixels does not fit the ViT, whose side is {side * patch}."
        )
