"""Images in and out of HTTP: data URIs, base64, file formats."""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any, Literal

from PIL import Image

from bagel_mot.errors import ImageError
from bagel_mot.inference.result import png_info

Format = Literal["png", "jpeg", "webp"]


def from_data_uri(uri: str) -> bytes:
    """The bytes of an image file.

    Raises:
        ImageError: it is not the data URI of an image in base64.
    """
    head, comma, data = uri.partition(",")
    scheme, _, kind = head.partition(":")
    if not comma or scheme.lower() != "data" or not kind.lower().endswith(";base64"):
        raise ImageError(f"the picture's address begins with {uri[:24]!r}: it must be data:image/png;base64,….")
    if not kind.lower().startswith("image/"):
        raise ImageError(f"the data URI is of type {kind[:40]!r}: it must be that of a picture, such as image/png.")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: not even ASCII
        raise ImageError("the data URI of a picture is not valid base64: encode the whole file.") from error


def to_base64(image: Image.Image, form: Format = "png", quality: int = 100) -> str:
    """An image file in base64; a PNG also keeps the metadata in `image.info`.

    Args:
        image: the image, RGB.
        form: the format of the file.
        quality: the quality of JPEG and WebP, up to 100.
    """
    options: dict[str, Any] = {"pnginfo": png_info(image)} if form == "png" else {"quality": quality}
    file = io.BytesIO()
    image.save(file, format=form.upper(), **options)
    return base64.b64encode(file.getvalue()).decode()


def to_data_uri(image: Image.Image) -> str:
    """A PNG file as a data URI."""
    return f"data:image/png;base64,{to_base64(image)}"
