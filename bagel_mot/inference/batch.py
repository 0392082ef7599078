"""From the arguments of `generate`, `edit` and `ask` to one list of inputs and one set of settings for each request."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bagel_mot.errors import BagelError, PromptError, SettingError
from bagel_mot.images import open_image
from bagel_mot.inference.requests import Item
from bagel_mot.inference.settings import per_request
from bagel_mot.inference.tasks import Order


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


@contextmanager
def naming(what: str, index: int, count: int) -> Iterator[None]:
    """Lets errors say which of `count` requests (or what else they are) they are about, where there are several."""
    try:
        yield
    except Exception as error:
        if count == 1:
            raise
        place = f"{what} {index + 1} of {count} (index {index})"
        if isinstance(error, BagelError):
            raise type(error)(f"{place}: {error}") from error
        error.add_note(f"This was {place}.")
        raise


def check_stream(on_text: object, return_result: bool) -> None:
    """
    Raises:
        SettingError: something was asked for that does not go with stream=True.
    """
    if on_text is not None or return_result:
        name = "return_result" if on_text is None else "on_text"
        raise SettingError(f"{name} is given together with stream=True, which hands out the pieces itself: leave one.")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise PromptError(f"a text is needed, not {value!r}.")
    return value


def as_batch(prompt: Any) -> tuple[list[list[Any]], bool]:
    """Inputs of each request for a prompt or a list of prompts, and whether there is just one.

    Raises:
        PromptError: a prompt is no text.
    """
    if _is_list(prompt):
        return [[text] for text in _texts(prompt)], False
    return [[_text(prompt)]], True


def pair(image: Any, text: Any) -> tuple[list[list[Any]], bool]:
    """Inputs of each request, images first, for images and texts given one by one or as lists.

    Raises:
        PromptError: a text is none, or the lists differ in length.
    """
    if _is_list(text):
        images = image if _is_list(image) else [image] * len(text)
        if len(images) != len(text):
            raise PromptError(
                f"there are {len(text)} texts but {len(images)} pictures: give each its picture, or list of pictures."
            )
        text, single = _texts(text), False
    else:
        single = not (_is_list(image) and any(_is_list(element) for element in image))
        images = [image] if single else image
        text = [_text(text)] * len(images)
    return [[*_images(element), own] for element, own in zip(images, text, strict=True)], single


def _texts(values: Sequence[Any]) -> list[str]:
    texts = []
    for index, value in enumerate(values):
        with naming("request", index, len(values)):
            texts.append(_text(value))
    return texts


def _images(image: Any) -> list[Any]:
    """The images of one request. A path given as `str` becomes a `Path`: in a list of inputs a `str` is a text."""
    if image is None:
        return []
    return [Path(one) if isinstance(one, str | os.PathLike) else one for one in (image if _is_list(image) else [image])]


def spread(
    inputs: list[list[Any]], settings: dict[str, Any], single: bool
) -> tuple[list[list[Any]], list[dict[str, Any]], bool]:
    """Settings for each request; a single request with lists of settings becomes a batch.

    Raises:
        SettingError: a list of settings is empty, or has another length than the batch.
    """
    lists = {name: found for name, value in settings.items() if (found := per_request(name, value)) is not None}
    if single and lists:
        name, values = next(iter(lists.items()))
        if not values:
            raise SettingError(f"{name} is an empty list: give one value, or one for each request.")
        inputs = inputs * len(values)
        single = False
    for name, values in lists.items():
        if len(values) != len(inputs):
            raise SettingError(f"{name} is a list of {len(values)}: the batch has {len(inputs)} requests.")
    own = [{**settings, **{name: values[i] for name, values in lists.items()}} for i in range(len(inputs))]
    return inputs, own, single


def opener() -> Callable[[list[Any]], list[Any]]:
    """A function that returns the same inputs with their images opened, one that serves several requests only once.

    The function raises:
        ImageError: an image cannot be used.
    """
    opened: dict[int, tuple[Any, Any]] = {}  # with the image as given: as long as that lives its id is its own

    def once(value: Any) -> Any:
        if isinstance(value, str):
            return value
        if id(value) not in opened:
            opened[id(value)] = value, open_image(value)
        return opened[id(value)][1]

    return lambda inputs: [once(value) for value in inputs]


def with_progress(
    prepared: Sequence[tuple[list[Item], Order]], progress: Callable[[int, int], None]
) -> list[tuple[list[Item], Order]]:
    """The same orders, telling `progress` of the denoising steps of all of them together."""
    total = sum(order.settings.num_timesteps - 1 for _, order in prepared)
    done = 0

    def on_step(step: int, steps: int) -> None:
        nonlocal done
        done += 1
        progress(done, total)

    return [(items, dataclasses.replace(order, on_step=on_step)) for items, order in prepared]
