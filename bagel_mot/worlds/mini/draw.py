"""Scenes to images: sprites and backgrounds are drawn once at eight times the size, then pasted at whole pixels."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from bagel_mot.worlds.mini.backgrounds import paint_background
from bagel_mot.worlds.mini.scene import (
    BACKGROUNDS,
    COLOURS,
    DIAMETER,
    KINDS,
    SIZES,
    WORLD,
    Scene,
    SceneError,
    choose_from,
)
from bagel_mot.worlds.mini.sprites import ART, COLOUR_RGB, INK, paint_rgb, scaled

SUPERSAMPLE = 8
OUTLINE: dict[str, float] = {"small": 0.85, "medium": 1.05, "large": 1.3}
"""Width of the dark outline in world pixels."""
BOX: dict[str, int] = {size: 2 * ((DIAMETER[size] + 2) // 2) for size in SIZES}
"""Side of a sprite's square in world pixels: even, so that its centre lies on the pixel grid."""
MAX_SIDE = 512


def scale_of(side: int) -> int:
    """The number of real pixels per world pixel. Raises SceneError for a side that the world cannot be drawn at."""
    if not isinstance(side, int) or side < WORLD or side > MAX_SIDE or side % WORLD:
        raise SceneError(f"picture side is {side!r}; it must be a multiple of {WORLD} from {WORLD} to {MAX_SIDE}")
    return side // WORLD


def draw(scene: Scene, side: int = WORLD) -> Image.Image:
    """The image of a scene: RGB, `side` × `side` pixels. Raises SceneError for an impossible side."""
    image = background(scene.background, side).copy()
    scale = side // WORLD
    for thing in scene.things:
        sprite, mask = _sprite_pair(thing.kind, thing.colour, thing.size, side)
        x, y = thing.centre
        corner = BOX[thing.size] // 2
        image.paste(sprite, ((x - corner) * scale, (y - corner) * scale), mask)
    return image


def draw_array(scene: Scene, side: int = WORLD) -> np.ndarray:
    """`draw` as a uint8 array (side, side, 3)."""
    return np.array(draw(scene, side))


@cache
def background(name: str, side: int = WORLD) -> Image.Image:
    """An empty image of one background, RGB. It is cached: copy it before drawing on it."""
    scale_of(side)
    choose_from("background", name, BACKGROUNDS)
    large = paint_background(name, side * SUPERSAMPLE)
    return large.resize((side, side), Image.Resampling.LANCZOS)


@cache
def sprite(kind: str, colour: str, size: str, side: int = WORLD, details: bool = True) -> Image.Image:
    """One thing alone, RGBA with a transparent surround, BOX[size] · side/64 pixels square, its centre in the middle.

    `details=False` leaves out the fixed marks (eyes, windows, wheels …): such images test the parser. It is cached:
    copy it before changing it.
    """
    choose_from("kind", kind, KINDS)
    choose_from("colour", colour, COLOURS)
    choose_from("size", size, SIZES)
    scale = scale_of(side)
    unit = scale * SUPERSAMPLE
    canvas = BOX[size] * unit
    outline = OUTLINE[size] * unit
    radius = DIAMETER[size] * unit / 2 - outline
    polygons = [
        (scaled(polygon.points, radius, canvas / 2), paint_rgb(polygon.paint, COLOUR_RGB[colour]))
        for polygon in ART[kind]
        if details or not polygon.detail
    ]

    silhouette = Image.new("L", (canvas, canvas), 0)
    pen = ImageDraw.Draw(silhouette)
    for points, _ in polygons:
        pen.polygon(points, fill=255)
    image = Image.new("RGBA", (canvas, canvas), (*INK, 0))
    image.paste((*INK, 255), (0, 0), Image.fromarray(_grow(np.asarray(silhouette) > 0, outline)))
    brush = ImageDraw.Draw(image)
    for points, fill in polygons:
        brush.polygon(points, fill=(*fill, 255))
    small = BOX[size] * scale
    return image.resize((small, small), Image.Resampling.BOX)


@cache
def _sprite_pair(kind: str, colour: str, size: str, side: int) -> tuple[Image.Image, Image.Image]:
    """A sprite as the (RGB, alpha) pair that `paste` takes: faster than pasting RGBA."""
    image = sprite(kind, colour, size, side)
    return image.convert("RGB"), image.getchannel("A")


def _grow(mask: np.ndarray, radius: float) -> np.ndarray:
    """The mask widened by `radius` pixels all around, as uint8 0 or 255: the outline's shape."""
    reach = int(np.ceil(radius))
    padded = np.pad(mask, reach)
    grown = np.zeros_like(mask)
    height, width = mask.shape
    for dy in range(-reach, reach + 1):
        # One run per row of the disc, its union taken through a running sum: cheap even for wide outlines.
        half = int(np.sqrt(max(0.0, radius * radius - dy * dy)))
        rows = padded[reach + dy : reach + dy + height]
        total = np.cumsum(np.pad(rows, ((0, 0), (1, 0))), axis=1)
        left = reach - half
        grown |= (total[:, left + 2 * half + 1 : left + 2 * half + 1 + width] - total[:, left : left + width]) > 0
    return grown.astype(np.uint8) * 255
