"""The toy world as a source of training data, drawn on the fly."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic.dataclasses import dataclass

from bagel_mot.config import Count, NotNegative, Share
from bagel_mot.data.documents import Document, ImagePart, TextPart
from bagel_mot.data.sheets import captioned, most_lines, sheet_of
from bagel_mot.data.sources.base import IndexedSource, SourceConfig
from bagel_mot.files import write_atomically, write_text
from bagel_mot.scope import Scope, words_of
from bagel_mot.worlds.mini.captions import caption
from bagel_mot.worlds.mini.draw import background, draw, draw_array, scale_of
from bagel_mot.worlds.mini.edits import sample_edit
from bagel_mot.worlds.mini.questions import questions
from bagel_mot.worlds.mini.sampling import sample_scene
from bagel_mot.worlds.mini.scene import KINDS, MAX_THINGS, WORLD
from bagel_mot.worlds.mini.training_examples import Say, Show, corpus, sample_example

# Tasks whose images are drawn from conditions that dropout may remove. Where an answer is to be given about an
# image, or a plan follows a prompt, removing the condition would teach guessing.
_DROPPABLE = ("draw", "edit", "chain")
_ONE_COPY = ("chain", "session")  # long documents
_TOKENIZER_TEXTS = 60_000
_PROMPTS, _EDITS, _QUESTIONS = 10, 5, 10


@dataclass(frozen=True)
class MiniConfig(SourceConfig):
    """The toy world's images and documents.

    Attributes:
        side: the pixels of an image's side.
        mix: the weight of each task; its default if None.
        target_copies: noised copies of each target in short documents, each at its own timestep.
        unconditional_thinking: the share of thinking documents that lose prompt and plan together, and of those with
            a given image as many again that lose the image: guidance has its contexts of either alone.
    """

    kind: Literal["mini"] = "mini"
    side: Count = WORLD
    mix: dict[str, NotNegative] | None = None
    target_copies: Count = 1
    unconditional_thinking: Share = 0.1

    def __post_init__(self) -> None:
        scale_of(self.side)  # the world itself says what it can draw
        sample_example(random.Random(0), self.mix)

    def open(self, seed: int) -> MiniSource:
        return MiniSource(self, seed)


class MiniSource(IndexedSource):
    """The toy world, at one image size."""

    name = "mini"

    def __init__(self, config: MiniConfig, seed: int) -> None:
        self.config, self.seed = config, seed

    def __call__(self, index: int) -> Document:
        """The document of an index."""
        rng = random.Random(self.seed * 7_368_787 + index)
        task, parts = sample_example(rng, self.config.mix)
        if task in ("think_draw", "think_edit"):
            chance, share = rng.random(), self.config.unconditional_thinking
            if chance < share:
                parts = (parts[0], *(part for part in parts[1:] if isinstance(part, Show)))
            elif chance < 2 * share and task == "think_edit":
                # Nothing is to be said about an image that is not there.
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
                    draw(part.scene, self.config.side),
                    target=part.target,
                    vae=followed and draws,
                    vit=followed,
                    copies=1 if task in _ONE_COPY else self.config.target_copies,
                    droppable=droppable,
                )
            )
        return document

    def texts(self) -> Iterator[str]:
        """Texts as they occur in all kinds of documents."""
        return corpus(_TOKENIZER_TEXTS, self.seed)

    def images(self, rng: random.Random, count: int) -> np.ndarray:
        """Images of random scenes, uint8 (count, side, side, 3)."""
        return np.stack([draw_array(sample_scene(rng), self.config.side) for _ in range(count)])

    def masked_images(self, rng: random.Random, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Images, uint8 (count, side, side, 3), every second one with as many things as there can be, and the pixels
        where a thing is, bool (count, side, side): things fill a small part of an image and hold most of what it says.
        """
        scenes = [sample_scene(rng, things=MAX_THINGS if number % 2 else None) for number in range(count)]
        images = np.stack([draw_array(scene, self.config.side) for scene in scenes])
        empty = np.stack([np.asarray(background(scene.background, self.config.side)) for scene in scenes])
        return images, (images != empty).any(axis=3)

    def preview_images(self, side: int) -> Image.Image | None:
        """A sheet of 8 × 8 images of random scenes; None for a side at which no scene can be drawn."""
        if side % WORLD:
            return None
        rng = random.Random(0)
        return sheet_of([[draw(sample_scene(rng), side) for _ in range(8)] for _ in range(8)])

    def scope(self) -> Scope:
        """The toy world in a few words, and all words of its texts."""
        about = f"English, and a toy world of {self.config.side}×{self.config.side} images: {', '.join(KINDS)}"
        return Scope(about, tuple(sorted({word for text in self.texts() for word in words_of(text)})))

    def write_samples(self, bagel: Any, path: Path) -> None:
        """Writes a PNG sheet of captions drawn and scenes edited, and answers to questions beside it as JSON."""
        rng, side = random.Random(0), self.config.side
        prompts = [caption(sample_scene(rng), rng) for _ in range(_PROMPTS)]
        cells = list(zip(bagel.generate(prompts, seed=list(range(_PROMPTS)), num_timesteps=25), prompts, strict=True))
        before: list[Image.Image] = []
        instructions: list[str] = []
        for _ in range(_EDITS):
            scene = sample_scene(rng)
            before.append(draw(scene, side))
            instructions.append(sample_edit(scene, rng).instruction)
        after = bagel.edit(before, instructions, seed=list(range(_EDITS)), num_timesteps=25)
        for image, edited, instruction in zip(before, after, instructions, strict=True):
            cells += [(image, ""), (edited, instruction)]
        scenes = [sample_scene(rng) for _ in range(_QUESTIONS)]
        asked = [questions(scene, rng, 1)[0] for scene in scenes]
        answers = bagel.ask([draw(s, side) for s in scenes], [qa.question for qa in asked], max_new_tokens=16)
        lines = most_lines(text for _, text in cells)
        rows = [[captioned(*cell, lines) for cell in cells[start : start + 10]] for start in range(0, len(cells), 10)]
        write_atomically(path, sheet_of(rows).save)
        report = [
            {"question": qa.question, "right": qa.answer, "said": said} for qa, said in zip(asked, answers, strict=True)
        ]
        write_text(path.with_suffix(".json"), json.dumps(report, indent=1))
