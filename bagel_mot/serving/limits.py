"""Limits of one request, and the errors for requests that exceed them."""

from __future__ import annotations

from dataclasses import dataclass

from bagel_mot.errors import BagelError, PromptError
from bagel_mot.tokenizer import SPECIAL_TOKENS


class BusyError(BagelError):
    """Too many requests are waiting: try again later.

    Attributes:
        retry_after: seconds after which to try again.
    """

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ClosedError(BusyError):
    """The service is shutting down: try again later, or elsewhere."""


class LimitError(BagelError):
    """A request asks for more than this service gives to one, or more than its memory holds.

    Attributes:
        setting: the name of the setting that asks for too much, if it is one.
    """

    def __init__(self, message: str, setting: str | None = None) -> None:
        super().__init__(message)
        self.setting = setting


class InputError(BagelError):
    """One of the texts and images of a request cannot be used.

    Attributes:
        number: its place among them, counted from 0.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


@dataclass(frozen=True)
class Limits:
    """Limits of each request, and of how many may wait.

    Attributes:
        queue: maximum number of requests at work and waiting.
        images: maximum number of input images.
        items: maximum number of input texts and images; each costs time beside its tokens.
        image_pixels: maximum number of pixels of an input image, before it is resized.
        text_characters: maximum number of characters of all input texts.
        stop_characters: maximum number of characters of all stop texts.
        n: maximum number of results for one prompt.
        timesteps: maximum `num_timesteps`.
        new_tokens: maximum number of tokens written, thinking included; also where a request names none.
    """

    queue: int = 64
    images: int = 8
    items: int = 512
    image_pixels: int = 52_000_000
    text_characters: int = 32_768
    stop_characters: int = 1024
    n: int = 8
    timesteps: int = 250
    new_tokens: int = 4096


def without_special_tokens(text: str) -> str:
    """Removes special tokens that are written out, with which strangers could end a turn or begin an image."""
    found = True
    while found:  # the ends of two may form another one
        found = False
        for token in SPECIAL_TOKENS:
            if token in text:
                text, found = text.replace(token, ""), True
    return text


def clean_text(text: str) -> str:
    """A stranger's text without its special tokens.

    Raises:
        PromptError: nothing else was in it.
    """
    left = without_special_tokens(text)
    if text.strip() and not left.strip():
        raise PromptError(
            f"the text is {text[:60]!r}: special tokens are removed, and nothing is left of it; write something that "
            "the model can go by."
        )
    return left
