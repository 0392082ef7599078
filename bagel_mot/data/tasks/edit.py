"""Editing: sessions of one or two steps, and one image made of several.

A given image comes before the instruction, as an autoencoder's and a ViT's copy; both may be dropped, and so may every
instruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from bagel_mot.data.documents import AnyImage, Document, FramesPart, ImagePart, TextPart
from bagel_mot.data.draws import Draws
from bagel_mot.data.readers.base import Row
from bagel_mot.data.remote import AnyPath
from bagel_mot.data.rows import SkipRow
from bagel_mot.data.tasks.fields import field_of, image_of, images_of, wordings_of

_JOINED = Fraction(1, 2)


def given(image: AnyImage, droppable: bool = True) -> ImagePart:
    """An image that what follows depends on."""
    return ImagePart(image, vae=True, vit=True, droppable=droppable)


@dataclass(frozen=True)
class EditSession:
    """Maps the states of an editing session, and the wordings of each step from one to the next.

    One or two neighbouring steps are drawn. Two steps are, half of the time, joined in one instruction whose target is
    the last of their states. The published rule is kept as it is: where the two steps end in the very last state, the
    joined form takes the first of them alone.

    Only the images and wordings of the steps that are drawn are looked at.

    Attributes:
        states, steps: the names of the fields: a list of images, and a list with one entry a step, which is a wording
            or a list of them.
        folder: the folder that paths of images are relative to.
    """

    states: str = "image_list"
    steps: str = "instruction_list"
    folder: AnyPath | None = None

    def __call__(self, row: Row, draws: Draws) -> Document:
        states, steps = field_of(row, self.states), field_of(row, self.steps)
        for name, value in ((self.states, states), (self.steps, steps)):
            if not isinstance(value, Sequence) or isinstance(value, str | bytes):
                raise SkipRow(f"{name} is no list", f"{name} is a {type(value).__name__}; a list is expected")
        if len(states) < 2:
            raise SkipRow("fewer than two states", f"{name_of(len(states))} in {self.states}; an edit needs two")
        start = draws.below(len(states) - 1)
        end = draws.between(start + 1, min(start + 2, len(states) - 1))

        def image(state: int) -> AnyImage:
            return image_of(states[state], self.folder)

        def wording(step: int) -> str:
            if step >= len(steps):
                raise SkipRow(
                    "a step without wording",
                    f"step {step + 1} has no wording: {self.steps} has {len(steps)} for {len(states)} states",
                )
            return draws.choice(wordings_of(steps[step], f"step {step + 1}"))

        document: list[TextPart | ImagePart | FramesPart] = [given(image(start))]
        if end - start == 2 and draws.chance(_JOINED):
            end -= end == len(states) - 1
            text = "".join(f"{wording(step)}. " for step in range(start, end)).rstrip()
            return [*document, TextPart(text, droppable=True), ImagePart(image(end), target=True)]
        for step in range(start, end):
            last = step + 1 == end
            document.append(TextPart(wording(step), droppable=True))
            document.append(ImagePart(image(step + 1), target=True, vae=not last, vit=not last, droppable=not last))
        return document


def name_of(states: int) -> str:
    """The number of states in words, for messages."""
    return "there is one state" if states == 1 else f"there are {states} states"


@dataclass(frozen=True)
class Compose:
    """Maps one or several given images and an instruction to one image: edits of a pair, or subjects in a new scene.

    Attributes:
        images, instruction, target: the names of the fields; `images` may hold one image or a list, and the
            instruction one wording or a list, of which one is drawn.
        folder: the folder that paths of images are relative to.
        most: the largest number of given images; rows with more are left out.
    """

    images: str = "input_images"
    instruction: str = "instruction"
    target: str = "output_image"
    folder: AnyPath | None = None
    most: int = 8

    def __call__(self, row: Row, draws: Draws) -> Document:
        inputs = images_of(field_of(row, self.images), self.folder)
        if not 0 < len(inputs) <= self.most:
            raise SkipRow(
                "no given image" if not inputs else "too many given images",
                f"{self.images} has {len(inputs)} images; 1 to {self.most} are taken",
            )
        text = draws.choice(wordings_of(field_of(row, self.instruction), "the instruction"))
        targets = images_of(field_of(row, self.target), self.folder)
        if len(targets) != 1:
            raise SkipRow("not one target image", f"{self.target} has {len(targets)} images; one is expected")
        return [*map(given, inputs), TextPart(text, droppable=True), ImagePart(targets[0], target=True)]
