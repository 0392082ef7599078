"""Sheets of images with their texts, for people to look at."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from PIL import Image, ImageDraw

_SHOWN = 128  # pixels of an image on a sheet
_CHARACTERS, _LINE = 22, 11  # of the text below it: in a line, and pixels from one line to the next


def most_lines(texts: Iterable[str]) -> int:
    """The number of lines of the longest text below an image."""
    return max((len(textwrap.wrap(text, _CHARACTERS)) for text in texts), default=0)


def captioned(image: Image.Image, text: str, lines: int) -> Image.Image:
    """An image above its text, which is broken between words, with room for so many lines. Small images are enlarged by
    whole pixels.
    """
    cell = Image.new("RGB", (_SHOWN + 4, _SHOWN + 2 + _LINE * lines), "white")
    small = max(image.size) <= _SHOWN
    scale = _SHOWN / max(image.size)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    cell.paste(image.resize(size, Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS), (0, 0))
    for number, line in enumerate(textwrap.wrap(text, _CHARACTERS)):
        ImageDraw.Draw(cell).text((2, _SHOWN + 2 + _LINE * number), line, fill="black")
    return cell


def sheet_of(rows: list[list[Image.Image]]) -> Image.Image:
    """Images of one size side by side, row by row."""
    width, height = rows[0][0].size
    sheet = Image.new("RGB", (max(map(len, rows)) * width, len(rows) * height), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            sheet.paste(image, (x * width, y * height))
    return sheet
