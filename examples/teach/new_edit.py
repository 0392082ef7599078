"""An edit that mini does not know: everything on the left goes to the right, and the other way round.

The data are pairs of images: `0000.before.png`, `0000.after.png`, and the instruction in `0000.txt`. The judge is the
parser of the toy world: every thing must be found, as it was, in its mirrored place.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from bagel_mot import Bagel
from bagel_mot.worlds.mini.draw import draw
from bagel_mot.worlds.mini.parser import parse, same_scene
from bagel_mot.worlds.mini.sampling import sample_scene
from bagel_mot.worlds.mini.scene import MIDDLE, Scene

INSTRUCTIONS = ("mirror the picture", "mirror the scene", "flip the picture from left to right")
_OTHER_SIDE = {
    "top left": "top right",
    "top right": "top left",
    "bottom left": "bottom right",
    "bottom right": "bottom left",
    MIDDLE: MIDDLE,
}


def mirrored(scene: Scene) -> Scene:
    """The scene with every thing at the same height on the other side."""
    things = tuple(replace(thing, slot=_OTHER_SIDE[thing.slot], dx=-thing.dx) for thing in scene.things)
    return replace(scene, things=things)


def random_scene(rng: random.Random) -> Scene:
    """A random scene that mirroring changes."""
    while True:
        scene = sample_scene(rng)
        if any(thing.slot != MIDDLE for thing in scene.things):
            return scene


def write_data(folder: Path, count: int = 200, seed: int = 0) -> None:
    """Writes the pairs of images and their instructions."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    for number in range(count):
        scene = random_scene(rng)
        draw(scene).save(folder / f"{number:04d}.before.png")
        draw(mirrored(scene)).save(folder / f"{number:04d}.after.png")
        (folder / f"{number:04d}.txt").write_text(rng.choice(INSTRUCTIONS) + "\n", encoding="utf-8")


def share_right(bagel: Bagel, count: int = 100, seed: int = 99) -> float:
    """The share of so many fresh scenes that are mirrored exactly."""
    rng = random.Random(seed)
    scenes = [random_scene(rng) for _ in range(count)]
    instructions = [rng.choice(INSTRUCTIONS) for _ in scenes]
    images = bagel.edit([draw(scene) for scene in scenes], instructions, seed=list(range(count)))
    return sum(same_scene(parse(i), mirrored(s)) for i, s in zip(images, scenes, strict=True)) / count
