"""Captions: each is true of its scene and names every thing in it; only attributes may be left out.

A caption without places names things in reading order, as people do. Every caption comes with its spec, so that an
image drawn from it can be scored.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from bagel_mot.worlds.mini.scene import Scene, Thing, choose_from, relation
from bagel_mot.worlds.mini.spec import Spec, ThingSpec
from bagel_mot.worlds.mini.words import (
    BACKGROUND_PHRASES,
    at_place,
    background_phrase,
    counted,
    in_place,
    join,
    relation_phrase,
)

STYLE_WEIGHTS: dict[str, int] = {
    "full": 20,
    "loose": 13,
    "short": 24,
    "count": 12,
    "place": 12,
    "relation": 14,
    "background": 5,
}
STYLES: tuple[str, ...] = tuple(STYLE_WEIGHTS)
PREFIXES = ("a picture of", "a photo of", "a drawing of", "draw")
PREFIX_SHARE = 0.25
SIZE_SHARE = 0.25
"""Share of captions that name sizes, in the styles that may."""
MAX_SIZES_NAMED = 2


@dataclass(frozen=True)
class CaptionPlan:
    """The facts that a caption is going to mention."""

    arrangement: str = "none"
    """ "none", "places" or "relation"."""
    background: bool = False
    sizes: bool = False
    colours: str = "all"
    """ "all", "none", or "but one"."""


@dataclass(frozen=True)
class _Said:
    """A thing and the attributes that the caption mentions."""

    thing: Thing
    spec: ThingSpec

    @property
    def noun(self) -> str:
        return counted(self.spec.kind, self.spec.colour, self.spec.size)


def caption(scene: Scene, rng: random.Random, style: str | None = None) -> str:
    """A caption of the scene; see `caption_with_spec`."""
    return caption_with_spec(scene, rng, style)[0]


def caption_with_spec(scene: Scene, rng: random.Random, style: str | None = None) -> tuple[str, Spec]:
    """A caption in one of STYLES (drawn when None) and its spec.

    A style that does not suit the scene (a relation between diagonal things, a count of one) falls back to the nearest
    one that does. Raises SceneError for an unknown style.
    """
    if style is None:
        style = rng.choices(STYLES, list(STYLE_WEIGHTS.values()))[0]
    choose_from("caption style", style, STYLES)
    plan = _plan(scene, style, rng)
    things = list(scene.things)
    if plan.arrangement != "none":
        # A caption without places still tells by its order which of two things stands where, so that two regions of an
        # image need not agree on it by chance; a caption with places may use any order.
        rng.shuffle(things)
    said = _choose_words(things, plan, rng)
    relations: tuple[tuple[int, str, int], ...] = ()
    if not said:
        text = "nothing"
    elif plan.arrangement == "relation":
        text, said, relations = _relation_text(said, rng)
    elif plan.arrangement == "places":
        text, said = _places_text(said, rng)
    else:
        text = _listing(said)
    prefix = f"{rng.choice(PREFIXES)} " if said and rng.random() < PREFIX_SHARE else ""
    if plan.background:
        where = background_phrase(scene.background, rng)
        if style == "background" and rng.random() < 0.4:
            text = f"{where}, {prefix}{text}"
        else:
            text = f"{prefix}{text}{', ' if plan.arrangement != 'none' else ' '}{where}"
    else:
        text = prefix + text
    return text, Spec(scene.background if plan.background else None, tuple(item.spec for item in said), relations)


def describe(scene: Scene) -> str:
    """The complete description of a scene: reading order, sizes, colours, places, background."""
    phrases = [f"{counted(t.kind, t.colour, t.size)} {at_place(t.slot)}" for t in scene.things] or ["nothing"]
    return f"{', '.join(phrases)}, {BACKGROUND_PHRASES[scene.background][0]}"


def tell(scene: Scene, rng: random.Random) -> str:
    """All that `describe` says, in any order and in the words of captions."""
    say = rng.choice((in_place, at_place))
    phrases = [f"{counted(t.kind, t.colour, t.size)} {say(t.slot)}" for t in scene.things]
    rng.shuffle(phrases)
    prefix = f"{rng.choice(PREFIXES)} " if phrases and rng.random() < PREFIX_SHARE else ""
    return f"{prefix}{join(phrases) if phrases else 'nothing'}, {background_phrase(scene.background, rng)}"


def can_relate(scene: Scene) -> bool:
    """Whether the scene can be told by relations alone: two aligned things, or three around a corner."""
    if len(scene.things) == 2:
        return relation(*scene.things) is not None
    return len(scene.things) == 3


def _plan(scene: Scene, style: str, rng: random.Random) -> CaptionPlan:
    related = can_relate(scene)
    if not scene.things:
        return CaptionPlan(background=True)
    sizes = rng.random() < SIZE_SHARE
    arranged = "relation" if related and rng.random() < 0.5 else "places"
    if style == "full":
        return CaptionPlan(arranged, background=True, sizes=sizes)
    if style == "loose":
        plan = CaptionPlan(arranged, background=True, sizes=sizes)
        drops = rng.sample(("background", "arrangement", "colour"), rng.choice((1, 2)))
        if "background" in drops:
            plan = replace(plan, background=False)
        if "arrangement" in drops:
            plan = replace(plan, arrangement="none")
        if "colour" in drops:
            plan = replace(plan, colours="but one" if rng.random() < 0.6 else "none")
        return plan
    if style == "short":
        return CaptionPlan(colours="none" if rng.random() < 0.4 else "all")
    if style == "count":
        repeated = len({thing.kind for thing in scene.things}) < len(scene.things)
        colours = "none" if repeated and rng.random() < 0.4 else "all"
        return CaptionPlan(background=rng.random() < 0.25, colours=colours)
    if style == "background":
        return CaptionPlan(background=True, colours="none" if rng.random() < 0.15 else "all")
    colours = "all" if rng.random() < 0.65 else "none"
    arrangement = "relation" if style == "relation" and related else "places"
    return CaptionPlan(arrangement, background=rng.random() < 0.2, sizes=sizes and rng.random() < 0.5, colours=colours)


def _choose_words(things: list[Thing], plan: CaptionPlan, rng: random.Random) -> list[_Said]:
    colourless = {"all": (), "none": range(len(things)), "but one": (rng.randrange(max(1, len(things))),)}[plan.colours]
    sizeable = [i for i, thing in enumerate(things) if thing.size != "medium"]
    sized = rng.sample(sizeable, min(len(sizeable), MAX_SIZES_NAMED)) if plan.sizes else []
    return [
        _Said(
            thing,
            ThingSpec(
                thing.kind,
                None if i in colourless else thing.colour,
                thing.size if i in sized else None,
            ),
        )
        for i, thing in enumerate(things)
    ]


def _listing(said: list[_Said]) -> str:
    """Things said alike are counted together: "two red cars and a boat"."""
    counts: dict[ThingSpec, int] = {}
    for item in said:
        counts[item.spec] = counts.get(item.spec, 0) + 1
    return join([counted(spec.kind, spec.colour, spec.size, count) for spec, count in counts.items()])


def _places_text(said: list[_Said], rng: random.Random) -> tuple[str, list[_Said]]:
    """Each thing with its place, the short form when the list is long."""
    placed = [_Said(item.thing, replace(item.spec, slot=item.thing.slot)) for item in said]
    brief = len(said) == 4 or (len(said) == 3 and rng.random() < 0.8)
    say = at_place if brief else in_place
    return join([f"{item.noun} {say(item.thing.slot)}" for item in placed]), placed


def _relation_text(said: list[_Said], rng: random.Random) -> tuple[str, list[_Said], tuple[tuple[int, str, int], ...]]:
    """Two things in a relation, or the one in the corner of three with its relations to both others."""
    if len(said) == 2:
        a, b = said
        side = relation(a.thing, b.thing)
        assert side is not None
        if a.spec == b.spec:
            pair = counted(a.spec.kind, a.spec.colour, a.spec.size, 2)
            how = "side by side" if side in ("left of", "right of") else "one above the other"
            return f"{pair} {how}", said, ((0, side, 1),)
        return f"{a.noun} {relation_phrase(side, rng)} {b.noun}", said, ((0, side, 1),)
    corner = next(
        item for item in said if all(relation(item.thing, other.thing) for other in said if other is not item)
    )
    others = [item for item in said if item is not corner]
    parts = []
    relations = []
    for i, other in enumerate(others):
        side = relation(corner.thing, other.thing)
        assert side is not None
        parts.append(f"{relation_phrase(side, rng)} {other.noun}")
        relations.append((0, side, i + 1))
    return f"{corner.noun} {' and '.join(parts)}", [corner, *others], tuple(relations)
