"""The vector art of the things: each kind is a list of filled polygons in a unit square, painted back to front.

Coordinates run from −1 to 1, x to the right, y downwards; a thing fills that square as far as its shape allows. Paint
is "body" (the thing's own colour), "shade" or "tint" (a darker or lighter body), or a fixed colour that belongs to the
kind. The dark outline is not drawn here: it is grown around the union of all polygons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Rgb = tuple[int, int, int]
Points = list[tuple[float, float]]

INK: Rgb = (40, 34, 48)
CREAM: Rgb = (250, 236, 206)
BROWN: Rgb = (139, 90, 52)
LEAF: Rgb = (74, 150, 62)
GLASS: Rgb = (196, 232, 250)
STEEL: Rgb = (172, 176, 186)
HONEY: Rgb = (196, 122, 32)

COLOUR_RGB: dict[str, Rgb] = {
    "red": (216, 38, 40),
    "orange": (246, 132, 20),
    "yellow": (254, 222, 48),
    "green": (38, 156, 66),
    "blue": (44, 92, 222),
    "purple": (142, 62, 186),
    "pink": (255, 146, 192),
    "white": (252, 252, 250),
}


@dataclass(frozen=True)
class Polygon:
    """One filled polygon; `detail` marks the fixed marks (eyes, windows, wheels) on top of the thing's colour."""

    points: Points
    paint: str | Rgb = "body"
    detail: bool = False


