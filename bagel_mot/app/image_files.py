"""Images in and out of the page: uploads opened with limits, results as PNG files that say how they were made."""

from __future__ import annotations

import io
import json
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder
from PIL import Image

from bagel_mot.errors import ImageError, SettingError
from bagel_mot.images import open_image, png
from bagel_mot.inference.result import save_image
from bagel_mot.inference.settings import SETTINGS, parse_settings
from bagel_mot.serving.service import Service
from bagel_mot.task import Task
from bagel_mot.worlds.mini.draw import draw
from bagel_mot.worlds.mini.scene import WORLD, Scene, Thing

MAX_UPLOAD = "32mb"
"""Maximum size of one file."""
_MAX_EXAMPLE = 512  # pixels

GalleryValue = Sequence[tuple[str, str | None]] | None
"""The value of Gradio's Gallery: files and captions."""


def uploaded(path: str) -> str:
    """Checks a path that a browser gave, which could be that of any file here: it must lie where the page keeps its
    own.

    Raises:
        ImageError: it does not.
    """
    if not Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve()):
        raise ImageError("the picture was not uploaded to this page: upload it.")
    return path


def open_uploads(paths: Sequence[str], service: Service) -> list[Image.Image]:
    """Uploaded images as the model will see them. They are read first, so that no error names where they lie.

    Raises:
        LimitError: there are too many.
        ImageError: one of them cannot be used; the message says which.
    """
    service.check_images(len(paths))  # before any is decoded
    images = []
    for path in paths:
        with named(Path(path).name):
            images.append(service.reduced(_read(path)))
    return images


@contextmanager
def named(name: str) -> Iterator[None]:
    """Lets errors about an image name its file."""
    try:
        yield
    except ImageError as error:
        words = re.sub(r"^(?:the picture of \d+ bytes|the uploaded picture|the picture) ", "", str(error))
        raise ImageError(f"{name} {words}" if words != str(error) else f"{name}: {error}") from error


def paths_of(gallery: GalleryValue) -> list[str]:
    """The files of a gallery."""
    return [path for path, _ in gallery or ()]


def keep(image: Image.Image, name: str) -> str:
    """Writes an image where the page may show it from; the path's last part is the name of a download."""
    path = Path(get_upload_folder()) / secrets.token_hex(16) / f"{name}.png"
    save_image(image, path)
    return str(path)


def open_kept(path: str, max_pixels: int) -> Image.Image:
    """An image that `keep` wrote, with what it says of how it was made.

    Raises:
        ImageError: it is gone, or was never the page's.
    """
    data = _read(path)
    image = open_image(data, max_pixels)
    image.info = {name: text for name, text in _texts(data).items()}  # noqa: C416 - its keys are of a wider type
    return image


def example_image(side: int) -> str:
    """The file of a red car below a yellow sun, about `side` pixels wide and high."""
    scene = Scene("grass", (Thing("sun", "yellow", "medium", "top right"), Thing("car", "red", "large", "bottom left")))
    return keep(draw(scene, max(min(side, _MAX_EXAMPLE) // WORLD, 1) * WORLD), "car-and-sun")


def read_metadata(path: str, task: Task, max_pixels: int) -> tuple[str, dict[str, Any]]:
    """The prompt and the settings that an image's file names.

    Raises:
        ImageError: it cannot be opened, or names none.
        SettingError: a value in it does not fit its setting.
    """
    data = _read(path)
    open_image(data, max_pixels)  # refuses what is damaged or too large
    found = _texts(data)
    if "prompt" not in found or "settings" not in found:
        raise ImageError("the picture does not say how it was made: give a PNG file as it was downloaded from here.")
    return found["prompt"], known_settings(found["settings"], found.get("seed"), task)


def known_settings(settings: str, seed: str | None, task: Task) -> dict[str, Any]:
    """Settings that were stored as JSON, and the seed; those that this version or the task does not have are left out.

    Raises:
        SettingError: a value does not fit its setting.
    """
    try:
        stored = {**json.loads(settings)}
        number = None if seed is None else int(seed)
    except (ValueError, TypeError) as error:
        raise SettingError("the settings that the picture names are damaged: take another one.") from error
    known = {name: value for name, value in stored.items() if name in SETTINGS and task in SETTINGS[name].tasks}
    return parse_settings(task, {**known, "seed": number})


def _texts(data: bytes) -> dict[str, str]:
    """The texts in a PNG file's metadata; none where they are damaged, which costs only them."""
    if not data.startswith(png.SIGNATURE):
        return {}
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
            return {str(name): value for name, value in image.info.items() if isinstance(value, str)}
    except Exception:  # Pillow raises many types on damaged metadata
        return {}


def _read(path: str) -> bytes:
    try:
        return Path(uploaded(path)).read_bytes()
    except OSError as error:
        raise ImageError(f"the uploaded picture cannot be read ({error.strerror}): upload it anew.") from error
