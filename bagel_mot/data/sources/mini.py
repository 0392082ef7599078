"""The image world as a source of training documents."""

from __future__ import annotations

import random
from collections.abc import Mapping

from bagel_mot.data.documents import Document, ImagePart, TextPart
from bagel_mot.worlds.mini.draw import draw
from bagel_mot.worlds.mini.training_examples import Say, Show, sample_example

# Tasks whose images are drawn from conditions that dropout may remove. Where an answer is to be given about a
# image, or a plan follows a prompt, removing the condition would teach guessing.
_DROPPABLE = ("draw", "edit", "chain")
_ONE_COPY = ("chain", "session")  # long documents


class MiniSource:
    """Documents by index, at one image size."""

    def __init__(
        self,
        seed: int,
        *,
        side: int = 64,
        mix: Mapping[str, float] | None = None,
        copies: int = 1,
        unconditional_thinking: float = 0.1,
    ) -> None:
        """
        Args:
            seed: of the whole supply.
            side: pixels of an image's side.
            mix: weight of each task; None for the default.
            copies: noised copies of each target in short documents.
            unconditional_thinking: share of thinking documents that lose prompt and plan together, and of those with
                a given image as many again that lose the image: guidance has its contexts of either alone.
        """
        self.seed, self.side, self.mix, self.copies = seed, side, mix, copies
        self.unconditional_thinking = unconditional_thinking

    def __call__(self, index: int) -> Document:
        rng = random.Random(self.seed * 7_368_787 + index)
        task, parts = sample_example(rng, self.mix)
        if task in ("think_draw", "think_edit"):
            chance = rng.random()
            if chance < self.unconditional_thinking:
                parts = (parts[0], *(part for part in parts[1:] if isinstance(part, Show)))
            elif chance < 2 * self.unconditional_thinking and task == "think_edit":
                # Nothing is to be said about a image that is not there.
                parts = tuple(
                    Say(part.text, False) if isinstance(part, Say) else part
                    for part in parts
                    if isinstance(part, Say) or part.target
                )
        droppable = task in _DROPPABLE
        draws = any(isinstance(part, Show) and part.target for part in parts)
        document: list[TextPart | ImagePart] = []
        for number, part in enumerate(parts):
            if isinstance(part, Say):
                document.append(TextPart(part.text, loss=part.loss, droppable=droppable))
                continue
            followed = number + 1 < len(parts)
            document.append(
                ImagePart(
                    draw(part.scene, self.side),
                    target=part.target,
                    vae=followed and draws,
                    vit=followed,
                    copies=1 if task in _ONE_COPY else self.copies,
                    droppable=droppable,
                )
            )
        return document
