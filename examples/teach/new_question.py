"""A question that mini does not know: where is the biggest thing?

The data are conversations: PNG files, and one JSON object a line in `conversations.jsonl`. An answer is right when it
is the place of the biggest thing, to the letter; guessing is right for one scene in four.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from bagel_mot import Bagel
from bagel_mot.worlds.mini.draw import draw
from bagel_mot.worlds.mini.sampling import sample_scene
from bagel_mot.worlds.mini.scene import QUADRANTS, SIZES, Scene

QUESTION = "Where is the biggest thing?"


def answer(scene: Scene) -> str | None:
    """The place of the biggest thing; None if several are as big, or if it is alone."""
    largest = max(SIZES.index(thing.size) for thing in scene.things)
    places = [thing.slot for thing in scene.things if SIZES.index(thing.size) == largest]
    return places[0] if len(places) == 1 and len(scene.things) > 1 else None


def random_scene(rng: random.Random) -> Scene:
    """A random scene of which the question can be asked; each place is as frequent as the others."""
    wanted = rng.choice(QUADRANTS)
    while answer(scene := sample_scene(rng)) != wanted:
        pass
    return scene


def write_data(folder: Path, count: int = 200, seed: int = 0) -> None:
    """Writes the images and `conversations.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    with open(folder / "conversations.jsonl", "w", encoding="utf-8") as file:
        for number in range(count):
            scene = random_scene(rng)
            draw(scene).save(folder / f"{number:04d}.png")
            turns = [
                {"from": "human", "value": f"<image>\n{QUESTION}"},
                {"from": "gpt", "value": answer(scene)},
            ]
            file.write(json.dumps({"image": f"{number:04d}.png", "conversations": turns}) + "\n")


def share_right(bagel: Bagel, count: int = 100, seed: int = 99) -> float:
    """The share of questions about so many fresh scenes that are answered right."""
    rng = random.Random(seed)
    scenes = [random_scene(rng) for _ in range(count)]
    answers = bagel.ask([draw(scene) for scene in scenes], [QUESTION] * count, max_new_tokens=12)
    return sum(said.strip() == answer(scene) for said, scene in zip(answers, scenes, strict=True)) / count
