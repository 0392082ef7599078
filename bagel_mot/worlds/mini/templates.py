"""The parser's templates: every sprite and background as arrays, with one value per world pixel.

Images of any side are reduced to 64 × 64 before parsing, and so are the templates, from the sprites of that side.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from bagel_mot.worlds.mini.draw import BOX, background, scale_of, sprite
from bagel_mot.worlds.mini.scene import BACKGROUNDS, COLOURS, KINDS, SIZES, SceneError

FEATURES = 8
"""Values per pixel in `features`: difference (3), difference·background (1), background (3), background² (1)."""

CHUNK: dict[str, int] = {size: max(n for n in range(1, 201) if BOX[size] ** 2 * FEATURES % n == 0) for size in SIZES}
"""Features per chunk of the rough search. Small products stay on one thread: several threads cost more than they save,
especially on a busy machine."""


@dataclass(frozen=True)
class SizeTemplates:
    """All (kind, colour) sprites of one size; N = kinds × colours, b = box side in world pixels.

    With background B and difference D = image − B under the box, pasting a sprite (premultiplied colour P, opacity α)
    changes the squared error of the explanation by Σ |D − (P − αB)|² − |D|². That is linear in the features of the box:
    `weights` holds its coefficients and `energy` the constant Σ P².
    """

    size: str
    alpha: np.ndarray  # (N, b, b)
    premultiplied: np.ndarray  # (N, b, b, 3)
    weights: np.ndarray  # (N, b·b·FEATURES)
    energy: np.ndarray  # (N,)
    soft_weights: np.ndarray  # (chunks, b·b·FEATURES / chunks, N), for softened images and sprites
    soft_energy: np.ndarray

    def rough_scores(self, patches: np.ndarray) -> np.ndarray:
        """Change of the squared error, (places, N), for softened features of boxes (places, b·b·FEATURES)."""
        chunks = patches.reshape(len(patches), self.soft_weights.shape[0], -1).transpose(1, 0, 2)
        return np.asarray((chunks @ self.soft_weights).sum(axis=0) + self.soft_energy)

    @property
    def box(self) -> int:
        return int(self.alpha.shape[1])


@dataclass(frozen=True)
class Library:
    """All templates for images of one side."""

    backgrounds: np.ndarray  # (6, 64, 64, 3)
    sizes: tuple[SizeTemplates, ...]


def name_of(index: int) -> tuple[str, str]:
    """(kind, colour) of a template index."""
    return KINDS[index // len(COLOURS)], COLOURS[index % len(COLOURS)]


def reduce_to_world(pixels: np.ndarray, scale: int) -> np.ndarray:
    """Mean over scale × scale blocks: (H, W, C) to (H/scale, W/scale, C) float32."""
    height, width, channels = pixels.shape
    blocks = pixels.astype(np.float32).reshape(height // scale, scale, width // scale, scale, channels)
    return np.asarray(blocks.mean(axis=(1, 3)), np.float32)


@cache
def library(side: int) -> Library:
    """The templates for images of a side (a multiple of 64)."""
    scale = scale_of(side)
    grounds = [reduce_to_world(np.asarray(background(name, side)), scale) for name in BACKGROUNDS]
    return Library(np.stack(grounds), tuple(_size_templates(size, side, scale) for size in SIZES))


def _size_templates(size: str, side: int, scale: int) -> SizeTemplates:
    sprites = []
    for kind in KINDS:
        for colour in COLOURS:
            pixels = np.asarray(sprite(kind, colour, size, side), np.float32)
            opacity = pixels[..., 3:] / 255
            sprites.append(reduce_to_world(np.concatenate([pixels[..., :3] * opacity, opacity], axis=2), scale))
    stack = np.stack(sprites)
    premultiplied, alpha = np.ascontiguousarray(stack[..., :3]), np.ascontiguousarray(stack[..., 3])
    soft = np.stack([soften(soften(np.pad(item, ((2, 2), (2, 2), (0, 0))))[2:-2, 2:-2]) for item in stack])
    weights, energy = _weights(stack)
    soft_weights, soft_energy = _weights(soft)
    chunked = soft_weights.T.reshape(-1, CHUNK[size], len(stack))
    return SizeTemplates(size, alpha, premultiplied, weights, energy, np.ascontiguousarray(chunked), soft_energy)


def _weights(stack: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(weights, energy) of sprites (N, b, b, 4): premultiplied colour and opacity."""
    colour, opacity = stack[..., :3], stack[..., 3:]
    weights = np.concatenate([-2 * colour, 2 * opacity, -2 * opacity * colour, opacity * opacity], axis=3)
    flat = np.ascontiguousarray(weights.reshape(len(stack), -1).astype(np.float32))
    return flat, (colour**2).sum(axis=(1, 2, 3))


def soften(pixels: np.ndarray) -> np.ndarray:
    """A slight blur, (1, 2, 1)/4 along both axes of (H, W, C): it makes a small shift or blur nearly linear."""
    wide = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = (wide[:-2] + 2 * wide[1:-1] + wide[2:]) / 4
    return np.asarray((rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4)


def features(image: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """Features (64, 64, FEATURES) of an image over a background, both (64, 64, 3) float32."""
    difference = image - ground
    cross = (difference * ground).sum(axis=2, keepdims=True)
    square = (ground * ground).sum(axis=2, keepdims=True)
    return np.concatenate([difference, cross, ground, square], axis=2)


def to_world(image: Image.Image | np.ndarray) -> tuple[np.ndarray, int]:
    """An image as float32 (64, 64, 3), and its side. Raises SceneError unless it is square, with a side of n · 64."""
    pixels = np.asarray(image.convert("RGB")) if isinstance(image, Image.Image) else np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.shape[0] != pixels.shape[1]:
        raise SceneError(f"picture has shape {pixels.shape}; the parser takes square RGB pictures (side, side, 3)")
    if pixels.dtype != np.uint8:
        raise SceneError(f"picture values are {pixels.dtype}; the parser takes uint8, 0 to 255")
    side = pixels.shape[0]
    return reduce_to_world(pixels, scale_of(side)), side
