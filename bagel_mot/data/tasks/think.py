"""Thinking: a thought in words, to be learnt, before an image is drawn or a question is answered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bagel_mot.data.documents import Document, FramesPart, ImagePart, TextPart
from bagel_mot.data.draws import Draws
from bagel_mot.data.readers.base import Row
from bagel_mot.data.rows import SkipRow
from bagel_mot.data.tasks.edit import given
from bagel_mot.data.tasks.fields import field_of, image_of, images_of, text_of, wordings_of
from bagel_mot.prompts import SYSTEM_PROMPT_GENERATE, SYSTEM_PROMPT_UNDERSTAND

_OPEN, _CLOSE = "<think>", "</think>"


def thought_of(text: str) -> str:
    """A thought in its tags, as the model writes it; one that has them already stays as it is."""
    return text if _OPEN in text else f"{_OPEN}{text}{_CLOSE}"


@dataclass(frozen=True)
class Thinking:
    """Maps a question or prompt, a thought, and the image or the answer that follows from it.

    The system prompt comes first, as inference puts it, then given images, the question, the thought, and the image or
    answer. No condition may be dropped: guidance at inference compares with contexts that have the thought.

    Attributes:
        images: the name of the field with given images, one or a list; None where there are none.
        question: the name of the field with the question or prompt, one wording or a list.
        thought: the name of the field with the thought; rows without one are left out.
        target: the name of the field with the image to be drawn; None where an answer is to be given.
        answer: the name of the field with the answer, where no image is drawn.
        learnt: the probability that the loss counts for the thought.
        starts_image: whether the model is to learn that the image starts after the thought.
        folder: the folder that paths of images are relative to.
    """

    images: str | None = None
    question: str = "question"
    thought: str = "thought"
    target: str | None = "image"
    answer: str = "answer"
    learnt: float = 1.0
    starts_image: bool = False
    folder: Path | None = None

    def __call__(self, row: Row, draws: Draws) -> Document:
        draw = self.target is not None
        document: list[TextPart | ImagePart | FramesPart] = [
            TextPart(SYSTEM_PROMPT_GENERATE if draw else SYSTEM_PROMPT_UNDERSTAND)
        ]
        if self.images is not None and row.get(self.images) is not None:
            for image in images_of(row[self.images], self.folder):
                document.append(given(image, droppable=False) if draw else ImagePart(image, vit=True))
        document.append(TextPart(draws.choice(wordings_of(field_of(row, self.question), "the question"))))
        thought = text_of(field_of(row, self.thought), "the thought").strip()
        if not thought:
            raise SkipRow("a thought is empty")
        if self.target is None:
            answer = text_of(field_of(row, self.answer), "the answer").strip()
            return [*document, TextPart(f"{thought_of(thought)} {answer}", loss=True)]
        learnt = draws.chance(self.learnt)
        document.append(TextPart(thought_of(thought), loss=learnt, starts_image=self.starts_image))
        return [*document, ImagePart(image_of(field_of(row, self.target), self.folder), target=True)]
