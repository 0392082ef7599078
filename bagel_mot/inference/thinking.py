"""Thinking and answer told apart, in a whole text or while it comes in, without the tags around the thinking."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bagel_mot.inference.result import Result

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
_TAG = re.compile("</?think>")

Pieces = tuple[str, str]


def split_thinking(text: str, complete: bool = True) -> tuple[str, str]:
    """Divides a text written with thinking into (thinking, answer), without the tags.

    Where the thinking never ends, all is thinking and the answer is empty; where no tag stands, all is the answer.

    Args:
        text: the text as the model wrote it.
        complete: whether it ended by itself. What was cut may end within a tag, and that part is left out, too.
    """
    if not complete:
        text = text[: len(text) - unfinished_tag(text)]
    before, closed, after = text.partition(THINK_CLOSE)
    if not closed and not text.lstrip().startswith(THINK_OPEN):
        return "", without_tags(text)
    return without_tags(before).strip(), without_tags(after).strip()


def split_certain(text: str) -> tuple[str, str]:
    """The thinking and the answer at the beginning of a text that no continuation changes."""
    if THINK_CLOSE not in text and not text.lstrip().startswith(THINK_OPEN):  # only the closing tag will decide
        return "", ""
    return split_thinking(text, complete=False)


def unfinished_tag(text: str) -> int:
    """The number of characters at the end of a text that may be the beginning of a tag."""
    tail = text[text.rfind("<") :] if "<" in text else ""
    return len(tail) if tail and any(tag != tail and tag.startswith(tail) for tag in (THINK_OPEN, THINK_CLOSE)) else 0


def without_tags(text: str) -> str:
    """A text without the tags around its thinking."""
    return _TAG.sub("", text)


class ThinkingStream:
    """Yields (thinking, answer) for each piece; together they are those of the result."""

    def __init__(self) -> None:
        self._text, self._sent = "", ("", "")

    def add(self, piece: str) -> Pieces:
        """The thinking and the answer that are certain since this piece."""
        self._text += piece
        return self._send(split_certain(self._text))

    def finish(self, result: Result) -> Pieces:
        """The rest of a result that is done."""
        return self._send((result.thinking, result.text))

    def _send(self, certain: Pieces) -> Pieces:
        before, self._sent = self._sent, certain
        return certain[0][len(before[0]) :], certain[1][len(before[1]) :]


class ThoughtStream:
    """The thinking before an image, where text without tags is thinking, too: the same text as `Result.thinking`."""

    def __init__(self) -> None:
        self._text, self._sent = "", ""

    def add(self, piece: str) -> str:
        """The thinking that is certain since this piece."""
        self._text += piece
        thinking, answer = split_certain(self._text)
        return self._send(f"{thinking} {answer}".strip())

    def finish(self, result: Result) -> str:
        """The rest of a result that is done."""
        return self._send(result.thinking)

    def _send(self, certain: str) -> str:
        before, self._sent = self._sent, certain
        return certain[len(before) :]
