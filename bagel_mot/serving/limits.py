"""What one request may ask for, and what is said to one that asks for more."""

from __future__ import annotations

from dataclasses import dataclass

from bagel_mot.errors import BagelError
from bagel_mot.tokenizer import SPECIAL_TOKENS


class BusyError(BagelError):
    """Too many requests are waiting: try again later.

    Attributes:
        retry_after: seconds after which it may be worth while.
    """

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ClosedError(BusyError):
    """The service is shutting down: try again later, or elsewhere."""


class LimitError(BagelError):
    """A request asks for more than this service gives to one, or more than its memory holds."""


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and how many may wait.

    Attributes:
        queue: most requests in all, at work and waiting.
        images: most images given in one request.
        items: most texts and images given in one request; each costs time beside its tokens.
        image_pixels: most pixels of an image given, before it is resized.
        text_characters: most characters of all texts given.
        stop_characters: most characters of all stop texts.
        n: most results for one prompt.
        timesteps: most `num_timesteps`.
        new_tokens: most tokens written, thinking included. Where a request says nothing, this is the limit, too.
    """

    queue: int = 64
    images: int = 8
    items: int = 512
    image_pixels: int = 32_000_000
    text_characters: int = 32_768
    stop_characters: int = 1024
    n: int = 8
    timesteps: int = 250
    new_tokens: int = 4096


def without_special_tokens(text: str) -> str:
    """A text without special tokens written out, by which strangers could end a turn or begin an image."""
    found = True
    while found:  # what is left of two may be one again
        found = False
        for token in SPECIAL_TOKENS:
            if token in text:
                text, found = text.replace(token, ""), True
    return text
