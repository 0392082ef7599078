"""The words of the toy world, and phrases that several kinds of text share."""

from __future__ import annotations

import random
from collections.abc import Sequence

from bagel_mot.worlds.mini.scene import KINDS, MIDDLE, Scene, Thing

NUMBERS: tuple[str, ...] = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
PLURALS: dict[str, str] = {kind: "fish" if kind == "fish" else kind + "s" for kind in KINDS} | {"thing": "things"}
SIZE_WORDS: dict[str, str] = {"small": "small", "medium": "medium", "large": "big"}
RELATION_PHRASES: dict[str, tuple[str, ...]] = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
BACKGROUND_PHRASES: dict[str, tuple[str, ...]] = {
    "day": ("by day", "in the daytime"),
    "night": ("at night", "in the dark"),
    "grass": ("on the grass", "in a meadow"),
    "sea": ("at sea", "on the sea"),
    "sand": ("on the sand", "on the beach"),
    "snow": ("in the snow", "on the snow"),
}
"""The phrases that name each background, the plainest first."""


def with_article(noun: str) -> str:
    """The noun phrase after "a" or "an"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def noun(kind: str | None, colour: str | None = None, size: str | None = None, count: int = 1) -> str:
    """ "big red car", "red cars", "small things": medium is not named, an unknown kind is a thing."""
    words = [SIZE_WORDS[size]] if size not in (None, "medium") else []
    words += [colour] if colour else []
    name = kind or "thing"
    return " ".join([*words, name if count == 1 else PLURALS[name]])


def counted(kind: str | None, colour: str | None = None, size: str | None = None, count: int = 1) -> str:
    """ "a big red car", "three red cars"."""
    phrase = noun(kind, colour, size, count)
    return with_article(phrase) if count == 1 else f"{NUMBERS[count]} {phrase}"


def in_place(slot: str) -> str:
    """ "in the top left"."""
    return f"in the {slot}"


def at_place(slot: str) -> str:
    """The shorter "top left", for long lists; the middle keeps its article."""
    return "in the middle" if slot == MIDDLE else slot


def join(phrases: Sequence[str]) -> str:
    """ "a, b and c"."""
    if len(phrases) <= 1:
        return "".join(phrases)
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def matching(scene: Scene, kind: str | None, colour: str | None, size: str | None, slot: str | None) -> list[Thing]:
    """The things that have every attribute given."""
    return [
        thing
        for thing in scene.things
        if kind in (None, thing.kind)
        and colour in (None, thing.colour)
        and size in (None, thing.size)
        and slot in (None, thing.slot)
    ]


# ((kind, colour, size, slot) named or not, weight)
_REFERENCES: tuple[tuple[tuple[bool, bool, bool, bool], int], ...] = (
    ((True, False, False, False), 40),
    ((True, True, False, False), 30),
    ((False, True, False, False), 8),
    ((True, False, True, False), 4),
    ((True, True, True, False), 4),
    ((True, False, False, True), 6),
    ((False, False, False, True), 6),
    ((True, True, False, True), 2),
)


def refer(scene: Scene, thing: Thing, rng: random.Random, avoid: Sequence[str] = ()) -> str:
    """A phrase for one thing that fits no other in the scene: "the car", "the red thing", "the star in the top left".

    `avoid` names attributes ("kind", "colour", "size", "slot") that the phrase must not reveal; "" if no phrase fits.
    """
    phrases: list[str] = []
    weights: list[int] = []
    for (use_kind, use_colour, use_size, use_slot), weight in _REFERENCES:
        named = {"kind": use_kind, "colour": use_colour, "size": use_size, "slot": use_slot}
        if any(named[attribute] for attribute in avoid) or (use_size and thing.size == "medium"):
            continue
        kind = thing.kind if use_kind else None
        colour = thing.colour if use_colour else None
        size = thing.size if use_size else None
        slot = thing.slot if use_slot else None
        if len(matching(scene, kind, colour, size, slot)) == 1:
            place = f" {in_place(slot)}" if slot else ""
            phrases.append(f"the {noun(kind, colour, size)}{place}")
            weights.append(weight)
    if not phrases:
        return ""
    return rng.choices(phrases, weights)[0]


def background_phrase(background: str, rng: random.Random) -> str:
    """One of the phrases for a background, the plainest most often."""
    phrases = BACKGROUND_PHRASES[background]
    return phrases[0] if rng.random() < 0.7 else rng.choice(phrases)


def relation_phrase(side: str, rng: random.Random) -> str:
    """One of the phrases for a relation, the plainest most often."""
    phrases = RELATION_PHRASES[side]
    return phrases[0] if rng.random() < 0.7 else rng.choice(phrases)
