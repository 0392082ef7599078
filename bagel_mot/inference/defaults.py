"""The defaults of a checkpoint: settings and image sizes that its folder gives, official ones for the rest.

`bagel_defaults.json` holds whatever the checkpoint wants changed:

    {"generate": {"size": [64, 64], "num_timesteps": 25}, "edit": {…}, "ask": {…},
     "vae_transform": {"max_size": 64, "min_size": 64, "stride": 16}, "vit_transform": {…}}

Two files that other libraries know hold some of these facts too, and are written beside it:

    generation_config.json     do_sample, temperature, top_k, top_p, repetition_penalty and max_new_tokens of "ask"
    preprocessor_config.json   size.longest_edge, size.shortest_edge and patch_size: max_size, min_size and stride of
                               the "vit_transform"

`bagel_defaults.json` comes first where they differ. The two are read only where this package wrote them (`written_by`):
the folder of the official weights has a `generation_config.json` of the language model that they began with, which the
published system does not read, and whose sampling would change its answers. Other keys of theirs mean other things: for
others `max_pixels` bounds one image, here it is shared by all images of a sample.

An optional `preview_pictures.png` is a sheet of typical images, of eight latent cells a side each, that previews are
fitted to, and an optional `bagel_scope.yaml` says what a small model knows (`bagel_mot.scope`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from bagel_mot.checkpoint.official import write_json
from bagel_mot.checkpoint.side_files import DEFAULTS_FILE, GENERATION_FILE, PREPROCESSOR_FILE, PREVIEW_FILE, SCOPE_FILE
from bagel_mot.config import BagelConfig
from bagel_mot.errors import CheckpointError, ImageError, SettingError, SizeError
from bagel_mot.files import read_json
from bagel_mot.images import VAE_TRANSFORM, VIT_TRANSFORM, ImageTransform, open_image
from bagel_mot.inference.settings import TASKS, parse_settings, resolve
from bagel_mot.scope import Scope, read_scope
from bagel_mot.task import Task

_OFFICIAL_SIZE = 1024
_GENERATION = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens")
_WRITER = "bagel-mot"


@dataclass(frozen=True)
class Defaults:
    """Default settings by task, how images are resized on their way in, what previews are fitted to, and what the
    checkpoint knows, if it says so.
    """

    vae_transform: ImageTransform
    vit_transform: ImageTransform
    tasks: Mapping[Task, Mapping[str, Any]] = field(default_factory=dict)
    preview_images: Image.Image | None = None
    scope: Scope | None = None

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
        tasks={Task.GENERATE: {"size": (side, side)}, Task.EDIT: {}, Task.ASK: {}},
    )


def read_defaults(folder: Path, config: BagelConfig) -> Defaults:
    """The defaults of a checkpoint folder.

    Raises:
        CheckpointError: a file is damaged, or holds an unknown key or a value out of range.
    """
    preview, scope = _preview_images(folder, config), read_scope(folder / SCOPE_FILE)
    defaults = dataclasses.replace(official_defaults(config), preview_images=preview, scope=scope)
    path = folder / DEFAULTS_FILE
    own = _read_json(path)
    known = (*TASKS, "vae_transform", "vit_transform")
    if not all(key in known and isinstance(value, dict) for key, value in own.items()):
        raise CheckpointError(f"{path} must hold an object with no keys but {', '.join(known)}, objects themselves.")
    for place, raw in ((None, _shared(folder)), (path, own)):
        try:
            tasks = {task: {**defaults.of(task), **parse_settings(task, raw.get(task, {}))} for task in TASKS}
            if (size := tasks[Task.GENERATE].get("size")) is not None:
                check_size(size, config)
            defaults = dataclasses.replace(
                defaults,
                vae_transform=_transform(raw.get("vae_transform", {}), defaults.vae_transform),
                vit_transform=_transform(raw.get("vit_transform", {}), defaults.vit_transform),
                tasks=tasks,
            )
        except (SettingError, SizeError) as error:
            where = place or f"{folder / GENERATION_FILE} or {PREPROCESSOR_FILE}"
            raise CheckpointError(f"{where}: {error}") from error
    return defaults


def save_defaults(folder: Path, config: BagelConfig, content: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the defaults of a checkpoint, in its own file and in those that other libraries know.

    Args:
        folder: the checkpoint's folder.
        config: the model's configuration.
        content: the content of `bagel_defaults.json`.

    Raises:
        CheckpointError: the content could not be read again.
        OSError: the folder cannot be written.
    """
    write_json(folder / DEFAULTS_FILE, content)
    for name in (GENERATION_FILE, PREPROCESSOR_FILE):
        (folder / name).unlink(missing_ok=True)
    defaults = read_defaults(folder, config)
    vit, settings = defaults.vit_transform, resolve(Task.ASK, {}, defaults.of(Task.ASK))
    generation = {name: getattr(settings, name) for name in _GENERATION}
    preprocessor = {
        "do_convert_rgb": True,
        "size": {"shortest_edge": vit.min_size, "longest_edge": vit.max_size},
        "patch_size": vit.stride,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    write_json(folder / GENERATION_FILE, {**generation, "written_by": _WRITER})
    write_json(folder / PREPROCESSOR_FILE, {**preprocessor, "written_by": _WRITER})


def _shared(folder: Path) -> dict[str, Mapping[str, Any]]:
    """The facts of the two files that other libraries know, as they would be in `bagel_defaults.json`."""
    generation, preprocessor = (
        found if found.get("written_by") == _WRITER else {}
        for found in (_read_json(folder / name) for name in (GENERATION_FILE, PREPROCESSOR_FILE))
    )
    size = preprocessor.get("size", {})
    vit = (
        {"max_size": size.get("longest_edge"), "min_size": size.get("shortest_edge")} if isinstance(size, dict) else {}
    )
    vit["stride"] = preprocessor.get("patch_size")
    return {
        "ask": {name: generation[name] for name in _GENERATION if name in generation},
        "vit_transform": {name: value for name, value in vit.items() if value is not None},
    }


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is no such file.

    Raises:
        CheckpointError: the file is damaged.
    """
    return read_json(path, CheckpointError) if path.exists() else {}


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
    """Checks that an image of this size, (width, height) in pixels, can be drawn.

    Raises:
        SizeError: width or height is not a multiple of the latent stride, or beyond the latent position table.
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


def check_grid(pixels: tuple[int, int], config: BagelConfig) -> None:
    """Checks that an image, of (width, height) `pixels` after resizing for the ViT, can be read.

    Raises:
        SizeError: the image does not fit the ViT's position tables.
    """
    side, patch = min(config.vit.side, config.vit_max_num_patch_per_side), config.vit.patch_size
    if not config.interpolate_pos and max(pixels) > side * patch:
        raise SizeError(
            f"a picture of {pixels[0]}×{pixels[1]} pixels does not fit the ViT, whose side is {side * patch}."
        )
