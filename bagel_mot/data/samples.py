"""Samples of a model: it draws, edits and answers what some documents would teach it, for people to look at."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from bagel_mot.data.dataset import Dataset
from bagel_mot.data.documents import Document, ImagePart, ImageRules, TextPart, opened
from bagel_mot.data.draws import RandomDraws
from bagel_mot.data.rows import SkipRow
from bagel_mot.data.sheets import captioned, most_lines, sheet_of
from bagel_mot.files import write_atomically, write_text

_TRIED = 20  # rows for each one that is shown


@dataclass(frozen=True)
class Prompt:
    """The beginning of a document, up to the first part that is to be learnt.

    Attributes:
        text: its texts.
        images: its images, as they are.
        wanted: the image that follows, or the text.
    """

    text: str
    images: tuple[Image.Image, ...]
    wanted: Image.Image | str


def prompt_of(document: Document, rules: ImageRules) -> Prompt | None:
    """The prompt of a document; None where nothing is learnt, or nothing is asked.

    Raises:
        SkipRow: an image is damaged.
    """
    texts: list[str] = []
    images: list[Image.Image] = []
    for part in document:
        if isinstance(part, TextPart):
            if part.loss:
                return Prompt(" ".join(texts), tuple(images), part.text) if texts else None
            texts.append(part.text)
        elif isinstance(part, ImagePart):
            image = opened(part.image, rules.opener)
            if part.target:
                return Prompt(" ".join(texts), tuple(images), image) if " ".join(texts).strip() else None
            images.append(image)
    return None


def prompts_of(datasets: Sequence[Dataset], count: int) -> list[Prompt]:
    """The prompts of the first usable rows of data sets, taken in turn."""
    found: list[Prompt] = []
    streams = [_prompts(dataset, count) for dataset in datasets]
    while streams and len(found) < count:
        for stream in list(streams):
            if (prompt := next(stream, None)) is None:
                streams.remove(stream)
            elif len(found) < count:
                found.append(prompt)
    return found


def _prompts(dataset: Dataset, count: int) -> Iterator[Prompt]:
    rows = (row for unit in range(len(dataset.reader.units())) for _, row in dataset.rows(unit))
    for number, row in enumerate(islice(rows, _TRIED * count)):
        try:
            prompt = prompt_of(dataset.document(row, RandomDraws(random.Random(f"sample {number}"))), dataset.images)
        except SkipRow:
            continue
        if prompt is not None:
            yield prompt


def write_prompt_samples(bagel: Any, prompts: Sequence[Prompt], path: Path) -> None:
    """Writes a PNG sheet: in each row the images that are given, what the model draws, and the image that was wanted.
    Answers go beside it as JSON, each with the text that was wanted.

    Args:
        bagel: the model, as `Bagel.from_pretrained` gives it.
        prompts: the prompts.
        path: the sheet's file.
    """
    rows: list[list[tuple[Image.Image, str]]] = []
    answers: list[dict[str, str]] = []
    for number, prompt in enumerate(prompts):
        images = list(prompt.images)
        if isinstance(prompt.wanted, str):
            said = bagel.ask(images or None, prompt.text, max_new_tokens=64)
            answers.append({"question": prompt.text, "right": prompt.wanted, "said": said})
            continue
        drawn = (
            bagel.edit(images if len(images) > 1 else images[0], prompt.text, seed=number)
            if images
            else bagel.generate(prompt.text, seed=number)
        )
        rows.append([*((image, "given") for image in images), (drawn, prompt.text), (prompt.wanted, "wanted")])
    if rows:
        lines = most_lines(text for row in rows for _, text in row)
        write_atomically(path, sheet_of([[captioned(*cell, lines) for cell in row] for row in rows]).save)
    if answers:
        write_text(path.with_suffix(".json"), json.dumps(answers, indent=1, ensure_ascii=False))
