"""The six backgrounds: calm images that stay recognisable behind four things.

Each is a gradient or two with a horizon and a few soft strokes in fixed places. Coordinates are fractions of the side,
0..1, y downwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from bagel_mot.worlds.mini.sprites import Rgb, blend

Hill = Callable[[float], float]


class Canvas:
    """An image under construction, addressed in fractions of its side."""

    def __init__(self, side: int, top: Rgb, bottom: Rgb) -> None:
        self.side = side
        ramp = np.linspace(0, 1, side)[:, None, None]
        column = np.array(top, float) * (1 - ramp) + np.array(bottom, float) * ramp
        self.image = Image.fromarray(np.round(np.broadcast_to(column, (side, side, 3))).astype(np.uint8))
        self.pen = ImageDraw.Draw(self.image)

    def ground(self, height: Hill, top: Rgb, bottom: Rgb) -> None:
        """Fill below the curve y = height(x) with a gradient from the curve's highest point to the lower edge."""
        xs = (np.arange(self.side) + 0.5) / self.side
        edge = np.array([height(x) for x in xs])
        ys = (np.arange(self.side) + 0.5) / self.side
        ramp = np.clip((ys - edge.min()) / (1 - edge.min()), 0, 1)[:, None, None]
        colour = np.array(top, float) * (1 - ramp) + np.array(bottom, float) * ramp
        pixels = np.where((ys[:, None] > edge[None, :])[..., None], colour, np.asarray(self.image))
        self.image = Image.fromarray(np.round(pixels).astype(np.uint8))
        self.pen = ImageDraw.Draw(self.image)

    def line(self, points: list[tuple[float, float]], colour: Rgb, width: float) -> None:
        """A rounded stroke through points; `width` is a fraction of the side."""
        pixels = [(x * self.side, y * self.side) for x, y in points]
        self.pen.line(pixels, fill=colour, width=max(1, round(width * self.side)), joint="curve")
        for x, y in (points[0], points[-1]):
            self.dot(x, y, width / 2, colour)

    def dot(self, x: float, y: float, radius: float, colour: Rgb) -> None:
        """A filled circle."""
        s = self.side
        self.pen.ellipse([(x - radius) * s, (y - radius) * s, (x + radius) * s, (y + radius) * s], fill=colour)


def wave(x: float, y: float, length: float, height: float, bumps: int) -> list[tuple[float, float]]:
    """Points of a little wave that starts at (x, y)."""
    steps = 24
    return [(x + length * i / steps, y - height * abs(math.sin(math.pi * bumps * i / steps))) for i in range(steps + 1)]


def day(side: int) -> Canvas:
    canvas = Canvas(side, (128, 196, 246), (236, 246, 250))
    for x, y, length in ((0.06, 0.1, 0.2), (0.62, 0.06, 0.26), (0.38, 0.47, 0.2), (0.84, 0.5, 0.12), (0.02, 0.55, 0.1)):
        canvas.line([(x, y), (x + length, y)], (222, 240, 252), 0.035)
    return canvas


def night(side: int) -> Canvas:
    canvas = Canvas(side, (22, 26, 66), (62, 66, 122))
    sparks = (
        (0.07, 0.05), (0.5, 0.04), (0.93, 0.08), (0.04, 0.5), (0.5, 0.26), (0.96, 0.48), (0.5, 0.74), (0.06, 0.95),
    )  # fmt: skip
    for x, y in (*sparks, (0.5, 0.96), (0.94, 0.94)):
        canvas.dot(x, y, 0.014, (186, 190, 222))
    return canvas


def grass(side: int) -> Canvas:
    canvas = Canvas(side, (206, 234, 250), (206, 234, 250))
    canvas.ground(lambda x: 0.12 + 0.025 * math.sin(5 * x), (168, 214, 110), (132, 190, 84))
    tufts = ((0.08, 0.36), (0.5, 0.2), (0.9, 0.4), (0.47, 0.52), (0.05, 0.66), (0.92, 0.68), (0.5, 0.86))
    for x, y in (*tufts, (0.2, 0.97)):
        canvas.line([(x - 0.03, y - 0.04), (x, y)], (106, 164, 66), 0.016)
        canvas.line([(x + 0.03, y - 0.04), (x, y)], (106, 164, 66), 0.016)
    return canvas


def sea(side: int) -> Canvas:
    canvas = Canvas(side, (214, 240, 246), (236, 248, 248))
    canvas.ground(lambda x: 0.22, (72, 190, 204), (28, 138, 170))
    foam = ((0.04, 0.34), (0.44, 0.3), (0.76, 0.38), (0.4, 0.52), (0.02, 0.62), (0.82, 0.64), (0.42, 0.78), (0.1, 0.95))
    for x, y in (*foam, (0.7, 0.95)):
        canvas.line(wave(x, y, 0.17, 0.022, 2), (150, 222, 226), 0.018)
    return canvas


def sand(side: int) -> Canvas:
    canvas = Canvas(side, (250, 222, 184), (252, 236, 206))
    canvas.ground(lambda x: 0.26 + 0.07 * math.sin(3.4 * x + 0.5), (230, 190, 126), (230, 190, 126))
    canvas.ground(lambda x: 0.6 - 0.08 * math.sin(3.6 * x), (216, 172, 108), (206, 160, 96))
    for x, y in ((0.5, 0.46), (0.06, 0.44), (0.93, 0.5), (0.1, 0.8), (0.5, 0.8), (0.9, 0.84), (0.48, 0.95)):
        canvas.dot(x, y, 0.013, (176, 132, 78))
    return canvas


def snow(side: int) -> Canvas:
    canvas = Canvas(side, (168, 186, 212), (196, 210, 230))
    canvas.ground(lambda x: 0.4 - 0.06 * math.sin(4.2 * x + 0.4), (224, 233, 244), (236, 242, 250))
    flakes = (
        (0.06, 0.06), (0.32, 0.03), (0.5, 0.14), (0.68, 0.04), (0.94, 0.09), (0.05, 0.3), (0.5, 0.29), (0.95, 0.3),
    )  # fmt: skip
    for x, y in flakes:
        canvas.dot(x, y, 0.017, (246, 249, 253))
    for x, y, length in ((0.4, 0.56, 0.2), (0.03, 0.7, 0.1), (0.85, 0.66, 0.12), (0.42, 0.86, 0.16)):
        canvas.line([(x, y), (x + length, y - 0.012)], blend((224, 233, 244), (168, 186, 212), 0.6), 0.016)
    return canvas


_PAINTERS = {painter.__name__: painter for painter in (day, night, grass, sea, sand, snow)}


def paint_background(name: str, side: int) -> Image.Image:
    """One background, RGB, `side` × `side` pixels, with hard edges: draw it large and scale it down."""
    return _PAINTERS[name](side).image
