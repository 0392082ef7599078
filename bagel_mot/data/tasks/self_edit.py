"""Edits made of single images: the image is spoiled, and the edit is to undo that.

They cost nothing and need no pairs: colourise, upscale, deblur, zoom, outpaint and inpaint. What is given is made from
the image once the sample is; nothing is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageFilter

from bagel_mot.data.documents import AnyImage, Document, ImagePart, LazyImage, Opener, TextPart, opened
from bagel_mot.data.draws import Draws
from bagel_mot.data.readers.base import Row
from bagel_mot.data.tasks.edit import given
from bagel_mot.data.tasks.fields import field_of, image_of
from bagel_mot.errors import SettingError, did_you_mean

Box = tuple[int, int, int, int]  # left, top, right, bottom, in percent of the sides

_FILLING = (128, 128, 128)
_BICUBIC = Image.Resampling.BICUBIC


def _in_pixels(box: Box, image: Image.Image) -> Box:
    """A box in pixels of an image, at least one wide and high."""
    left, top, right, bottom = box
    width, height = image.size
    x, y = left * width // 100, top * height // 100
    return x, y, max(right * width // 100, x + 1), max(bottom * height // 100, y + 1)


def _grayed(image: Image.Image, _: None) -> Image.Image:
    return image.convert("L").convert("RGB")


def _smaller(image: Image.Image, percent: int) -> Image.Image:
    """Details are lost: the image at a part of its size, and again at its own."""
    width, height = (max(side * percent // 100, 1) for side in image.size)
    return image.resize((width, height), _BICUBIC).resize(image.size, _BICUBIC)


def _blurred(image: Image.Image, percent: int) -> Image.Image:
    """Blurred by a radius in thousandths of the short side."""
    return image.filter(ImageFilter.GaussianBlur(max(min(image.size) * percent / 1000, 0.5)))


def _zoomed(image: Image.Image, box: Box) -> Image.Image:
    return image.resize(image.size, _BICUBIC, box=_in_pixels(box, image))


def _cropped(image: Image.Image, box: Box) -> Image.Image:
    """The box alone, on gray."""
    canvas = Image.new("RGB", image.size, _FILLING)
    pixels = _in_pixels(box, image)
    canvas.paste(image.crop(pixels), pixels[:2])
    return canvas


def _covered(image: Image.Image, box: Box) -> Image.Image:
    """Gray in the box."""
    covered = image.copy()
    covered.paste(_FILLING, _in_pixels(box, image))
    return covered


@dataclass(frozen=True)
class ChangedImage(LazyImage):
    """An image after a change.

    Attributes:
        image: the image as it is.
        change: a function of the image and `amount`.
        amount: the strength of the change, or its box.
    """

    image: AnyImage
    change: Callable[[Image.Image, Any], Image.Image]
    amount: Any = None

    def make(self, opener: Opener) -> Image.Image:
        return self.change(opened(self.image, opener), self.amount)


@dataclass(frozen=True)
class _Undoing:
    """A kind of edit.

    Attributes:
        change: makes the given image, or for a zoom the image to be drawn.
        amount: draws what the change needs.
        wordings: the instructions, in which `{0}` … `{3}` are the sides of a box.
    """

    change: Callable[[Image.Image, Any], Image.Image]
    amount: Callable[[Draws], Any]
    wordings: tuple[str, ...]
    of_target: bool = False


def _box(draws: Draws, least: int, most: int) -> Box:
    """A box whose sides are a part of the image's, in percent, in steps of five."""
    width, height = (5 * draws.between(least // 5, most // 5) for _ in range(2))
    left, top = 5 * draws.below((100 - width) // 5 + 1), 5 * draws.below((100 - height) // 5 + 1)
    return left, top, left + width, top + height


KINDS: dict[str, _Undoing] = {
    "colourise": _Undoing(
        _grayed,
        lambda draws: None,
        ("Give this black-and-white photo its colours.", "Colourise the picture.", "Paint it in natural colours."),
    ),
    "upscale": _Undoing(
        _smaller,
        lambda draws: draws.between(25, 50),
        ("Bring out the fine details.", "Make this low-resolution picture sharp.", "Upscale the image."),
    ),
    "deblur": _Undoing(
        _blurred,
        lambda draws: draws.between(10, 40),
        ("Remove the blur.", "Put the picture into focus.", "Make the blurred image clear."),
    ),
    "zoom": _Undoing(
        _zoomed,
        lambda draws: _box(draws, 30, 60),
        (
            "Zoom in on the box from {0}% to {2}% of the width and {1}% to {3}% of the height.",
            "Enlarge the part between {0}% and {2}% from the left and {1}% and {3}% from the top.",
        ),
        of_target=True,
    ),
    "outpaint": _Undoing(
        _cropped,
        lambda draws: _box(draws, 50, 80),
        ("Continue the picture into the gray border.", "Paint what lies around it.", "Extend the image on all sides."),
    ),
    "inpaint": _Undoing(
        _covered,
        lambda draws: _box(draws, 20, 50),
        ("Fill in the gray box.", "Paint what the gray area hides.", "Complete the covered part of the picture."),
    ),
}


@dataclass(frozen=True)
class SelfEdit:
    """Maps a single image to an edit that undoes a change of it, or zooms into it.

    Attributes:
        image: the name of the field.
        kinds: the kinds of edits, of which one is drawn for each row.
        folder: the folder that paths of images are relative to.
    """

    image: str = "image"
    kinds: tuple[str, ...] = tuple(KINDS)
    folder: Path | None = None

    def __post_init__(self) -> None:
        for kind in self.kinds or ("",):
            if kind not in KINDS:
                raise SettingError(f"{kind!r} is not a kind of self-supervised edit; {did_you_mean(kind, KINDS)}")

    def __call__(self, row: Row, draws: Draws) -> Document:
        image = image_of(field_of(row, self.image), self.folder)
        kind = KINDS[draws.choice(self.kinds)]
        amount = kind.amount(draws)
        text = draws.choice(kind.wordings).format(*(amount if isinstance(amount, tuple) else ()))
        changed = ChangedImage(image, kind.change, amount)
        before, after = (image, changed) if kind.of_target else (changed, image)
        return [given(before), TextPart(text, droppable=True), ImagePart(after, target=True)]
