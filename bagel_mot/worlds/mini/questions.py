"""Questions about a scene and their short, unambiguous answers: one to three words, numbers as words.

"Left of", "above" and the rest speak of things in the same row or column. Where a diagonal thing could be meant as
well, the question says "directly", or is not asked.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from bagel_mot.worlds.mini.scene import (
    BACKGROUNDS,
    CENTRE,
    COLOURS,
    KINDS,
    OPPOSITE,
    QUADRANTS,
    RELATIONS,
    SIZES,
    SLOTS,
    Scene,
    SceneError,
    Thing,
    choose_from,
    neighbour_slot,
)
from bagel_mot.worlds.mini.words import (
    BACKGROUND_PHRASES,
    NUMBERS,
    PLURALS,
    in_place,
    matching,
    noun,
    refer,
    with_article,
)

MAX_TRIES = 40


@dataclass(frozen=True)
class QA:
    """A question, its answer to the letter, and its type (one of QUESTION_TYPES)."""

    question: str
    answer: str
    type: str


def questions(scene: Scene, rng: random.Random, n: int) -> list[QA]:
    """Up to `n` different questions of mixed types; fewer only if the scene does not allow as many."""
    asked: dict[str, QA] = {}
    for _ in range(n * 4):
        if len(asked) == n:
            break
        qa = question(scene, rng)
        asked.setdefault(qa.question, qa)
    return list(asked.values())


def question(scene: Scene, rng: random.Random, type: str | None = None) -> QA:
    """One question of a type, or of any type the scene allows when None. Raises SceneError if it allows none."""
    if type is not None:
        choose_from("question type", type, QUESTION_TYPES)
    types = [type] if type is not None else rng.sample(QUESTION_TYPES, len(QUESTION_TYPES))
    for name in types:
        for _ in range(MAX_TRIES if type is not None else 4):
            found = _ASKERS[name](scene, rng)
            if found is not None:
                return QA(found[0], found[1], name)
    raise SceneError(f"no {type} question can be asked of the scene {scene.to_json()}")


def geometric(side: str, a: str, b: str) -> bool:
    """Whether the centre of slot `a` lies on that side of slot `b` at all, diagonals included."""
    (ax, ay), (bx, by) = CENTRE[a], CENTRE[b]
    return {"left of": ax < bx, "right of": ax > bx, "above": ay < by, "below": ay > by}[side]


_Asked = tuple[str, str] | None


def _colour_word(rng: random.Random) -> str:
    return "color" if rng.random() < 0.15 else "colour"


def _some_kind(scene: Scene, rng: random.Random) -> str:
    """A kind, mostly one that is in the scene."""
    if scene.things and rng.random() < 0.85:
        return rng.choice(scene.things).kind
    return rng.choice(KINDS)


def _some_colour(scene: Scene, rng: random.Random) -> str:
    if scene.things and rng.random() < 0.85:
        return rng.choice(scene.things).colour
    return rng.choice(COLOURS)


def _count(scene: Scene, rng: random.Random) -> _Asked:
    roll = rng.random()
    if roll < 0.2:
        return "How many things are there?", NUMBERS[len(scene.things)]
    kind = _some_kind(scene, rng) if roll < 0.85 else None
    colour = _some_colour(scene, rng) if roll >= 0.65 else None
    number = len(matching(scene, kind, colour, None, None))
    return f"How many {noun(kind, colour, count=2)} are there?", NUMBERS[number]


def _colour(scene: Scene, rng: random.Random) -> _Asked:
    if not scene.things:
        return None
    thing = rng.choice(scene.things)
    name = refer(scene, thing, rng, avoid=("colour",))
    if rng.random() < 0.2:
        name = _by_neighbour(scene, thing, rng) or name
    if rng.random() < 0.15:
        alike = matching(scene, thing.kind, None, None, None)
        if len(alike) > 1 and len({other.colour for other in alike}) == 1:
            return f"What {_colour_word(rng)} are the {PLURALS[thing.kind]}?", thing.colour
    return (f"What {_colour_word(rng)} is {name}?", thing.colour) if name else None


def _by_neighbour(scene: Scene, thing: Thing, rng: random.Random) -> str:
    """ "the thing left of the tree", or "" if there is no such phrase for it."""
    side = rng.choice(RELATIONS)
    slot = neighbour_slot(thing.slot, OPPOSITE[side])
    anchors = matching(scene, None, None, None, slot) if slot else []
    if not anchors:
        return ""
    name = refer(scene, anchors[0], rng, avoid=("slot",))
    return f"the thing {_directly(scene, anchors[0], side)}{side} {name}" if name else ""


def _directly(scene: Scene, anchor: Thing, side: str) -> str:
    """ "directly " if a diagonal thing lies on that side of the anchor as well as the one in its row or column."""
    there = [thing for thing in scene.things if thing is not anchor and geometric(side, thing.slot, anchor.slot)]
    return "directly " if len(there) > 1 else ""


def _position(scene: Scene, rng: random.Random) -> _Asked:
    if not scene.things:
        return None
    thing = rng.choice(scene.things)
    name = refer(scene, thing, rng, avoid=("slot",))
    if not name:
        return None
    if rng.random() < 0.45:
        return f"Where is {name}?", thing.slot
    side = rng.choice(RELATIONS)
    slot = neighbour_slot(thing.slot, side)
    found = matching(scene, None, None, None, slot) if slot else []
    if found:
        if side in ("left of", "right of") and rng.random() < 0.2:
            return f"What is next to {name}?", found[0].kind
        return f"What is {_directly(scene, thing, side)}{side} {name}?", found[0].kind
    if any(geometric(side, other.slot, thing.slot) for other in scene.things) or rng.random() < 0.75:
        return None
    return f"What is {side} {name}?", "nothing"


def _exist(scene: Scene, rng: random.Random) -> _Asked:
    """A yes or no question; the answer is drawn first, so that both come equally often."""
    wanted = rng.random() < 0.5
    form = rng.choices((_exist_thing, _exist_colour, _exist_relation, _exist_background), (60, 15, 15, 10))[0]
    for _ in range(MAX_TRIES):
        made = form(scene, rng, wanted)
        if made is not None and made[1] == wanted:
            return made[0], "yes" if wanted else "no"
    return None


def _exist_thing(scene: Scene, rng: random.Random, wanted: bool) -> tuple[str, bool] | None:
    """ "Is there a red car in the top left?": a no is often right but for one attribute."""
    kind: str | None = rng.choice(KINDS)
    colour: str | None = rng.choice(COLOURS)
    slot: str | None = rng.choice(QUADRANTS)
    if scene.things:
        model = rng.choice(scene.things)
        change = () if wanted else rng.choice((("kind",), ("colour",), ("slot",), ("kind", "colour")))
        kind = kind if "kind" in change else model.kind
        colour = colour if "colour" in change else model.colour
        slot = slot if "slot" in change else model.slot
    named = rng.choice(("kind", "kind", "colour kind", "colour kind", "colour", "kind slot", "colour kind slot"))
    kind = kind if "kind" in named else None
    colour = colour if "colour" in named else None
    slot = slot if "slot" in named else None
    place = f" {in_place(slot)}" if slot else ""
    there = bool(matching(scene, kind, colour, None, slot))
    return f"Is there {with_article(noun(kind, colour))}{place}?", there


def _exist_colour(scene: Scene, rng: random.Random, wanted: bool) -> tuple[str, bool] | None:
    """ "Is the car red?" """
    if not scene.things:
        return None
    thing = rng.choice(scene.things)
    name = refer(scene, thing, rng, avoid=("colour",))
    colour = thing.colour if wanted else _some_colour(scene, rng) if rng.random() < 0.5 else rng.choice(COLOURS)
    return (f"Is {name} {colour}?", colour == thing.colour) if name else None


def _exist_relation(scene: Scene, rng: random.Random, wanted: bool) -> tuple[str, bool] | None:
    """ "Is the car left of the tree?": never asked of diagonal things."""
    if len(scene.things) < 2:
        return None
    a, b = rng.sample(scene.things, 2)
    side = rng.choice(RELATIONS)
    if geometric(side, a.slot, b.slot) and neighbour_slot(b.slot, side) != a.slot:
        return None
    first, second = refer(scene, a, rng, avoid=("slot",)), refer(scene, b, rng, avoid=("slot",))
    if not first or not second:
        return None
    return f"Is {first} {side} {second}?", neighbour_slot(b.slot, side) == a.slot


def _exist_background(scene: Scene, rng: random.Random, wanted: bool) -> tuple[str, bool]:
    """ "Is it at night?" """
    name = scene.background if wanted else rng.choice(BACKGROUNDS)
    return f"Is it {rng.choice(BACKGROUND_PHRASES[name])}?", name == scene.background


def _background(scene: Scene, rng: random.Random) -> _Asked:
    forms = ["What is the background?", "Which background is it?", "What is behind the things?"]
    if scene.background in ("day", "night"):
        forms.append("Is it day or night?")
    else:
        other = rng.choice([name for name in BACKGROUNDS if name != scene.background])
        pair = rng.sample((scene.background, other), 2)
        forms.append(f"Is the background {pair[0]} or {pair[1]}?")
    return rng.choice(forms), scene.background


def _compare(scene: Scene, rng: random.Random) -> _Asked:
    if len(scene.things) >= 2 and rng.random() < 0.5:
        return _compare_sizes(scene, rng)
    wanted = rng.random() < 0.5
    for _ in range(MAX_TRIES):
        if rng.random() < 0.7:
            first, second = _some_kind(scene, rng), _some_kind(scene, rng)
            names = PLURALS[first], PLURALS[second]
            counts = [sum(thing.kind == kind for thing in scene.things) for kind in (first, second)]
        else:
            first, second = _some_colour(scene, rng), _some_colour(scene, rng)
            names = f"{first} things", f"{second} things"
            counts = [sum(thing.colour == colour for thing in scene.things) for colour in (first, second)]
        if first != second and (counts[0] > counts[1]) == wanted:
            return f"Are there more {names[0]} than {names[1]}?", "yes" if wanted else "no"
    return None


def _compare_sizes(scene: Scene, rng: random.Random) -> _Asked:
    a, b = rng.sample(scene.things, 2)
    first = refer(scene, a, rng, avoid=("size", "slot"))
    second = refer(scene, b, rng, avoid=("size", "slot"))
    if not first or not second or "thing" in first + second:
        return None
    if a.size == b.size:
        return (f"Which is bigger, {first} or {second}?", "same") if rng.random() < 0.5 else None
    bigger, smaller = (first, second) if SIZES.index(a.size) > SIZES.index(b.size) else (second, first)
    word, answer = ("bigger", bigger) if rng.random() < 0.7 else ("smaller", smaller)
    return f"Which is {word}, {first} or {second}?", answer.removeprefix("the ")


def _thing(scene: Scene, rng: random.Random) -> _Asked:
    if rng.random() < 0.12:
        free = [slot for slot in SLOTS if not matching(scene, None, None, None, slot)]
        return f"What is {in_place(rng.choice(free))}?", "nothing"
    if not scene.things:
        return None
    thing = rng.choice(scene.things)
    if rng.random() < 0.45:
        return f"What is {in_place(thing.slot)}?", thing.kind
    name = refer(scene, thing, rng, avoid=("kind", "slot"))
    if not name:
        size = thing.size if thing.size != "medium" else None
        for colour, big in ((thing.colour, size), (None, size)):
            if big and len(matching(scene, None, colour, big, None)) == 1:
                return f"What is the {noun(None, colour, big)}?", thing.kind
        return None
    return f"What is {name}?", thing.kind


_ASKERS: dict[str, Callable[[Scene, random.Random], _Asked]] = {
    asker.__name__[1:]: asker for asker in (_count, _colour, _position, _exist, _background, _compare, _thing)
}
QUESTION_TYPES: tuple[str, ...] = tuple(_ASKERS)
