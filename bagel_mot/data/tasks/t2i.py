"""Text to image: a caption, and the image to be drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bagel_mot.data.documents import Document, ImagePart, TextPart
from bagel_mot.data.draws import Draws
from bagel_mot.data.readers.base import Row
from bagel_mot.data.tasks.fields import captions_of_json, field_of, image_of, wordings_of

plain_captions = partial(wordings_of, what="a caption")
"""Reads captions that are a text, or a list of texts."""


@dataclass(frozen=True)
class TextToImage:
    """Maps an image with captions, of which one is drawn.

    Attributes:
        image, captions: the names of the fields.
        read: gives the captions in the field's value.
        folder: the folder that paths of images are relative to.
        copies: the number of noised copies of the image, each at its own timestep.
    """

    image: str = "image"
    captions: str = "captions"
    read: Callable[[Any], list[str]] = captions_of_json
    folder: Path | None = None
    copies: int = 1

    def __call__(self, row: Row, draws: Draws) -> Document:
        image = image_of(field_of(row, self.image), self.folder)
        caption = draws.choice(self.read(field_of(row, self.captions)))
        return [TextPart(caption, droppable=True), ImagePart(image, target=True, copies=self.copies)]
