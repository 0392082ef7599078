"""Video generation: frames of a clip to be drawn, all together, in groups, or one by one with a text before each.

Frames are autoencoder's copies alone, no ViT sees them. Those of a group see one another, share one timestep, and are
as many rotary positions apart as their numbers in the clip say. Later groups see earlier ones clean, which is what is
called diffusion forcing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Literal

from bagel_mot.data.documents import Document, FramesPart, ImagePart, TextPart
from bagel_mot.data.draws import Draws
from bagel_mot.data.readers.base import Row
from bagel_mot.data.remote import AnyPath, place_of
from bagel_mot.data.rows import SkipRow
from bagel_mot.data.tasks.clips import Clip, choose_clip
from bagel_mot.data.tasks.fields import field_of, images_of, text_of, wordings_of
from bagel_mot.data.tasks.frames import FrameSampler

_FOUR = FrameSampler(4, 4)


def group_bounds(frames: int, draws: Draws) -> list[int]:
    """The bounds of random groups of neighbouring frames: 0, …, `frames`. Every way to group them is equally
    probable.
    """
    return [0, *(n for n in range(1, frames) if draws.chance(Fraction(1, 2))), frames]


@dataclass(frozen=True)
class VideoGeneration:
    """Maps a clip with a caption to frames to be drawn.

    Attributes:
        video: the name of the field with a video file, or a folder of frames; or with a list of images, all of which
            are taken.
        caption: the name of the field with the caption, one wording or a list; it may be dropped.
        changes: the name of the field with a text for each frame but the first, which says what changes; None where
            there is no such field. It comes before its frame, may be dropped, and needs all frames of the clip, so the
            clip is a list or a folder with as many.
        groups: "one", all frames noised together; or "random", groups of neighbours.
        given: the number of first frames that are given and not drawn.
        sampler: the choice of frames of a video.
        folder: the folder that paths are relative to.
    """

    video: str = "video"
    caption: str = "caption"
    changes: str | None = None
    groups: Literal["one", "random"] = "one"
    given: int = 0
    sampler: FrameSampler = _FOUR
    folder: AnyPath | None = None

    def __call__(self, row: Row, draws: Draws) -> Document:
        clip = self._clip(row, draws)
        if len(clip.frames) <= self.given:
            raise SkipRow(
                "a clip is too short",
                f"the clip has {len(clip.frames)} frames and {self.given} of them are given; none is left to be drawn",
            )
        caption = draws.choice(wordings_of(field_of(row, self.caption), "the caption"))
        document: list[TextPart | ImagePart | FramesPart] = [TextPart(caption, droppable=True)]
        changes = self._changes(row, len(clip.frames))
        if changes:
            bounds = list(range(self.given, len(clip.frames) + 1))
        elif self.groups == "random":
            bounds = [self.given + bound for bound in group_bounds(len(clip.frames) - self.given, draws)]
        else:
            bounds = [self.given, len(clip.frames)]
        if self.given:
            document.append(_group(clip, 0, self.given, target=False))
        for first, last in pairwise(bounds):
            if changes and first:
                document.append(TextPart(changes[first - 1], droppable=True))
            document.append(_group(clip, first, last, target=True))
        return document

    def _clip(self, row: Row, draws: Draws) -> Clip:
        value = field_of(row, self.video)
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            frames = images_of(value, self.folder)
            return Clip(tuple(frames), tuple(range(len(frames))))
        name = text_of(value, self.video)
        clip = choose_clip(place_of(name) if self.folder is None else self.folder / name, self.sampler, draws)
        # A clip that is shorter than wanted repeats its last frame, which nothing is to be learnt from.
        once = dict(zip(clip.numbers, clip.frames, strict=True))
        return Clip(tuple(once.values()), tuple(once))

    def _changes(self, row: Row, frames: int) -> list[str]:
        if self.changes is None:
            return []
        texts = field_of(row, self.changes)
        if not isinstance(texts, Sequence) or isinstance(texts, str) or len(texts) != frames - 1:
            found = len(texts) if isinstance(texts, Sequence) else texts
            raise SkipRow(
                "texts do not fit the frames",
                f"{self.changes} has {found} texts for {frames} frames; there must be one for each frame but the first",
            )
        return [text_of(text, "the text of a change") for text in texts]


def _group(clip: Clip, first: int, last: int, target: bool) -> FramesPart:
    followed = last < len(clip.frames)
    return FramesPart(
        clip.frames[first:last],
        clip.numbers[first:last],
        target=target,
        vae=followed,
        droppable=True,
        following=clip.numbers[last] if followed else None,
    )
