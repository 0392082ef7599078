"""Something that mini does not know: a hat, in lavender.

The data are drawn here, not by the toy world: 200 PNG files, each with its caption in a text file beside it. The judge
is told what a hat looks like. It is right when background, place and size are those of the prompt, the shape fits, and
the hat's mean colour is nearer to lavender than to any colour of the toy world.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from bagel_mot import Bagel
from bagel_mot.worlds.mini.draw import background
from bagel_mot.worlds.mini.sprites import COLOUR_RGB, INK

LAVENDER = (205, 140, 210)
PLACES = {
    "in the top left": (16, 16),
    "in the top right": (48, 16),
    "in the bottom left": (16, 48),
    "in the bottom right": (48, 48),
    "in the middle": (32, 32),
}
SIZES = {"small": 15, "medium": 20, "large": 27}
BACKGROUNDS = {
    "day": "by day",
    "night": "at night",
    "grass": "on the grass",
    "sea": "at sea",
    "sand": "on the sand",
    "snow": "in the snow",
}
_BRIM = [(-1, 0.4), (1, 0.4), (1, 0.8), (-1, 0.8)]
_CROWN = [(-0.55, -0.8), (0.55, -0.8), (0.55, 0.4), (-0.55, 0.4)]
_FINE = 8  # the hat is drawn so many times as large, then reduced


@dataclass(frozen=True)
class Hat:
    """A lavender hat, alone in an image of 64 × 64 pixels."""

    background: str
    place: str
    size: str

    @classmethod
    def random(cls, rng: random.Random) -> Hat:
        return cls(rng.choice(list(BACKGROUNDS)), rng.choice(list(PLACES)), rng.choice(list(SIZES)))

    def caption(self, rng: random.Random) -> str:
        hat, where, back = f"a {self.size} lavender hat", self.place, BACKGROUNDS[self.background]
        return rng.choice([f"{hat} {where}, {back}", f"{hat} {back}, {where}"])

    def draw(self, dx: int = 0, dy: int = 0) -> Image.Image:
        image, sprite = background(self.background).copy(), _sprite(self.size)
        x, y = PLACES[self.place]
        corner = (x + dx - sprite.width // 2, y + dy - sprite.height // 2)
        image.paste(sprite.convert("RGB"), corner, sprite.getchannel("A"))
        return image


@cache
def _sprite(size: str) -> Image.Image:
    """The hat with an outline as the toy world's things have, RGBA."""
    box = 2 * ((SIZES[size] + 2) // 2)
    side, radius = box * _FINE, SIZES[size] * _FINE / 2 - _FINE
    shapes = [[(side / 2 + x * radius, side / 2 + y * radius) for x, y in shape] for shape in (_CROWN, _BRIM)]
    silhouette = Image.new("L", (side, side), 0)
    for shape in shapes:
        ImageDraw.Draw(silhouette).polygon(shape, fill=255)
    image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    image.paste((*INK, 255), (0, 0), silhouette.filter(ImageFilter.MaxFilter(2 * _FINE + 1)))
    for shape in shapes:
        ImageDraw.Draw(image).polygon(shape, fill=(*LAVENDER, 255))
    return image.resize((box, box), Image.Resampling.BOX)


def write_data(folder: Path, count: int = 200, seed: int = 0) -> None:
    """Writes `0000.png` and `0000.txt`, `0001.png` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    for number in range(count):
        hat = Hat.random(rng)
        hat.draw(rng.randint(-2, 2), rng.randint(-2, 2)).save(folder / f"{number:04d}.png")
        (folder / f"{number:04d}.txt").write_text(hat.caption(rng) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Template:
    hat: Hat
    pixels: np.ndarray  # (64, 64, 3)
    thing: np.ndarray  # (64, 64) bool: the hat with its outline
    body: np.ndarray  # (64, 64) bool: its lavender part


@cache
def _templates() -> list[_Template]:
    found = []
    for name in BACKGROUNDS:
        empty = np.asarray(background(name), np.float32)
        for place in PLACES:
            for size in SIZES:
                hat = Hat(name, place, size)
                for dx in range(-2, 3):
                    for dy in range(-2, 3):
                        pixels = np.asarray(hat.draw(dx, dy), np.float32)
                        body = np.abs(pixels - np.array(LAVENDER)).max(2) < 8
                        found.append(_Template(hat, pixels, np.abs(pixels - empty).max(2) > 1, body))
    return found


def is_right(image: Image.Image, wanted: Hat) -> bool:
    """Whether an image shows the wanted hat and nothing else."""
    seen = np.asarray(image.convert("RGB"), np.float32)
    best = min(_templates(), key=lambda template: np.abs(seen - template.pixels).max(2).mean())
    error = np.abs(seen - best.pixels).max(2)
    mean = seen[best.body].mean(0)
    colours = {**COLOUR_RGB, "lavender": LAVENDER}
    nearest = min(colours, key=lambda name: np.abs(mean - np.array(colours[name])).max())
    fits = error[best.thing].mean() < 45 and (error[~best.thing] > 60).mean() < 0.01
    return bool(best.hat == wanted and nearest == "lavender" and fits)


def share_right(bagel: Bagel, count: int = 100, seed: int = 99) -> float:
    """The share of so many fresh prompts that are drawn right."""
    rng = random.Random(seed)
    hats = [Hat.random(rng) for _ in range(count)]
    images = bagel.generate([hat.caption(rng) for hat in hats], seed=list(range(count)))
    return sum(is_right(image, hat) for image, hat in zip(images, hats, strict=True)) / count
