"""Fields of rows as the layouts on disk have them: images in all their forms, texts, and lists of either."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from bagel_mot.data.documents import AnyImage, LazyImage
from bagel_mot.data.readers.base import Row
from bagel_mot.data.remote import AnyPath
from bagel_mot.data.rows import SkipRow

_URL = re.compile(r"(?:https?|ftp|s3|gs|hdfs)://", re.IGNORECASE)
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
_LONGEST_PATH = 4096


def field_of(row: Row, name: str) -> Any:
    """A field of a row.

    Raises:
        SkipRow: the row has none of that name, or it is null.
    """
    if name not in row:
        there = ", ".join(map(str, row)) or "no fields at all"
        raise SkipRow(f"no {name}", f"the row has no {name}; it has {there}")
    if row[name] is None:
        raise SkipRow(f"{name} is null")
    return row[name]


def image_of(value: Any, folder: AnyPath | None = None) -> AnyImage:
    """An image as rows hold it: bytes, {"bytes", "path"}, a path, base64, or an image of Pillow's. Nothing is opened.

    Args:
        value: the field's value.
        folder: the folder that paths are relative to; by default the working directory.

    Raises:
        SkipRow: it is null, a URL, or of another type.
    """
    if isinstance(value, Mapping) and {"bytes", "path"} & value.keys():
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if value is None:
        raise SkipRow("an image is null")
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Image.Image | LazyImage):
        return value
    if isinstance(value, Path):
        return folder / value if folder is not None else value
    if isinstance(value, str):
        return _of_text(value, folder)
    raise SkipRow(
        "an image is of another type",
        f"an image is of the type {type(value).__name__}; bytes, the path of a file, or an object with bytes or path "
        "is expected",
    )


def _of_text(value: str, folder: AnyPath | None) -> AnyImage:
    if _URL.match(value):
        raise SkipRow(
            "an image is a URL", f"the image {value[:200]} is a URL, and URLs are not fetched: download it first"
        )
    if (prefix := _DATA_URL.match(value)) or len(value) > _LONGEST_PATH:
        try:
            return base64.b64decode(value[prefix.end() if prefix else 0 :], validate=True)
        except binascii.Error as error:
            raise SkipRow("an image is no valid base64", f"an image is no valid base64 ({error})") from error
    if not value:
        raise SkipRow("an image has an empty path")
    return Path(value) if folder is None else folder / value


def images_of(value: Any, folder: AnyPath | None = None) -> list[AnyImage]:
    """One or several images: a list, or an image by itself.

    Raises:
        SkipRow: one of them is unusable.
    """
    several = isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview)
    return [image_of(item, folder) for item in value] if several else [image_of(value, folder)]


def text_of(value: Any, what: str) -> str:
    """A text; `what` names it, as in "a caption".

    Raises:
        SkipRow: it is something else.
    """
    if not isinstance(value, str):
        shown = "null" if value is None else f"{value!r:.80}, which is a {type(value).__name__}"
        raise SkipRow(f"{what} is not a text", f"{what} is {shown}; a text is expected")
    return value


def wordings_of(value: Any, what: str) -> list[str]:
    """The wordings of a text, of which one is drawn: a list of them, or the only one by itself.

    Raises:
        SkipRow: there are none, or one is something else.
    """
    if isinstance(value, str):
        return [value]
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise SkipRow(f"{what} is not a text", f"{what} is {value!r:.80}; a text, or a list of wordings, is expected")
    if not value:
        raise SkipRow(f"{what} has no wording")
    return [text_of(item, what) for item in value]


def captions_of_json(value: Any) -> list[str]:
    """The captions in a text of JSON: the values of an object, or the items of a list. An empty object means one
    caption of a blank.

    Raises:
        SkipRow: it is no JSON, or holds something else.
    """
    try:
        content = json.loads(text_of(value, "captions"))
    except (ValueError, RecursionError) as error:
        raise SkipRow("captions are no JSON", f"captions are {value!r:.80}, which is no JSON ({error})") from error
    if not isinstance(content, dict | list):
        raise SkipRow(
            "captions are no JSON object", f"captions are {value!r:.80}; a JSON object with texts is expected"
        )
    if content == {}:
        return [" "]
    return wordings_of(list(content.values()) if isinstance(content, dict) else content, "a caption")
