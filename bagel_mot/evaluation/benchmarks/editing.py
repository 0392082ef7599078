"""Edits for benchmarks: the published settings, and the images that a judge is shown."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from bagel_mot.errors import DataError, EvaluationError
from bagel_mot.evaluation.base import ItemImage
from bagel_mot.evaluation.benchmarks.drawing import THOUGHT_TOKENS
from bagel_mot.evaluation.data import open_input
from bagel_mot.evaluation.judges.base import Judge, JudgeImage, JudgeMessage, JudgeRequest, Judges
from bagel_mot.images import VAE_TRANSFORM

VIT_MIN_SIZE = 378
"""The pixels that a short side is enlarged to before the ViT sees the original image."""


def edit_settings(
    think: bool,
    *,
    cfg_image_scale: float = 1.5,
    cfg_interval: tuple[float, float] = (0.0, 1.0),
    thought_tokens: int = THOUGHT_TOKENS,
) -> dict[str, Any]:
    """Settings of `Bagel.edit` for one item. A thought is sampled at temperature 0.3."""
    settings: dict[str, Any] = {
        "num_timesteps": 50,
        "timestep_shift": 3.0,
        "cfg_text_scale": 4.0,
        "cfg_image_scale": cfg_image_scale,
        "cfg_interval": cfg_interval,
        "cfg_renorm_type": "text_channel",
        "cfg_renorm_min": 0.0,
        "vit_min_size": VIT_MIN_SIZE,
        "think": think,
    }
    if think:
        settings |= {"do_sample": True, "temperature": 0.3, "max_think_tokens": thought_tokens}
    return settings


def size_of_first(images: Sequence[ItemImage]) -> dict[str, Any]:
    """The setting that draws in the size of the first image; none for a single one, whose size is taken anyway."""
    if len(images) < 2:
        return {}
    return {"size": VAE_TRANSFORM.size(*open_input(images[0]).size)}


def chat_of(judges: Judges, title: str) -> Judge:
    """The judge by chat.

    Raises:
        EvaluationError: there is none.
    """
    if judges.chat is None:
        raise EvaluationError(f"{title} is scored by a judge: name a server with --judge URL and --judge-model M.")
    return judges.chat


def drawn(images: Sequence[Path], item: str) -> Path:
    """The one image that was drawn for an item.

    Raises:
        DataError: there are more, or none.
    """
    if len(images) != 1:
        raise DataError(f"item {item} has {len(images)} images: one is scored.")
    return images[0]


def file_bytes(image: ItemImage) -> bytes:
    """The bytes of an image's file, as they are; a PNG of an image that has no file."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, Path):
        return image.read_bytes()
    if callable(data := getattr(image, "data", None)):
        found = data()
        if isinstance(found, bytes):
            return found
    return encoded(image(), "PNG")


def encoded(image: Image.Image, format_: str, **options: Any) -> bytes:
    """The file of an image as RGB."""
    file = io.BytesIO()
    image.convert("RGB").save(file, format_, **options)
    return file.getvalue()


def as_jpeg(image: ItemImage, detail: str | None = None, **options: Any) -> JudgeImage:
    """An image for a judge, as a JPEG file."""
    return JudgeImage(encoded(open_input(image), "JPEG", **options), "image/jpeg", detail)


def user_message(*content: str | JudgeImage) -> tuple[JudgeMessage, ...]:
    return (JudgeMessage("user", content),)


def tried(judge: Judge, request: Callable[[int], JudgeRequest], tries: int) -> str | None:
    """The reply to the first try that does not fail; None if all do."""
    for attempt in range(tries):
        if (reply := judge.complete(request(attempt))) is not None:
            return reply
    return None
