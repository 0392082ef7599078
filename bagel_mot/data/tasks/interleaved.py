"""Interleaved documents: pages with images, and reasoning in words and images in turn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bagel_mot.data.documents import AnyImage, Document, FramesPart, ImagePart, TextPart
from bagel_mot.data.draws import Draws
from bagel_mot.data.readers.base import Row
from bagel_mot.data.rows import SkipRow
from bagel_mot.data.tasks.edit import given
from bagel_mot.data.tasks.fields import field_of, image_of, text_of, wordings_of
from bagel_mot.prompts import SYSTEM_PROMPT_GENERATE

LEAD_INS = (
    "The next picture shows ",
    "Next comes a picture of ",
    "A fitting picture here would be ",
    "I should now draw ",
    "What follows is an image of ",
    "To go on, I picture ",
    "This calls for an image of ",
    "The page continues with ",
)
"""Openings of the sentence that plans the next image of a page."""


def drawn(image: AnyImage, followed: bool) -> ImagePart:
    """An image to be drawn that what follows depends on, if anything does."""
    return ImagePart(image, target=True, vae=followed, vit=followed)


@dataclass(frozen=True)
class WebPage:
    """Maps a page of images with captions: some neighbouring images, each but the first planned in words and drawn.

    Attributes:
        images, captions: the names of the fields, lists of one length; a caption may be null where none was made.
        texts: the name of the field with the page's text before each image, a list of that length; None where there is
            no such field, and an item may be null.
        fewest, most: the bounds of the number of neighbouring images.
        learnt: the probability that the loss counts for the planning of an image.
        starts_image: whether the model is to learn that an image starts after its planning.
        folder: the folder that paths of images are relative to.
    """

    images: str = "images"
    captions: str = "captions"
    texts: str | None = None
    fewest: int = 2
    most: int = 4
    learnt: float = 0.1
    starts_image: bool = False
    folder: Path | None = None

    def __call__(self, row: Row, draws: Draws) -> Document:
        images, captions = (_list(row, name) for name in (self.images, self.captions))
        texts = [None] * len(images) if self.texts is None else _list(row, self.texts)
        if not len(images) == len(captions) == len(texts):
            raise SkipRow(
                "lists of unequal length",
                f"there are {len(images)} images, {len(captions)} captions and {len(texts)} texts; "
                "there must be one of each for every image",
            )
        if len(images) < self.fewest:
            raise SkipRow(
                "too few images on a page", f"the page has {len(images)} images; {self.fewest} or more are taken"
            )
        count = draws.between(self.fewest, min(self.most, len(images)))
        first = draws.below(len(images) - count + 1)
        document: list[TextPart | ImagePart | FramesPart] = [given(image_of(images[first], self.folder))]
        for number in range(first + 1, first + count):
            if texts[number]:
                document.append(TextPart(text_of(texts[number], "the page's text"), droppable=True))
            caption = text_of(captions[number], "a caption").strip()
            plan = f"<think>\n{draws.choice(LEAD_INS)}{caption}\n</think>"
            document.append(TextPart(plan, loss=draws.chance(self.learnt), starts_image=self.starts_image))
            document.append(drawn(image_of(images[number], self.folder), number + 1 < first + count))
        return document


@dataclass(frozen=True)
class ReasoningSteps:
    """Maps a given image and an instruction to thoughts and images in turn, all of them to be learnt.

    Attributes:
        images: the name of the field with all images: the given one, then those that are drawn.
        instructions: the name of the field with the instruction, or a list whose first entry is it.
        thoughts: the name of the field with the texts: one before each image that is drawn, and perhaps a last one.
        system: the text that comes first; none if it is empty.
        starts_image: whether the model is to learn that an image starts after its thought.
        folder: the folder that paths of images are relative to.
    """

    images: str = "image_list"
    instructions: str = "instruction_list"
    thoughts: str = "output_text_list"
    system: str = SYSTEM_PROMPT_GENERATE
    starts_image: bool = True
    folder: Path | None = None

    def __call__(self, row: Row, draws: Draws) -> Document:
        images, thoughts = _list(row, self.images), _list(row, self.thoughts)
        if not images or len(thoughts) not in (len(images) - 1, len(images)) or not thoughts:
            raise SkipRow(
                "thoughts do not fit the images",
                f"there are {len(images)} images and {len(thoughts)} thoughts; "
                "there must be a given image and one more for each thought, or for all but the last",
            )
        asked = field_of(row, self.instructions)
        first = asked if isinstance(asked, str) or not isinstance(asked, Sequence) or not asked else asked[0]
        wordings = wordings_of(first, "the instruction")
        document: list[TextPart | ImagePart | FramesPart] = [TextPart(self.system)] if self.system else []
        document += [given(image_of(images[0], self.folder), droppable=False), TextPart(draws.choice(wordings))]
        for number, thought in enumerate(thoughts, 1):
            draws_one = number < len(images)
            text = text_of(thought, "a thought")
            document.append(TextPart(text, loss=True, starts_image=draws_one and self.starts_image))
            if draws_one:
                document.append(drawn(image_of(images[number], self.folder), number < len(thoughts)))
        return document


@dataclass(frozen=True)
class ReasoningTrace:
    """Maps a question and a trace of words with marks for images, as one text each, and a final answer.

    The images of the question are for understanding alone; those of the trace are drawn. A mark names the field with
    its image.

    Attributes:
        question, trace, answer: the names of the fields; the answer may be missing.
        mark: the pattern of a mark, whose first group is the name of the field with the image.
        closing: the words between the trace and the answer.
        starts_image: whether the model is to learn that an image starts after the words before it.
        folder: the folder that paths of images are relative to.
    """

    question: str = "Question"
    trace: str = "Text Reasoning Trace"
    answer: str = "Final Answer"
    mark: str = r"<image_start>\[(\w+)\]<image_end>"
    closing: str = " Final Answer: "
    starts_image: bool = True
    folder: Path | None = None

    def __call__(self, row: Row, draws: Draws) -> Document:
        document: list[TextPart | ImagePart | FramesPart] = []
        for text, image in self._pieces(row, field_of(row, self.question), "the question"):
            document.append(TextPart(text) if image is None else ImagePart(image, vit=True))
        pieces = self._pieces(row, field_of(row, self.trace), "the trace")
        if row.get(self.answer) is not None:
            end = f"{self.closing}{text_of(row[self.answer], 'the answer')}"
            if pieces and pieces[-1][1] is None:
                pieces[-1] = pieces[-1][0] + end, None
            else:
                pieces.append((end.strip(), None))
        if not pieces:
            raise SkipRow("the trace is empty")
        for number, (text, image) in enumerate(pieces):
            last = number + 1 == len(pieces)
            if image is not None:
                document.append(drawn(image, not last))
            else:
                before_image = not last and pieces[number + 1][1] is not None
                document.append(TextPart(text, loss=True, starts_image=before_image and self.starts_image))
        return document

    def _pieces(self, row: Row, value: object, what: str) -> list[tuple[str, AnyImage | None]]:
        """(text, None) and ("", image) in turn; texts are stripped, and empty ones left out."""
        found: list[tuple[str, AnyImage | None]] = []
        for number, piece in enumerate(re.split(self.mark, text_of(value, what))):
            if number % 2:
                found.append(("", image_of(field_of(row, piece), self.folder)))
            elif stripped := piece.strip():
                found.append((stripped, None))
        return found


def _list(row: Row, name: str) -> Sequence[object]:
    value = field_of(row, name)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise SkipRow(f"{name} is no list", f"{name} is a {type(value).__name__}; a list is expected")
    return value
