"""Conversations: questions about images or a video, with answers to be learnt."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bagel_mot.data.documents import AnyImage, Document, FramesPart, ImagePart, TextPart
from bagel_mot.data.draws import Draws
from bagel_mot.data.readers.base import Row
from bagel_mot.data.remote import AnyPath, place_of
from bagel_mot.data.rows import SkipRow
from bagel_mot.data.tasks.clips import choose_clip
from bagel_mot.data.tasks.fields import field_of, images_of, text_of
from bagel_mot.data.tasks.frames import FrameSampler

_SYSTEM = "system"


@dataclass(frozen=True)
class Conversation:
    """Maps turns of a conversation, and the images, or the video, that they are about.

    A human turn is cut at its image marks, where the images come in order; answers are to be learnt. In a row without
    any mark the images come before the first human words. Nothing may be dropped. All images of a row share the budget
    of pixels.

    The published way cuts other rows to fit: of images or marks that are more than the others the last ones are left
    out, and so are turns of other roles. Where the map is `exact`, such rows are left out, and what the system says is
    given.

    Attributes:
        turns: the name of the field with the turns, a list of objects.
        role, value: the names of a turn's fields.
        human, gpt: the roles of either side.
        image, video: the names of the fields with the images and with the video; an image comes first.
        image_mark, video_mark: the marks in human turns.
        folder: the folder that paths are relative to.
        sampler: the choice of a video's frames; rows with a video are left out if there is none.
        exact: whether a row must have a mark for each image, or none at all, and turns of known roles alone.
    """

    turns: str = "conversations"
    role: str = "from"
    value: str = "value"
    human: tuple[str, ...] = ("human",)
    gpt: tuple[str, ...] = ("gpt",)
    image: str = "image"
    video: str = "video"
    image_mark: str = "<image>"
    video_mark: str = "<video>"
    folder: AnyPath | None = None
    sampler: FrameSampler | None = None
    exact: bool = False

    def __call__(self, row: Row, draws: Draws) -> Document:
        turns = self._turns(row)
        if row.get(self.image) is not None:
            images = images_of(row[self.image], self.folder)
        elif row.get(self.video) is not None:
            images, turns = self._frames(text_of(row[self.video], self.video), turns, draws)
        else:
            images = []
        if images and not any(self.image_mark in text for role, text in turns if role in self.human):
            turns = self._with_marks(turns, len(images))
        if self.exact:
            self._check(turns, len(images))
        document: list[TextPart | ImagePart | FramesPart] = []
        left = deque(images)
        for role, text in turns:
            if role in self.human and self.image_mark in text:
                pieces = text.split(self.image_mark)
                for number, piece in enumerate(pieces):
                    if stripped := piece.strip():
                        document.append(TextPart(stripped))
                    # Marks beyond the number of images are dropped, those of each turn and those of all turns.
                    if number < min(len(pieces) - 1, len(images)) and left:
                        document.append(ImagePart(left.popleft(), vit=True, share=len(images)))
            elif text and (self.exact or role in self.human or role in self.gpt):
                document.append(TextPart(text, loss=role in self.gpt))
        if not any(isinstance(part, TextPart) and part.loss for part in document):
            raise SkipRow("no text with loss", f"no turn of {' or '.join(self.gpt)} has a text, so nothing is learnt")
        return document

    def _check(self, turns: list[tuple[str, str]], images: int) -> None:
        """Checks that nothing of a row would be passed over."""
        known = (*self.human, *self.gpt, _SYSTEM)
        if others := [role for role, _ in turns if role not in known]:
            raise SkipRow("a turn has another role", f"a turn is by {others[0]!r}; there are {', '.join(known)}")
        marks = sum(text.count(self.image_mark) for role, text in turns if role in self.human)
        if marks != images:
            raise SkipRow(
                "marks do not fit the images",
                f"the marks {self.image_mark} in the turns are {marks}, and the images {images}; a mark for each image "
                "is expected, or none at all",
            )

    def _with_marks(self, turns: list[tuple[str, str]], count: int) -> list[tuple[str, str]]:
        """Turns with so many image marks before the first human words, where a row has images and no mark at all."""
        first = next((number for number, (role, _) in enumerate(turns) if role in self.human), None)
        if first is None:
            return turns
        role, text = turns[first]
        return [*turns[:first], (role, self.image_mark * count + text), *turns[first + 1 :]]

    def _turns(self, row: Row) -> list[tuple[str, str]]:
        """(role, text) of each turn."""
        turns = field_of(row, self.turns)
        if not isinstance(turns, Sequence) or isinstance(turns, str):
            raise SkipRow(f"{self.turns} is no list", f"{self.turns} is {turns!r:.80}; a list of turns is expected")
        return [self._turn(turn) for turn in turns]

    def _turn(self, turn: Any) -> tuple[str, str]:
        if not isinstance(turn, Mapping) or self.role not in turn or self.value not in turn:
            raise SkipRow(
                "a turn is malformed",
                f"a turn is {turn!r:.80}; an object with {self.role} and {self.value} is expected",
            )
        return str(turn[self.role]), text_of(turn[self.value], f"the {self.value} of a turn")

    def _frames(
        self, name: str, turns: list[tuple[str, str]], draws: Draws
    ) -> tuple[list[AnyImage], list[tuple[str, str]]]:
        """The frames of a video, and the turns with as many image marks in place of the first video mark."""
        found = [n for n, (role, text) in enumerate(turns) if role in self.human and self.video_mark in text]
        if not found:
            raise SkipRow(
                f"no {self.video_mark} mark", f"the row has the video {name}, but no human turn has {self.video_mark}"
            )
        if self.sampler is None:
            raise SkipRow(
                "a video without frame_sampler_args",
                f"the row has the video {name}, but the data set does not say how many frames to take",
            )
        path = place_of(name) if self.folder is None else self.folder / name
        clip = choose_clip(path, self.sampler, draws, True if name.endswith("/") else None)
        marked = found[0]
        role, text = turns[marked]
        text = text.replace(self.video_mark, self.image_mark * len(clip.frames))
        return list(clip.frames), [*turns[:marked], (role, text), *turns[marked + 1 :]]
