"""Division of a text into thinking and answer while it comes in."""

from __future__ import annotations

from bagel_mot.inference.decode import THINK_CLOSE, THINK_OPEN

Pieces = tuple[str, str]


class Stripped:
    """A text without white space around it, piece by piece: white space at the end so far is held back."""

    def __init__(self) -> None:
        self._held = ""
        self.begun = False

    def add(self, piece: str) -> str:
        text = self._held + piece
        if not self.begun:
            text = text.lstrip()
        kept = text.rstrip()
        self._held = text[len(kept) :]
        self.begun = self.begun or bool(kept)
        return kept


class ThinkingStream:
    """Yields (thinking, answer) for each piece; together they are what `split_thinking` yields for the whole text."""

    def __init__(self) -> None:
        self._held = ""  # may belong to either
        self._opened = self._closed = False
        self._thinking, self._answer = Stripped(), Stripped()

    def add(self, piece: str) -> Pieces:
        if self._closed:
            return "", self._answer.add(piece)
        self._held += piece
        if not self._opened and self._held.lstrip().startswith(THINK_OPEN):
            self._opened = True
            self._held = self._held.lstrip().removeprefix(THINK_OPEN)
        before, closed, after = self._held.partition(THINK_CLOSE)
        if closed:
            self._closed = True
            self._held = ""
            return self._thinking.add(before), self._answer.add(after)
        if not self._opened:  # without an opening tag, only the closing one decides
            return "", ""
        keep = _beginning(self._held, THINK_CLOSE)
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return self._thinking.add(certain), ""

    def finish(self) -> Pieces:
        """The rest, when no piece will follow."""
        rest, self._held = self._held, ""
        if self._opened and not self._closed:
            return self._thinking.add(rest), ""
        return "", rest  # without any tag: as it is


class ThoughtStream:
    """The thinking before an image, where text without tags is thinking, too: the same text as `Result.thinking`."""

    def __init__(self) -> None:
        self._split, self._all, self._joined = ThinkingStream(), Stripped(), False

    def add(self, piece: str) -> str:
        return self._join(self._split.add(piece))

    def finish(self) -> str:
        return self._join(self._split.finish())

    def _join(self, pieces: Pieces) -> str:
        thinking, answer = pieces
        if answer and not self._joined:
            self._joined = True
            answer = f" {answer}"
        return self._all.add(thinking + answer)


def _beginning(text: str, tag: str) -> int:
    """The number of characters at the end of a text that may begin a tag."""
    return next((count for count in range(min(len(tag) - 1, len(text)), 0, -1) if tag.startswith(text[-count:])), 0)
