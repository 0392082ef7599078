"""Pictures that are damaged as an autoencoder damages them, and pictures that are nearly right but wrong."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from bagel_mot.worlds.mini.draw import BOX, background, draw_array, sprite
from bagel_mot.worlds.mini.sampling import sample_scene
from bagel_mot.worlds.mini.scene import BACKGROUNDS, COLOURS, KINDS, SIZES, Scene, Thing
from bagel_mot.worlds.mini.sprites import ART, COLOUR_RGB


def blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of (H, W, 3), sigma in pixels."""
    reach = int(np.ceil(4 * sigma))
    kernel = np.exp(-(np.arange(-reach, reach + 1) ** 2) / 2 / sigma**2)
    kernel /= kernel.sum()
    height, width = pixels.shape[:2]
    wide = np.pad(pixels, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    rows = sum(k * wide[i : i + height] for i, k in enumerate(kernel))
    return np.asarray(sum(k * rows[:, i : i + width] for i, k in enumerate(kernel)))


def shift(pixels: np.ndarray, dx: float, dy: float) -> np.ndarray:
    """(H, W, 3) moved by less than a pixel, bilinear."""
    wide = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = pixels.shape[:2]
    out = np.zeros_like(pixels, dtype=float)
    for oy, wy in ((0, 1 - abs(dy)), (-1 if dy > 0 else 1, abs(dy))):
        for ox, wx in ((0, 1 - abs(dx)), (-1 if dx > 0 else 1, abs(dx))):
            out += wy * wx * wide[1 + oy : 1 + oy + height, 1 + ox : 1 + ox + width]
    return out


def autoencoded(pixels: np.ndarray, rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """uint8 (side, side, 3) shifted, blurred, tinted and noised; strength 1 is the worst the judge must bear."""
    scale = pixels.shape[0] // 64
    damaged = shift(pixels.astype(float), *(strength * scale * rng.uniform(-0.5, 0.5, 2)))
    damaged = blur(damaged, max(0.2, strength * rng.uniform(0.6, 0.8)) * scale)
    damaged += strength * rng.uniform(-6, 6, 3) + strength * rng.normal(0, 6, pixels.shape)
    return np.clip(np.round(damaged), 0, 255).astype(np.uint8)


def _one(rng: random.Random, kinds: tuple[str, ...] = KINDS, sizes: tuple[str, ...] = SIZES) -> tuple[Scene, Thing]:
    """A scene and the thing in it that is going to be spoilt."""
    scene = sample_scene(rng, things=rng.randint(1, 4))
    thing = rng.choice(scene.things)
    new = Thing(rng.choice(kinds), thing.colour, rng.choice(sizes), thing.slot, thing.dx, thing.dy)
    return Scene(scene.background, tuple(new if other is thing else other for other in scene.things)), new


def _with(scene: Scene, old: Thing, **changes: object) -> np.ndarray:
    """The picture with one thing changed, as float."""
    new = Thing(**{**vars(old), **changes})  # type: ignore[arg-type]
    return draw_array(Scene(scene.background, tuple(new if t == old else t for t in scene.things))).astype(float)


def _without(scene: Scene, thing: Thing) -> np.ndarray:
    return draw_array(Scene(scene.background, tuple(t for t in scene.things if t != thing))).astype(float)


def half_and_half(rng: random.Random) -> np.ndarray:
    """The left half of one kind and the right half of another."""
    scene, thing = _one(rng)
    first = draw_array(scene).astype(float)
    second = _with(scene, thing, kind=rng.choice([k for k in KINDS if k != thing.kind]))
    x = thing.centre[0]
    return np.concatenate([first[:, :x], second[:, x:]], axis=1)


def between_colours(rng: random.Random) -> np.ndarray:
    """A thing whose colour lies halfway between two."""
    scene, thing = _one(rng)
    other = rng.choice([c for c in COLOURS if c != thing.colour])
    return (draw_array(scene) + _with(scene, thing, colour=other)) / 2


def ghost(rng: random.Random) -> np.ndarray:
    """Two kinds laid over each other, half and half."""
    scene, thing = _one(rng)
    return (draw_array(scene) + _with(scene, thing, kind=rng.choice([k for k in KINDS if k != thing.kind]))) / 2


def transparent(rng: random.Random) -> np.ndarray:
    """A thing half there."""
    scene, thing = _one(rng)
    return (draw_array(scene) + _without(scene, thing)) / 2


def no_details(rng: random.Random) -> np.ndarray:
    """A car without wheels and windows, a cat without a face."""
    scene, thing = _one(rng, kinds=tuple(kind for kind in KINDS if any(polygon.detail for polygon in ART[kind])))
    image = Image.fromarray(_without(scene, thing).astype(np.uint8))
    plain = sprite(thing.kind, thing.colour, thing.size, 64, details=False)
    corner = BOX[thing.size] // 2
    image.paste(plain.convert("RGB"), (thing.centre[0] - corner, thing.centre[1] - corner), plain.getchannel("A"))
    return np.asarray(image).astype(float)


def cut_off(rng: random.Random) -> np.ndarray:
    """A thing of which a third or a half is missing."""
    scene, thing = _one(rng)
    full, empty = draw_array(scene).astype(float), _without(scene, thing)
    x, y = thing.centre
    reach = BOX[thing.size] // 2
    mask = np.zeros((64, 64, 1), bool)
    edge = rng.choice((0, reach // 3))
    if rng.random() < 0.5:
        mask[max(0, y - reach) : y + reach, x + edge : x + reach] = True
    else:
        mask[y + edge : y + reach, max(0, x - reach) : x + reach] = True
    return np.where(mask, empty, full)


def extra_blob(rng: random.Random) -> np.ndarray:
    """A stray spot of four to seven pixels across on the background."""
    scene = sample_scene(rng, things=rng.randint(1, 3))
    image = draw_array(scene).astype(float)
    ground = np.asarray(background(scene.background)).astype(float)
    free = np.abs(image - ground).max(axis=2) == 0
    while True:
        radius = rng.uniform(2.0, 3.5)
        x, y = rng.uniform(4, 60), rng.uniform(4, 60)
        ys, xs = np.mgrid[0:64, 0:64] + 0.5
        spot = (xs - x) ** 2 + (ys - y) ** 2 <= radius**2
        colour = np.array(COLOUR_RGB[rng.choice(COLOURS)], float)
        if free[spot].all() and np.abs(ground[spot] - colour).max(axis=1).min() > 60:
            image[spot] = colour
            return image


def between_sizes(rng: random.Random) -> np.ndarray:
    """A thing halfway between two sizes."""
    scene, thing = _one(rng)
    smaller, larger = rng.choice((("small", "medium"), ("medium", "large")))
    side = (BOX[smaller] + BOX[larger]) // 2
    art = sprite(thing.kind, thing.colour, larger, 64).resize((side, side), Image.Resampling.BOX)
    image = Image.fromarray(_without(scene, thing).astype(np.uint8))
    corner = side // 2
    image.paste(art.convert("RGB"), (thing.centre[0] - corner, thing.centre[1] - corner), art.getchannel("A"))
    return np.asarray(image).astype(float)


def between_backgrounds(rng: random.Random) -> np.ndarray:
    """One background fading into another."""
    scene = sample_scene(rng)
    other = Scene(rng.choice([b for b in BACKGROUNDS if b != scene.background]), scene.things)
    share = rng.uniform(0.35, 0.65)
    return share * draw_array(scene).astype(float) + (1 - share) * draw_array(other)


def smeared(rng: random.Random) -> np.ndarray:
    """A thing blurred beyond what an autoencoder does."""
    scene, thing = _one(rng)
    full = draw_array(scene).astype(float)
    x, y = thing.centre
    reach = BOX[thing.size] // 2 + 1
    window = (slice(max(0, y - reach), y + reach), slice(max(0, x - reach), x + reach))
    full[window] = blur(full, 2.2)[window]
    return full


def scribbled(rng: random.Random) -> np.ndarray:
    """A thing crossed by a stroke of another colour."""
    scene, thing = _one(rng, sizes=("medium", "large"))
    image = Image.fromarray(draw_array(scene))
    x, y = thing.centre
    reach = BOX[thing.size] // 2 - 3
    other = rng.choice([c for c in COLOURS if c != thing.colour])
    ImageDraw.Draw(image).line([(x - reach, y - reach), (x + reach, y + reach)], fill=COLOUR_RGB[other], width=2)
    return np.asarray(image).astype(float)


NEARLY_RIGHT: dict[str, Callable[[random.Random], np.ndarray]] = {
    function.__name__: function
    for function in (
        half_and_half,
        between_colours,
        ghost,
        transparent,
        no_details,
        cut_off,
        extra_blob,
        between_sizes,
        between_backgrounds,
        smeared,
        scribbled,
    )
}


def nearly_right(name: str, rng: random.Random) -> np.ndarray:
    """One nearly right picture, uint8 (64, 64, 3)."""
    return np.clip(np.round(NEARLY_RIGHT[name](rng)), 0, 255).astype(np.uint8)
