"""Samples of documents: what is asked of the model is what comes before the first part that is to be learnt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from bagel_mot.data.dataset import Dataset
from bagel_mot.data.documents import Document, ImagePart, ImageRules, TextPart
from bagel_mot.data.draws import Draws
from bagel_mot.data.readers.base import Reader, Row, Unit
from bagel_mot.data.rows import SkipRow
from bagel_mot.data.samples import Prompt, prompt_of, prompts_of, write_prompt_samples

RED, BLUE = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 4), "blue")


class _Model:
    """Notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []

    def generate(self, prompt: str, seed: int) -> Image.Image:
        self.asked.append((prompt, None))
        return RED

    def edit(self, images: Any, instruction: str, seed: int) -> Image.Image:
        self.asked.append((instruction, images))
        return BLUE

    def ask(self, images: Any, question: str, max_new_tokens: int) -> str:
        self.asked.append((question, images))
        return "said"


class _Words(Reader):
    def units(self) -> list[Unit]:
        return [Unit("all", 3)]

    def read(self, unit: int, start: int = 0) -> Iterator[Row]:
        yield from [{"word": word} for word in ("a", "bad", "b")][start:]


def _mapper(row: Row, draws: Draws) -> Document:
    if row["word"] == "bad":
        raise SkipRow("bad", "a bad row")
    return TextPart(row["word"]), ImagePart(RED, target=True)


def test_a_prompt_is_what_comes_before_the_first_part_to_learn() -> None:
    rules = ImageRules()
    drawn = prompt_of((TextPart("a cup"), ImagePart(RED, target=True), TextPart("more", loss=True)), rules)
    assert drawn == Prompt("a cup", (), RED)
    edited = prompt_of((ImagePart(BLUE, vae=True), TextPart("make it red"), ImagePart(RED, target=True)), rules)
    assert edited == Prompt("make it red", (BLUE,), RED)
    said = prompt_of((TextPart("what?"), ImagePart(BLUE, vit=True), TextPart("it", loss=True)), rules)
    assert said == Prompt("what?", (BLUE,), "it")
    assert prompt_of((TextPart(" "), ImagePart(RED, target=True)), rules) is None
    assert prompt_of((TextPart("nothing to learn"),), rules) is None


def test_prompts_come_from_data_sets_in_turn_without_the_rows_that_are_skipped() -> None:
    sets = [Dataset(name, _Words(), _mapper) for name in ("one", "two")]
    assert [prompt.text for prompt in prompts_of(sets, 3)] == ["a", "a", "b"]
    assert [prompt.text for prompt in prompts_of(sets, 9)] == ["a", "a", "b", "b"]


def test_images_are_drawn_on_a_sheet_and_answers_written_beside_it(tmp_path: Path) -> None:
    model, path = _Model(), tmp_path / "samples" / "sheet.png"
    path.parent.mkdir()
    prompts = [Prompt("a cup", (), RED), Prompt("mix", (RED, BLUE), RED), Prompt("what?", (BLUE,), "it")]
    write_prompt_samples(model, prompts, path)
    assert model.asked == [("a cup", None), ("mix", [RED, BLUE]), ("what?", [BLUE])]
    with Image.open(path) as sheet:
        assert sheet.width == 4 * 132, "two given images, the one drawn, the one wanted"
    assert json.loads(path.with_suffix(".json").read_text()) == [{"question": "what?", "right": "it", "said": "said"}]
