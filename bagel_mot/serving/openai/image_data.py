"""Images in and out of HTTP: data URIs, base64, file formats."""

from __future__ import annotations

import base64
import io
import re
from typing import Any, Literal
from urllib.parse import unquote_to_bytes

from PIL import Image

from bagel_mot.errors import ImageError
from bagel_mot.inference.result import png_info

Format = Literal["png", "jpeg", "webp"]


_BASE64 = re.compile(r";\s*base64\s*$", re.IGNORECASE)
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]")
_WHITE_SPACE = b"\t\n\f\r "
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def from_data_uri(uri: str) -> bytes:
    """The bytes behind a data URI, whatever type it names: the bytes say that themselves.

    It is read as browsers do: percent-decoded, and base64 by the WHATWG's forgiving rule (white space anywhere, padding
    optional), in its URL-safe alphabet as well.

    Raises:
        ImageError: it is no data URI, is empty, or is not base64 where it says so.
    """
    head, comma, data = uri.partition(",")
    if not comma or head[:5].lower() != "data:":
        raise ImageError(f"the picture's address begins with {uri[:24]!r}: it must be data:image/png;base64,….")
    raw = unquote_to_bytes(data) if "%" in data else data.encode("latin-1", "replace")
    found = forgiving_base64(raw) if _BASE64.search(head) else raw
    if not found:
        raise ImageError("the data URI of a picture is empty: put the file's bytes behind its comma.")
    return found


def forgiving_base64(data: bytes) -> bytes:
    """Decodes base64 with white space anywhere, with or without padding, in either alphabet.

    Raises:
        ImageError: it is not base64.
    """
    data = data.translate(_URL_SAFE, delete=_WHITE_SPACE)
    if len(data) % 4 == 0:
        data = data[:-2] + data[-2:].replace(b"=", b"") if data.endswith(b"=") else data
    wrong = _NOT_BASE64.search(data)
    if wrong:
        raise ImageError(
            f"the picture is not valid base64: its character {wrong.start()} is {wrong[0].decode('latin-1')!r}, where "
            "letters, digits, + and / may stand."
        )
    if len(data) % 4 == 1:
        raise ImageError(f"the picture's base64 has {len(data)} characters, and its last byte is cut: send it whole.")
    return base64.b64decode(data + b"=" * (-len(data) % 4))


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
