"""Opening images: any source to a new RGB image, turned upright, over white, within a limit of pixels."""

from __future__ import annotations

import os
import re
from typing import IO, Any

import numpy as np
from PIL import Image

from bagel_mot.errors import ImageError
from bagel_mot.files import is_lfs_pointer, user_path
from bagel_mot.images import formats
from bagel_mot.images.color import levels_of, to_rgb

ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | np.ndarray

MAX_IMAGE_PIXELS = 89_478_485  # 1 GiB / 4 / 3 bytes a pixel: Pillow's own threshold for a decompression bomb

_URL = re.compile(r"(?:https?|ftp|s3|gs|file|data):", re.IGNORECASE)  # a path object has only one slash left
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(source: ImageSource, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Opens an image as a new, fully decoded RGB image: turned upright by its EXIF orientation, in sRGB, alpha over
    white.

    Args:
        source: a path, the bytes of an image file, a binary file object (read from its start), a Pillow image, or an
            array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8 or of floats in 0..1. Of an animation the first
            frame is taken.
        max_pixels: images with more pixels are refused before they are decoded; of JPEG files those with more than 8
            times as many (2 times if progressive), the rest being decoded at 1/2, 1/4 or 1/8 of their sides. Pillow
            itself never opens other files with more than twice `PIL.Image.MAX_IMAGE_PIXELS`.

    Raises:
        ImageError: if the image is missing, unreadable, truncated, empty, too large, or of an unsupported type.
    """
    if isinstance(source, Image.Image):
        name, image = "the picture", source
        formats.check_size(image.size, name, max_pixels)
        formats.load(image, name)
    elif isinstance(source, np.ndarray):
        name, image = "the array", _from_array(source)
        formats.check_size(image.size, name, max_pixels)
    else:
        name, data = _read(source)
        image = formats.decode(data, name, max_pixels)
    try:
        turn = _TURNS.get(_orientation(image))
        rgb = to_rgb(image, name, shared=not isinstance(source, Image.Image))  # nobody else has what is decoded here
        return rgb if turn is None else rgb.transpose(turn)
    except ImageError:
        raise
    except Exception as error:  # Pillow raises many types on damaged palettes and the like
        raise ImageError(f"{name} is damaged and cannot be converted to RGB ({error}): save it anew.") from error


def _read(source: Any) -> tuple[str, bytes]:
    """The name of a source in messages, and its bytes."""
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        return f"the picture of {len(data)} bytes", data
    if isinstance(source, str | os.PathLike):
        return _read_path(os.fspath(source))
    if hasattr(source, "read"):
        return _read_file(source)
    raise ImageError(
        f"a picture cannot be a {type(source).__name__}: "
        "give a path, bytes, a binary file, a PIL image or a NumPy array."
    )


def _read_path(path: str) -> tuple[str, bytes]:
    shown = path if len(path) <= 200 else f"{path[:200]}…"
    name = f"the picture {shown!r}"
    try:
        with open(user_path(path), "rb") as file:
            data = file.read()
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        if _URL.match(str(path)):
            raise ImageError(
                f"{name} is a URL, and URLs are not fetched: download the picture and give its path or its bytes."
            ) from error
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise ImageError(f"{name} cannot be read ({reason}): give the path of a picture file.") from error
    if is_lfs_pointer(data):
        raise ImageError(f"{name} is a Git LFS pointer, not the picture itself: run git lfs pull.")
    return name, data


def _read_file(file: Any) -> tuple[str, bytes]:
    try:
        if file.seekable():
            file.seek(0)
        data = file.read()
    except Exception as error:  # whatever a file-like object of any library raises
        raise ImageError(f"the picture's file cannot be read ({error}): give one that is open for reading.") from error
    if not isinstance(data, bytes | bytearray):
        raise ImageError("the picture's file is open as text: open it with mode 'rb'.")
    return f"the picture of {len(data)} bytes", bytes(data)


def _from_array(array: np.ndarray) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    floats = array.dtype.kind == "f"
    if not (array.dtype == np.uint8 or floats) or array.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise ImageError(
            f"an array of shape {array.shape} and dtype {array.dtype} is not a picture: "
            "give uint8 or floats in 0..1 of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)."
        )
    if 0 in array.shape:
        raise ImageError(f"the array of shape {array.shape} is empty: a picture needs at least one pixel.")
    levels = levels_of(array, "the array") if floats else array
    return Image.fromarray(np.ascontiguousarray(levels[:, :, 0] if array.ndim == 3 and channels == 1 else levels))


def _orientation(image: Image.Image) -> int:
    if image.format == "JXL" and not getattr(image, "jpeg", False):
        return 1  # JPEG XL has an orientation of its own, which is applied; EXIF counts in the JPEG files it may hold
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata is no reason to refuse the pixels
        return 1
