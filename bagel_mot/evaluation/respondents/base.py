"""Who answers the items of a benchmark: a model in this process, or a server."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from bagel_mot.errors import BagelError, ContextLengthError, EvaluationError, ImageError, PromptError, SizeError
from bagel_mot.evaluation.base import Item, ItemImage, ItemResult

Answered = ItemResult | BagelError
# Errors that are about one item: the others can still be answered.
ITEM_ERRORS = (ImageError, PromptError, SizeError, ContextLengthError)


class StoppedError(EvaluationError):
    """Nothing can be answered any more.

    Attributes:
        outcomes: the outcomes of the items, as far as they were had; None for each of the others.
    """

    def __init__(self, sentence: str, outcomes: Sequence[Answered | None]) -> None:
        super().__init__(sentence)
        self.outcomes = outcomes


class Respondent(Protocol):
    """Answers items.

    Attributes:
        facts: the model and its settings, as JSON, for the head of the records.
    """

    facts: Mapping[str, Any]

    def answer(self, items: Sequence[Item], folder: Path) -> Sequence[Answered]:
        """The result of each item, or the error that is about this item alone.

        Args:
            items: the items, which run together.
            folder: the folder of drawn images.

        Raises: BagelError if nothing can be answered any more; a StoppedError holds what was answered before.
        """
        ...


def one_by_one(answer: Callable[[Sequence[Item]], Sequence[ItemResult]], items: Sequence[Item]) -> list[Answered]:
    """The outcomes of `answer` for the items together; if one of them cannot be answered, each is tried alone."""
    try:
        return list(answer(items))
    except ITEM_ERRORS as error:
        if len(items) == 1:
            return [error]
        return [outcome for item in items for outcome in one_by_one(answer, [item])]


def fitting(item: Item, longest: int | None) -> Item:
    """The item without `vit_min_size` where the model never looks at so many pixels, as small models do not.

    Args:
        item: the item.
        longest: the longest side, in pixels, at which the model looks at an image; None leaves the item as it is.
    """
    least = item.settings.get("vit_min_size")
    if least is None or longest is None or least <= longest:
        return item
    return replace(item, settings={name: v for name, v in item.settings.items() if name != "vit_min_size"})


def drawn_paths(item: Item) -> list[Path]:
    """The files of an item's drawn images, below the folder of images: those that it names, or made from its id."""
    if item.outputs:
        return [Path(output) for output in item.outputs]
    if len(item.seeds) == 1:
        return [Path(f"{item.id}.png")]
    return [Path(item.id) / f"{number:05d}.png" for number in range(len(item.seeds))]


def opened(image: ItemImage) -> Image.Image | Path | bytes:
    """An input as `Bagel` takes it."""
    return image() if callable(image) else image


def content(image: ItemImage) -> bytes:
    """The bytes of an input's file; an image that is made is written as a PNG.

    Raises: ImageError if the file cannot be read.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, Path):
        try:
            return image.read_bytes()
        except OSError as error:
            raise ImageError(f"{image} cannot be read ({error.strerror or error}).") from error
    buffer = io.BytesIO()
    image().save(buffer, format="PNG")
    return buffer.getvalue()
