"""A scene of the toy world as pure data: a background and up to four things, each in a place of its own.

Lengths are in *world pixels*: an image is 64 × 64 of them, at any number of real pixels. A place (slot) is the centre
of one of the four quadrants, or the middle, which only a thing standing alone may take. `dx` and `dy` move a thing a
little off its place.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from bagel_mot.errors import BagelError

KINDS: tuple[str, ...] = (
    "circle", "square", "triangle", "star", "heart", "house", "tree", "car", "boat", "sun", "moon", "cloud", "flower",
    "fish", "cat", "cup", "key", "mushroom",
)  # fmt: skip
COLOURS: tuple[str, ...] = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
SIZES: tuple[str, ...] = ("small", "medium", "large")
BACKGROUNDS: tuple[str, ...] = ("day", "night", "grass", "sea", "sand", "snow")
QUADRANTS: tuple[str, ...] = ("top left", "top right", "bottom left", "bottom right")
MIDDLE = "middle"
SLOTS: tuple[str, ...] = (*QUADRANTS, MIDDLE)
RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")
OPPOSITE: dict[str, str] = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

WORLD = 64
"""Side of the world in world pixels."""
MAX_THINGS = 4
MAX_JITTER = 2
DIAMETER: dict[str, int] = {"small": 15, "medium": 20, "large": 27}
"""Widest extent of a thing, outline included, in world pixels."""
CENTRE: dict[str, tuple[int, int]] = {
    "top left": (16, 16),
    "top right": (48, 16),
    "bottom left": (16, 48),
    "bottom right": (48, 48),
    "middle": (32, 32),
}
"""(x, y) of each slot in world pixels, y downwards."""


class SceneError(BagelError):
    """A scene, or a request to the toy world, is impossible."""


def choose_from(what: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise SceneError unless `value` is one of `allowed`; `what` names it in the message."""
    if value not in allowed:
        raise SceneError(f"{what} is {value!r}; it must be one of {', '.join(allowed)}")


@dataclass(frozen=True)
class Thing:
    """One thing in a scene. `dx`, `dy` are whole world pixels off the slot's centre, −2..2. Raises SceneError."""

    kind: str
    colour: str
    size: str
    slot: str
    dx: int = 0
    dy: int = 0

    def __post_init__(self) -> None:
        choose_from("thing kind", self.kind, KINDS)
        choose_from("thing colour", self.colour, COLOURS)
        choose_from("thing size", self.size, SIZES)
        choose_from("thing slot", self.slot, SLOTS)
        for name, value in (("dx", self.dx), ("dy", self.dy)):
            if not isinstance(value, int) or isinstance(value, bool) or abs(value) > MAX_JITTER:
                raise SceneError(
                    f"thing {name} is {value!r}; it must be a whole number from {-MAX_JITTER} to {MAX_JITTER}"
                )

    @property
    def centre(self) -> tuple[int, int]:
        """(x, y) in world pixels."""
        x, y = CENTRE[self.slot]
        return x + self.dx, y + self.dy


@dataclass(frozen=True)
class Scene:
    """A background and its things, kept in reading order, so that equal scenes compare equal. Raises SceneError."""

    background: str
    things: tuple[Thing, ...] = ()

    def __post_init__(self) -> None:
        choose_from("background", self.background, BACKGROUNDS)
        things = tuple(self.things)
        if len(things) > MAX_THINGS:
            raise SceneError(f"the scene has {len(things)} things; there is room for {MAX_THINGS}")
        slots = [thing.slot for thing in things]
        for slot in slots:
            if slots.count(slot) > 1:
                raise SceneError(f"{slots.count(slot)} things stand in the {slot}; each needs a place of its own")
        if MIDDLE in slots and len(things) > 1:
            raise SceneError(f"a thing stands in the middle of {len(things)}; only one that is alone may")
        object.__setattr__(self, "things", tuple(sorted(things, key=lambda thing: SLOTS.index(thing.slot))))

    def free_slots(self) -> tuple[str, ...]:
        """Places where one more thing may stand; the middle is among them only in an empty scene."""
        taken = {thing.slot for thing in self.things}
        if MIDDLE in taken:
            return ()
        return tuple(slot for slot in SLOTS if slot not in taken and (slot != MIDDLE or not taken))

    def to_json(self) -> str:
        """One line of JSON, for messages and records."""
        return json.dumps({"background": self.background, "things": [vars(thing) for thing in self.things]})


def relation_of_slots(a: str, b: str) -> str | None:
    """The relation of slot `a` to slot `b` if they share a row or a column of the quadrants, else None."""
    if a == b or MIDDLE in (a, b):
        return None
    (ax, ay), (bx, by) = CENTRE[a], CENTRE[b]
    if ay == by:
        return "left of" if ax < bx else "right of"
    if ax == bx:
        return "above" if ay < by else "below"
    return None


def relation(a: Thing, b: Thing) -> str | None:
    """The relation of thing `a` to thing `b` ("left of" means a is left of b), or None for diagonal neighbours."""
    return relation_of_slots(a.slot, b.slot)


def neighbour_slot(slot: str, side: str) -> str | None:
    """The quadrant that is `side` ("left of", …) of `slot`, or None if there is none."""
    return next((other for other in QUADRANTS if relation_of_slots(other, slot) == side), None)
