"""Sample sheets: what the model draws, edits and answers now, always on the same prompts."""

from __future__ import annotations

import json
import random
from pathlib import Path

from PIL import Image, ImageDraw

from bagel_mot.files import write_atomically, write_text
from bagel_mot.inference.api import Bagel
from bagel_mot.worlds.mini.captions import caption
from bagel_mot.worlds.mini.draw import draw
from bagel_mot.worlds.mini.edits import sample_edit
from bagel_mot.worlds.mini.questions import questions
from bagel_mot.worlds.mini.sampling import sample_scene

_PROMPTS, _EDITS, _QUESTIONS = 10, 5, 10
_SHOWN = 128  # pixels of a image on the sheet
_TEXT = 46  # pixels of text below it


def write_sheet(path: Path, checkpoint: Path, side: int, device: str) -> None:
    """Writes a PNG sheet for a checkpoint folder, and the answers beside it as JSON."""
    bagel = Bagel.from_pretrained(checkpoint, device=device)
    rng = random.Random(0)
    prompts = [caption(sample_scene(rng), rng) for _ in range(_PROMPTS)]
    cells = list(zip(bagel.generate(prompts, seed=list(range(_PROMPTS)), num_timesteps=25), prompts, strict=True))
    before: list[Image.Image] = []
    instructions: list[str] = []
    while len(before) < _EDITS:
        scene = sample_scene(rng)
        before.append(draw(scene, side))
        instructions.append(sample_edit(scene, rng).instruction)
    after = bagel.edit(before, instructions, seed=list(range(_EDITS)), num_timesteps=25)
    for image, edited, instruction in zip(before, after, instructions, strict=True):
        cells += [(image, ""), (edited, instruction)]
    scenes = [sample_scene(rng) for _ in range(_QUESTIONS)]
    asked = [questions(scene, rng, 1)[0] for scene in scenes]
    answers = bagel.ask([draw(s, side) for s in scenes], [qa.question for qa in asked], max_new_tokens=16)
    write_atomically(path, _sheet(cells).save)
    report = [
        {"question": qa.question, "right": qa.answer, "said": answer} for qa, answer in zip(asked, answers, strict=True)
    ]
    write_text(path.with_suffix(".json"), json.dumps(report, indent=1))


def _sheet(cells: list[tuple[Image.Image, str]], columns: int = 10) -> Image.Image:
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * (_SHOWN + 4), rows * (_SHOWN + _TEXT)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (image, text) in enumerate(cells):
        x, y = number % columns * (_SHOWN + 4), number // columns * (_SHOWN + _TEXT)
        sheet.paste(image.resize((_SHOWN, _SHOWN), Image.Resampling.NEAREST), (x, y))
        for line, start in enumerate(range(0, len(text), 22)):
            pen.text((x + 2, y + _SHOWN + 2 + 11 * line), text[start : start + 22], fill="black")
    return sheet
