"""Judges: what they are asked, and the interfaces of those who answer, a chat model by HTTP or a detector of things."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class JudgeImage:
    """An image in a message to a judge: the bytes of a file, and what the message says they are.

    Attributes:
        data: the file's bytes, sent as they are.
        mime: the type that is named, right or wrong, as the published script names it.
        detail: "low", "high" or None, in which case nothing is sent.
    """

    data: bytes
    mime: str = "image/png"
    detail: str | None = None


@dataclass(frozen=True)
class JudgeMessage:
    """One message: its role, and texts and images in order. `plain` sends a lone text as a string, not as a list."""

    role: Literal["system", "user"]
    content: tuple[str | JudgeImage, ...]
    plain: bool = False


@dataclass(frozen=True)
class JudgeRequest:
    """One call of a judge, as chat completions take it. None is not sent.

    Attributes:
        messages: the messages in order.
        model: the judge that the protocol names; the user's choice replaces it.
        temperature, max_tokens, n: the fields of these names in the body.
        extra: further fields of the body, such as {"chat_template_kwargs": {"enable_thinking": False}}.
        attempt: the number of the try of the same question, from 0; each is answered anew.
    """

    messages: tuple[JudgeMessage, ...]
    model: str
    temperature: float | None = None
    max_tokens: int | None = None
    n: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    attempt: int = 0


MOST_DIGITS = 9
"""The digits of a score, at most. A judge that repeats a digit for ever writes more."""


def number_of(digits: str) -> int | None:
    """The number that some digits in a reply are; None for more digits than any score has."""
    return int(digits) if len(digits) <= MOST_DIGITS else None


class Judge(Protocol):
    """Answers questions about texts and images."""

    def complete(self, request: JudgeRequest) -> str | None:
        """The reply, or None if this call failed and another try may not. Raises EvaluationError if none ever will."""
        ...


@runtime_checkable
class TokenJudge(Judge, Protocol):
    """A judge that also tells how likely each of the tokens is that its reply may begin with."""

    def first_token(self, request: JudgeRequest) -> Mapping[str, float] | None:
        """The probability of each of the likeliest first tokens of the reply, by the token's text, 0 to 1.

        The request asks for `logprobs` and `top_logprobs` in its `extra`. None if this call failed and another try may
        not. Raises EvaluationError if the server gives no such numbers.
        """
        ...


@dataclass(frozen=True)
class Detection:
    """A thing that a detector found.

    Attributes:
        label: the class, by the benchmark's name for it.
        score: the confidence, 0 to 1.
        box: left, top, right, bottom in pixels.
        mask: (height, width) bool; None if the detector gives none.
    """

    label: str
    score: float
    box: tuple[float, float, float, float]
    mask: np.ndarray | None = None


class Detector(Protocol):
    """Finds things in images."""

    def detect(self, image: Image.Image) -> Sequence[Detection]:
        """All things found, of any confidence."""
        ...


class Classifier(Protocol):
    """Says which of several texts fits an image best."""

    def probabilities(self, images: Sequence[Image.Image], texts: Sequence[Sequence[str]]) -> np.ndarray:
        """(images, texts) float: for each image the probability of each text. A text is several templates, averaged."""
        ...


@dataclass(frozen=True)
class Judges:
    """The judges of a run. A benchmark that needs one which is None says so before the first item is run."""

    chat: Judge | None = None
    detector: Detector | None = None
    classifier: Classifier | None = None
