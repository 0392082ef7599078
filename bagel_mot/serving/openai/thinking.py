"""Division of a text into thinking and answer while it comes in."""

from __future__ import annotations

from bagel_mot.inference.decode import THINK_CLOSE, THINK_OPEN, split_thinking

Pieces = tuple[str, str]


class ThinkingStream:
    """Yields (thinking, answer) for each piece; together they are what `split_thinking` yields for the whole text."""

    def __init__(self) -> None:
        self._text, self._sent = "", ("", "")

    def add(self, piece: str) -> Pieces:
        """The thinking and the answer that are certain since this piece."""
        self._text += piece
        return self._send(_certain(self._text))

    def finish(self) -> Pieces:
        """The rest, when no piece will follow."""
        return self._send(split_thinking(self._text))

    def _send(self, certain: Pieces) -> Pieces:
        before, self._sent = self._sent, certain
        return certain[0][len(before[0]) :], certain[1][len(before[1]) :]


class ThoughtStream:
    """The thinking before an image, where text without tags is thinking, too: the same text as `Result.thinking`."""

    def __init__(self) -> None:
        self._stream, self._thinking, self._answer, self._sent = ThinkingStream(), "", "", ""

    def add(self, piece: str) -> str:
        """The thinking that is certain since this piece."""
        return self._join(self._stream.add(piece))

    def finish(self) -> str:
        """The rest, when no piece will follow."""
        return self._join(self._stream.finish())

    def _join(self, pieces: Pieces) -> str:
        self._thinking, self._answer = self._thinking + pieces[0], self._answer + pieces[1]
        before, self._sent = self._sent, f"{self._thinking} {self._answer}".strip()
        return self._sent[len(before) :]


def _certain(text: str) -> Pieces:
    """The thinking and the answer at the beginning of a text that no continuation changes."""
    if THINK_CLOSE in text:
        return split_thinking(text)
    if not text.lstrip().startswith(THINK_OPEN):  # only the closing tag will decide
        return "", ""
    most = min(len(THINK_CLOSE) - 1, len(text))
    held = next((n for n in range(most, 0, -1) if THINK_CLOSE.startswith(text[-n:])), 0)  # may begin the closing tag
    return split_thinking(text[: len(text) - held])