def ellipse(cx: float, cy: float, rx: float, ry: float, start: float = 0.0, end: float = 360.0) -> Points:
    """Points of an ellipse, or of the slice of it between two angles in degrees (0 is right, 90 is down)."""
    steps = 72
    angles = [math.radians(start + (end - start) * i / steps) for i in range(steps + 1)]
    return [(cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles]


def ring(cx: float, cy: float, outer: float, inner: float) -> Points:
    """A ring as one polygon: around the outside, then back around the inside."""
    return ellipse(cx, cy, outer, outer) + ellipse(cx, cy, inner, inner)[::-1]


def rect(x0: float, y0: float, x1: float, y1: float) -> Points:
    """An upright rectangle."""
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def spikes(count: int, outer: float, inner: float, cx: float = 0.0, cy: float = 0.0) -> Points:
    """A star polygon with `count` spikes, the first one pointing up."""
    points: Points = []
    for i in range(2 * count):
        radius = outer if i % 2 == 0 else inner
        angle = math.pi * i / count - math.pi / 2
        points.append((cx + radius * math.cos(angle), cy + radius * math.sin(angle)))
    return points


def detail(points: Points, paint: str | Rgb = INK) -> Polygon:
    """A fixed mark on top of the body."""
    return Polygon(points, paint, detail=True)


def _heart() -> Points:
    curve: Points = []
    for i in range(90):
        t = 2 * math.pi * i / 90
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        curve.append((x / 16.3, -(y + 2.5) / 15.5))
    return curve


def _petals() -> list[Polygon]:
    angles = (math.radians(-90 + 72 * i) for i in range(5))
    return [Polygon(ellipse(0.44 * math.cos(a), -0.36 + 0.44 * math.sin(a), 0.29, 0.29)) for a in angles]


ART: dict[str, list[Polygon]] = {
    "circle": [Polygon(ellipse(0, 0, 0.98, 0.98))],
    "square": [Polygon(rect(-0.86, -0.86, 0.86, 0.86))],
    "triangle": [Polygon([(0, -0.95), (1.0, 0.85), (-1.0, 0.85)])],
    "star": [Polygon(spikes(5, 1.08, 0.47, cy=0.08))],
    "heart": [Polygon(_heart())],
    "house": [
        Polygon(rect(-0.78, -0.2, 0.78, 0.98)),
        Polygon([(0, -1.0), (1.02, -0.1), (-1.02, -0.1)], "shade"),
        detail(rect(-0.5, 0.22, -0.04, 0.98), BROWN),
        detail(rect(0.18, 0.18, 0.6, 0.6), GLASS),
    ],
    "tree": [
        Polygon(rect(-0.2, 0.2, 0.2, 1.0), BROWN),
        Polygon(ellipse(-0.42, 0.02, 0.5, 0.46)),
        Polygon(ellipse(0.42, 0.02, 0.5, 0.46)),
        Polygon(ellipse(0, -0.44, 0.56, 0.56)),
        Polygon(ellipse(0, 0.0, 0.5, 0.42)),
    ],
    "car": [
        Polygon([(-0.6, -0.04), (-0.38, -0.62), (0.32, -0.62), (0.62, -0.04)]),
        Polygon([(-1.0, 0.04), (-0.88, -0.08), (0.84, -0.08), (1.0, 0.1), (1.0, 0.44), (-1.0, 0.44)]),
        detail([(-0.42, -0.06), (-0.28, -0.46), (-0.04, -0.46), (-0.04, -0.06)], GLASS),
        detail([(0.1, -0.06), (0.1, -0.46), (0.24, -0.46), (0.42, -0.06)], GLASS),
        detail(ellipse(-0.54, 0.44, 0.3, 0.3)),
        detail(ellipse(0.54, 0.44, 0.3, 0.3)),
        detail(ellipse(-0.54, 0.44, 0.12, 0.12), STEEL),
        detail(ellipse(0.54, 0.44, 0.12, 0.12), STEEL),
    ],
    "boat": [
        Polygon(rect(-0.12, -0.98, 0.02, 0.34), BROWN),
        Polygon([(0.06, -0.92), (0.8, 0.2), (0.06, 0.2)], "tint"),
        Polygon([(-0.18, -0.6), (-0.18, 0.2), (-0.7, 0.2)], "tint"),
        Polygon([(-1.0, 0.34), (1.0, 0.34), (0.66, 0.92), (-0.66, 0.92)]),
    ],
    "sun": [
        Polygon(spikes(10, 1.06, 0.66)),
        detail(ellipse(-0.22, -0.14, 0.1, 0.13)),
        detail(ellipse(0.22, -0.14, 0.1, 0.13)),
        detail([*ellipse(0, 0.08, 0.36, 0.32, 10, 170), *ellipse(0, 0.08, 0.26, 0.14, 170, 10)]),
    ],
    "moon": [Polygon(ellipse(0.06, 0, 0.98, 0.98, 62, 298) + ellipse(0.5, 0, 0.83, 0.86, 272, 88))],
    "cloud": [
        Polygon(ellipse(-0.52, 0.16, 0.46, 0.42)),
        Polygon(ellipse(0.54, 0.18, 0.44, 0.4)),
        Polygon(ellipse(-0.04, -0.12, 0.54, 0.54)),
        Polygon(rect(-0.52, 0.1, 0.54, 0.58)),
    ],
    "flower": [
        Polygon(rect(-0.09, -0.2, 0.09, 1.0), LEAF),
        Polygon([(0, 0.86), (0.16, 0.52), (0.6, 0.42), (0.44, 0.76)], LEAF),
        Polygon([(0, 0.86), (-0.16, 0.52), (-0.6, 0.42), (-0.44, 0.76)], LEAF),
        *_petals(),
        Polygon(ellipse(0, -0.36, 0.34, 0.34)),
        detail(ellipse(0, -0.36, 0.25, 0.25), HONEY),
    ],
    "fish": [
        Polygon([(0.3, 0), (1.0, -0.56), (0.84, 0), (1.0, 0.56)], "shade"),
        Polygon(ellipse(-0.24, 0, 0.76, 0.55)),
        Polygon([(-0.3, -0.46), (0.12, -0.78), (0.2, -0.36)], "shade"),
        detail(ellipse(-0.6, -0.12, 0.14, 0.14)),
        detail([*ellipse(-0.22, 0, 0.2, 0.4, -70, 70), *ellipse(-0.3, 0, 0.16, 0.4, 70, -70)], "shade"),
    ],
    "cat": [
        Polygon([(-0.86, -0.98), (-0.12, -0.5), (-0.84, 0.1)]),
        Polygon([(0.86, -0.98), (0.12, -0.5), (0.84, 0.1)]),
        Polygon(ellipse(0, 0.16, 0.9, 0.76)),
        detail(ellipse(-0.36, 0.04, 0.14, 0.18)),
        detail(ellipse(0.36, 0.04, 0.14, 0.18)),
        detail([(-0.15, 0.34), (0.15, 0.34), (0, 0.54)]),
    ],
    "cup": [
        Polygon(ring(0.6, 0.08, 0.4, 0.2)),
        Polygon([(-0.84, -0.66), (0.52, -0.66), (0.4, 0.84), (-0.72, 0.84)]),
        detail(ellipse(-0.16, -0.62, 0.62, 0.2), BROWN),
    ],
    "key": [
        Polygon(ring(-0.5, 0, 0.5, 0.2)),
        Polygon(rect(-0.1, -0.16, 1.0, 0.16)),
        Polygon(rect(0.34, 0.1, 0.56, 0.52)),
        Polygon(rect(0.76, 0.1, 1.0, 0.62)),
    ],
    "mushroom": [
        Polygon([(-0.3, 0.1), (0.3, 0.1), (0.42, 0.94), (-0.42, 0.94)], CREAM),
        Polygon([*ellipse(0, 0.16, 1.0, 1.12, 180, 360), (0.9, 0.28), (-0.9, 0.28)]),
        detail(ellipse(-0.48, -0.18, 0.17, 0.17), "tint"),
        detail(ellipse(0.46, -0.16, 0.17, 0.17), "tint"),
        detail(ellipse(0, -0.54, 0.19, 0.19), "tint"),
    ],
}
"""The polygons of each kind, painted back to front."""


def blend(a: Rgb, b: Rgb, share: float) -> Rgb:
    """`a` moved towards `b` by `share` (0..1)."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def paint_rgb(paint: str | Rgb, body: Rgb) -> Rgb:
    """The colour of a polygon's paint on a thing whose own colour is `body`."""
    if not isinstance(paint, str):
        return paint
    if paint == "shade":
        return blend(body, INK, 0.3)
    if paint == "tint":
        # White cannot get lighter, so its light parts turn to a soft grey instead.
        return blend(body, (255, 255, 255), 0.62) if min(body) < 240 else (206, 210, 218)
    return body


def scaled(points: Sequence[tuple[float, float]], radius: float, centre: float) -> Points:
    """Unit coordinates turned into pixels."""
    return [(centre + x * radius, centre + y * radius) for x, y in points]
