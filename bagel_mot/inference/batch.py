"""From the arguments of `generate`, `edit` and `ask` to one list of inputs and one set of settings for each request."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bagel_mot.errors import BagelError, PromptError, SettingError
from bagel_mot.inference.settings import per_request


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


@contextmanager
def naming(what: str, index: int, count: int) -> Iterator[None]:
    """Lets errors say which of `count` requests (or what else they are) they are about, where there are several: a
    `BagelError` in its message, any other one in a note.
    """
    try:
        yield
    except Exception as error:
        if count > 1:
            place = f"{what} {index + 1} of {count} (index {index})"
            if isinstance(error, BagelError):
                error.args = (f"{place}: {error}", *error.args[1:])
            else:
                error.add_note(f"This was {place}.")
        raise


def check_stream(on_text: object, return_result: bool) -> None:
    """Checks that nothing is asked for that does not go with stream=True.

    Raises:
        SettingError: something is.
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
        PromptError: a prompt is not a text.
    """
    if _is_list(prompt):
        return [[text] for text in _texts(prompt)], False
    return [[_text(prompt)]], True


def pair(image: Any, text: Any) -> tuple[list[list[Any]], bool]:
    """Inputs of each request, images first, for images and texts given one by one or as lists.

    Raises:
        PromptError: a text is something else, or the lists differ in length.
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
