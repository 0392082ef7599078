"""Specs: the constraints of a caption, riddle or instruction on an image, and the check whether a scene meets them.

A spec names exactly the things that must be there and no others; an attribute that is None is free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Protocol

from bagel_mot.worlds.mini.scene import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    RELATIONS,
    SIZES,
    SLOTS,
    Scene,
    SceneError,
    choose_from,
)

RELATION_MARGIN = 8
"""World pixels by which one centre must lie beyond the other for a relation to hold."""
RELATION_DRIFT = 12
"""World pixels that the centres may lie apart along the other axis: things on a diagonal have no relation, as in
the captions, questions and splits."""


class Placed(Protocol):
    """Anything with the attributes of a thing: one of a scene, or one found in an image."""

    @property
    def kind(self) -> str: ...
    @property
    def colour(self) -> str: ...
    @property
    def size(self) -> str: ...
    @property
    def slot(self) -> str | None: ...
    @property
    def centre(self) -> tuple[float, float]: ...


class Arrangement(Protocol):
    """Anything with a background and things: a scene, or what the parser found in an image."""

    @property
    def background(self) -> str: ...
    @property
    def things(self) -> Sequence[Placed]: ...


@dataclass(frozen=True)
class ThingSpec:
    """The fixed attributes of one thing; None leaves an attribute free. Raises SceneError."""

    kind: str | None = None
    colour: str | None = None
    size: str | None = None
    slot: str | None = None

    def __post_init__(self) -> None:
        for what, allowed in (("kind", KINDS), ("colour", COLOURS), ("size", SIZES), ("slot", SLOTS)):
            if getattr(self, what) is not None:
                choose_from(f"spec {what}", getattr(self, what), allowed)

    def allows(self, thing: Placed) -> bool:
        """Whether a thing has every attribute that is fixed."""
        wanted = (self.kind, self.colour, self.size, self.slot)
        found = (thing.kind, thing.colour, thing.size, thing.slot)
        return all(want is None or want == have for want, have in zip(wanted, found, strict=True))


@dataclass(frozen=True)
class Spec:
    """Exactly these things, and no others, on this background (None: any).

    `relations` holds (i, relation, j): thing i lies "left of", "right of", "above" or "below" thing j.
    """

    background: str | None = None
    things: tuple[ThingSpec, ...] = ()
    relations: tuple[tuple[int, str, int], ...] = ()

    def __post_init__(self) -> None:
        if self.background is not None:
            choose_from("spec background", self.background, BACKGROUNDS)
        for i, side, j in self.relations:
            choose_from("spec relation", side, RELATIONS)
            if i == j or not (0 <= i < len(self.things) and 0 <= j < len(self.things)):
                raise SceneError(f"spec relation ({i}, {side}, {j}) must name two of {len(self.things)} things")


def holds(side: str, a: Placed, b: Placed) -> bool:
    """Whether `a` lies on that `side` of `b`, by their centres, RELATION_MARGIN and RELATION_DRIFT."""
    (ax, ay), (bx, by) = a.centre, b.centre
    distance = {"left of": bx - ax, "right of": ax - bx, "above": by - ay, "below": ay - by}[side]
    drift = abs(ay - by) if side in ("left of", "right of") else abs(ax - bx)
    return distance >= RELATION_MARGIN and drift <= RELATION_DRIFT


def satisfies(scene: Arrangement, spec: Spec) -> bool:
    """Whether a scene is exactly as the spec demands, with nothing missing and nothing added."""
    if spec.background not in (None, scene.background) or len(scene.things) != len(spec.things):
        return False
    return any(
        all(wanted.allows(thing) for wanted, thing in zip(spec.things, order, strict=True))
        and all(holds(side, order[i], order[j]) for i, side, j in spec.relations)
        for order in permutations(scene.things)
    )


def exact_spec(scene: Scene) -> Spec:
    """The spec that fixes everything about a scene except the jitter."""
    things = tuple(ThingSpec(thing.kind, thing.colour, thing.size, thing.slot) for thing in scene.things)
    return Spec(scene.background, things)
