"""What a request or a session has read, drawn and written so far, and the guidance contexts that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from PIL import Image

from bagel_mot.inference.sampler import Role
from bagel_mot.model.cache import Chunk, Context
from bagel_mot.sequence import Segment

Kind = Literal["system", "text", "image", "thought", "answer", "drawing"]
GIVEN: tuple[Kind, ...] = ("text", "image")
IMAGES: tuple[Kind, ...] = ("image", "drawing")


@dataclass(frozen=True, eq=False)
class Turn:
    """One thing said or shown.

    Attributes:
        kind: "system" (the prompt for thinking), "text" and "image" (given), "thought", "answer" and "drawing"
            (generated).
        content: the text, or the image as it was before any resizing.
        segments: as which it stands in the context.
    """

    kind: Kind
    content: str | Image.Image
    segments: tuple[Segment, ...]


class History:
    """Turns and the context that holds them. Copies share the cache.

    Attributes:
        turns: in order.
        context: all of them as keys and values.
        lasting: whether more turns will follow, as in a session.
        text_only: in a lasting one the without-image context of the last image drawn: the next one goes on from it.
    """

    def __init__(self, context: Context, *, lasting: bool = False) -> None:
        self.turns: tuple[Turn, ...] = ()
        self.context, self.lasting = context, lasting
        self.text_only: Context | None = None

    def copy(self, turns: int | None = None) -> History:
        """The same history, or its first `turns` turns; nothing is computed or copied."""
        kept = self.turns if turns is None else self.turns[:turns]
        other = History(self.context.fork(_entries(kept)), lasting=self.lasting)
        other.turns, other.text_only = kept, self.text_only
        return other

    def append(self, turn: Turn) -> None:
        """Notes a turn whose segments have just become part of the context."""
        self.turns = (*self.turns, turn)

    @property
    def chunks(self) -> set[Chunk]:
        """The memory of the cache that it keeps."""
        return self.context.chunks | (set() if self.text_only is None else self.text_only.chunks)

    @property
    def has_image(self) -> bool:
        return any(turn.kind in IMAGES for turn in self.turns)

    def guidance(self) -> dict[Role, tuple[Segment, ...]]:
        """The segments of each guidance context.

        *Without text* is the full context just before the latest text given, or, where the last thing given or drawn is
        an image, just after it. *Without image* is the system prompt, the texts given and the answers. Thoughts about
        the image to be drawn come last and stand in the full context alone; those about earlier images stand in
        the one without text, too.
        """
        relevant = [i for i, turn in enumerate(self.turns) if turn.kind in GIVEN + IMAGES]
        before = 0
        if relevant:
            last = relevant[-1]
            before = last + 1 if self.turns[last].kind in IMAGES else last
        texts = [turn for turn in self.turns if turn.kind in ("system", "text", "answer")]
        return {
            Role.FULL: _segments(self.turns),
            Role.WITHOUT_TEXT: _segments(self.turns[:before]),
            Role.WITHOUT_IMAGE: _segments(texts),
        }

    def closest(self, segments: tuple[Segment, ...]) -> tuple[Context, tuple[Segment, ...]]:
        """A fork of the known context that shares most with `segments`, and the segments that it lacks."""
        known = [self.context] if self.text_only is None else [self.context, self.text_only]
        best = max(known, key=lambda context: context.shared_entries(segments))
        shared = best.shared_entries(segments)
        return best.fork(shared), segments[shared:]


def _segments(turns: tuple[Turn, ...] | list[Turn]) -> tuple[Segment, ...]:
    return tuple(segment for turn in turns for segment in turn.segments)


def _entries(turns: tuple[Turn, ...]) -> int:
    return sum(len(turn.segments) for turn in turns)
