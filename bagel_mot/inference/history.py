"""The texts and images that a request or a session has read, drawn and written, and the guidance contexts of them."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from bagel_mot.inference.request import GIVEN, IMAGES, Kind
from bagel_mot.inference.sampler import Role
from bagel_mot.model.cache import Chunk, Context
from bagel_mot.sequence import Segment, VaeSegment


@dataclass(frozen=True, eq=False)
class Turn:
    """One text or image of a conversation.

    Attributes:
        kind: "system" (the prompt for thinking), "text" and "image" (given), "thought", "answer" and "drawing"
            (generated).
        content: the text, or the image as it was before any resizing.
        segments: the segments in the context that hold it.
    """

    kind: Kind
    content: str | Image.Image
    segments: tuple[Segment, ...]


class History:
    """Turns and the context that holds them. Copies share the cache.

    Attributes:
        turns: the turns, oldest first.
        context: keys and values of all turns.
        keeps_growing: whether more turns will follow, as in a session.
        without_image: the cached context for image guidance, if it keeps growing; the next image extends it instead of
            reading the texts again.
    """

    def __init__(self, context: Context, *, keeps_growing: bool = False) -> None:
        self.turns: tuple[Turn, ...] = ()
        self.context, self.keeps_growing = context, keeps_growing
        self.without_image: Context | None = None

    def copy(self, turns: int | None = None) -> History:
        """The same history, or its first `turns` turns; nothing is computed or copied."""
        kept = self.turns if turns is None else self.turns[:turns]
        other = History(self.context.fork(len(_segments(kept))), keeps_growing=self.keeps_growing)
        other.turns, other.without_image = kept, self.without_image
        return other

    @property
    def chunks(self) -> set[Chunk]:
        """The chunks of cache that it keeps alive."""
        return self.context.chunks | (set() if self.without_image is None else self.without_image.chunks)

    @property
    def last_grid(self) -> tuple[int, int] | None:
        """(rows, columns) of latent tokens of the last image that was read as VAE image; None without one."""
        grids = [segment.grid for segment in _segments(self.turns) if isinstance(segment, VaeSegment)]
        return grids[-1] if grids else None

    def guidance(self) -> dict[Role, tuple[Segment, ...]]:
        """The segments of each guidance context.

        *Without text* is the full context just before the latest text given, or, where the last thing given or drawn is
        an image, just after it. *Without image* is the system prompt, the texts given and the answers. Thoughts about
        the image to be drawn come last and are part of the full context alone; those about earlier images are part of
        the one without text, too.
        """
        relevant = [i for i, turn in enumerate(self.turns) if turn.kind in GIVEN + IMAGES]
        before = 0
        if relevant:
            last = relevant[-1]
            before = last + 1 if self.turns[last].kind in IMAGES else last
        texts = tuple(turn for turn in self.turns if turn.kind in ("system", "text", "answer"))
        return {
            Role.FULL: _segments(self.turns),
            Role.WITHOUT_TEXT: _segments(self.turns[:before]),
            Role.WITHOUT_IMAGE: _segments(texts),
        }

    def closest(self, segments: tuple[Segment, ...]) -> tuple[Context, tuple[Segment, ...]]:
        """A fork of the known context that shares most with `segments`, and the segments that it lacks."""
        known = [self.context] if self.without_image is None else [self.context, self.without_image]
        best = max(known, key=lambda context: context.shared_entries(segments))
        shared = best.shared_entries(segments)
        return best.fork(shared), segments[shared:]


def _segments(turns: tuple[Turn, ...]) -> tuple[Segment, ...]:
    return tuple(segment for turn in turns for segment in turn.segments)
