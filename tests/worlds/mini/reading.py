"""A second reader of instructions and questions: from the words back to the scene, by brute force.

It shares nothing with the code under test but the scene type and the world's plain lists of names.
"""

from __future__ import annotations

import re
from dataclasses import replace

from bagel_mot.worlds.mini.scene import BACKGROUNDS, CENTRE, COLOURS, KINDS, SIZES, SLOTS, Scene, Thing

NUMBER_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
NUMBER = {word: i for i, word in enumerate(NUMBER_WORDS)}
WORD = {i: word for word, i in NUMBER.items()}
SIZE = {"small": "small", "big": "large", "medium": "medium"}
SINGULAR = {kind + "s": kind for kind in KINDS} | {"fish": "fish", "things": "thing"}
WHERE = {
    "by day": "day",
    "in the daytime": "day",
    "at night": "night",
    "in the dark": "night",
    "on the grass": "grass",
    "in a meadow": "grass",
    "at sea": "sea",
    "on the sea": "sea",
    "on the sand": "sand",
    "on the beach": "sand",
    "in the snow": "snow",
    "on the snow": "snow",
} | {name: name for name in BACKGROUNDS}
SIDES = {"left of", "right of", "above", "below"}
SYNONYM = {
    "to the left of": "left of",
    "to the right of": "right of",
    "over": "above",
    "under": "below",
} | {side: side for side in SIDES}


def attributes(phrase: str) -> dict[str, str]:
    """What "a big red car in the top left" says of the thing."""
    found: dict[str, str] = {}
    place = re.search(r"(?: in the|) (top left|top right|bottom left|bottom right|middle)$", phrase)
    if place:
        found["slot"] = place.group(1)
        phrase = phrase[: place.start()]
    for word in phrase.split():
        if word in SIZE:
            found["size"] = SIZE[word]
        elif word in COLOURS:
            found["colour"] = word
        elif SINGULAR.get(word, word) in KINDS:
            found["kind"] = SINGULAR.get(word, word)
        else:
            assert word in ("the", "a", "an", "thing", "things", "all"), f"{word!r} in {phrase!r}"
    return found


def meant(scene: Scene, phrase: str) -> list[Thing]:
    """The things that a phrase fits."""
    if phrase == "it":
        return list(scene.things)
    if phrase in ("everything", "every thing"):
        return list(scene.things)
    wanted = attributes(phrase)
    return [thing for thing in scene.things if all(getattr(thing, name) == value for name, value in wanted.items())]


def only(scene: Scene, phrase: str) -> Thing:
    """The one thing that a phrase fits."""
    things = meant(scene, phrase)
    assert len(things) == 1, f"{phrase!r} fits {len(things)} things"
    return things[0]


def beside(scene: Scene, anchor: Thing, side: str) -> Thing | None:
    """The thing in the same row or column on that side."""
    ax, ay = CENTRE[anchor.slot]
    for thing in scene.things:
        x, y = CENTRE[thing.slot]
        if {"left of": (ax - 32, ay), "right of": (ax + 32, ay), "above": (ax, ay - 32), "below": (ax, ay + 32)}[
            side
        ] == (
            x,
            y,
        ):
            return thing
    return None


def beyond(scene: Scene, anchor: Thing, side: str) -> list[Thing]:
    """All things that lie on that side at all."""
    ax, ay = CENTRE[anchor.slot]
    return [
        thing
        for thing in scene.things
        if {
            "left of": CENTRE[thing.slot][0] < ax,
            "right of": CENTRE[thing.slot][0] > ax,
            "above": CENTRE[thing.slot][1] < ay,
            "below": CENTRE[thing.slot][1] > ay,
        }[side]
    ]


def _rebuilt(scene: Scene, changes: dict[Thing, Thing | None]) -> Scene:
    things = [changes.get(thing, thing) for thing in scene.things]
    return Scene(scene.background, tuple(thing for thing in things if thing is not None))


def carry_out(scene: Scene, instruction: str) -> tuple[Scene, str | None]:
    """The scene after an instruction, and the place of an added thing, whose jitter is free (it has none here)."""
    text = instruction
    match = re.fullmatch(
        r"change the background to (.+)|make the background (.+)|let it be (.+)|put everything (.+)", text
    )
    if match:
        return replace(scene, background=WHERE[next(group for group in match.groups() if group)]), None
    match = re.fullmatch(r"make it (day|night)", text)
    if match:
        return replace(scene, background=match.group(1)), None
    match = re.fullmatch(r"change the colour of (.+) to (\w+)", text)
    if match:
        thing = only(scene, match.group(1))
        return _rebuilt(scene, {thing: replace(thing, colour=match.group(2))}), None
    match = re.fullmatch(r"(?:remove|delete) (.+)|take (.+) away", text)
    if match:
        phrase = match.group(1) or match.group(2)
        group = meant(scene, phrase)
        assert len(group) == 1 or phrase.startswith("all ") or phrase == "everything"
        return _rebuilt(scene, dict.fromkeys(group)), None
    match = re.fullmatch(r"swap (.+) and (.+)|let (.+) and (.+) change places", text)
    if match:
        first, second = (only(scene, phrase) for phrase in match.groups() if phrase)
        return _rebuilt(
            scene, {first: replace(first, slot=second.slot), second: replace(second, slot=first.slot)}
        ), None
    match = re.fullmatch(r"turn (.+) into (.+)|replace (.+) with (.+)", text)
    if match:
        phrase, new = (group for group in match.groups() if group)
        group = meant(scene, phrase)
        assert len(group) == 1 or phrase.startswith("all ") or phrase == "every thing"
        return _rebuilt(scene, {thing: replace(thing, **attributes(new)) for thing in group}), None
    match = re.fullmatch(
        r"(?:move|put) ((?:the|it)\b.*?) (?:to|in) the (top left|top right|bottom left|bottom right|middle)", text
    )
    if match:
        thing = only(scene, match.group(1))
        return _rebuilt(scene, {thing: replace(thing, slot=match.group(2))}), None
    match = re.fullmatch(r"(?:add|put) (an? .+)", text)
    if match:
        return _add(scene, match.group(1))
    match = re.fullmatch(r"(?:make|paint|turn) (.+) (\w+)", text)
    assert match, f"cannot read {text!r}"
    phrase, word = match.groups()
    group = meant(scene, phrase)
    assert len(group) == 1 or phrase.startswith("all ") or phrase == "everything"
    if word in COLOURS:
        return _rebuilt(scene, {thing: replace(thing, colour=word) for thing in group}), None
    if word in ("bigger", "smaller"):
        step = 1 if word == "bigger" else -1
        return _rebuilt(scene, {t: replace(t, size=SIZES[SIZES.index(t.size) + step]) for t in group}), None
    return _rebuilt(scene, {thing: replace(thing, size=SIZE[word]) for thing in group}), None


def _add(scene: Scene, phrase: str) -> tuple[Scene, str]:
    relation = re.search(r" (to the left of|to the right of|left of|right of|above|over|below|under) (the .+)$", phrase)
    if relation:
        anchor, side = only(scene, relation.group(2)), SYNONYM[relation.group(1)]
        ax, ay = CENTRE[anchor.slot]
        target = {"left of": (ax - 32, ay), "right of": (ax + 32, ay), "above": (ax, ay - 32), "below": (ax, ay + 32)}[
            side
        ]
        slot = next(name for name in SLOTS if CENTRE[name] == target)
        named = attributes(phrase[: relation.start()])
    else:
        named = attributes(phrase)
        slot = named.pop("slot")
    thing = Thing(named["kind"], named["colour"], named.get("size", "medium"), slot)
    return Scene(scene.background, (*scene.things, thing)), slot


def answer(scene: Scene, question: str) -> str | None:
    """The answer to a question; None where the scene does not fix one."""
    text = question.removesuffix("?")
    match = re.fullmatch(r"How many (.+) are there", text)
    if match:
        return WORD[len(meant(scene, match.group(1)))]
    match = re.fullmatch(r"What colou?r (?:is|are) (.+)|What color (?:is|are) (.+)", text)
    if match:
        phrase = next(group for group in match.groups() if group)
        colours = {thing.colour for thing in _resolve(scene, phrase)}
        assert len(colours) == 1, question
        return colours.pop()
    match = re.fullmatch(r"Where is (.+)", text)
    if match:
        return only(scene, match.group(1)).slot
    if text in ("What is the background", "Which background is it", "What is behind the things", "Is it day or night"):
        return scene.background
    match = re.fullmatch(r"Is the background (\w+) or (\w+)", text)
    if match:
        assert scene.background in match.groups()
        return scene.background
    match = re.fullmatch(r"Are there more (.+) than (.+)", text)
    if match:
        return "yes" if len(meant(scene, match.group(1))) > len(meant(scene, match.group(2))) else "no"
    match = re.fullmatch(r"Which is (bigger|smaller), (the .+) or (the .+)", text)
    if match:
        first, second = only(scene, match.group(2)), only(scene, match.group(3))
        difference = SIZES.index(first.size) - SIZES.index(second.size)
        if match.group(1) == "smaller":
            difference = -difference
        return "same" if difference == 0 else match.group(2 if difference > 0 else 3).removeprefix("the ")
    match = re.fullmatch(r"Is there (an? .+)", text)
    if match:
        return "yes" if meant(scene, match.group(1)) else "no"
    match = re.fullmatch(r"Is it (.+)", text)
    if match:
        return "yes" if WHERE[match.group(1)] == scene.background else "no"
    match = re.fullmatch(r"Is (the .+) (left of|right of|above|below) (the .+)", text)
    if match:
        first, side, second = match.groups()
        anchor, thing = only(scene, second), only(scene, first)
        strict = beside(scene, anchor, side) is thing
        assert strict or thing not in beyond(scene, anchor, side), f"{question} is asked of diagonal things"
        return "yes" if strict else "no"
    match = re.fullmatch(r"Is (the .+) (\w+)", text)
    if match and match.group(2) in COLOURS:
        return "yes" if only(scene, match.group(1)).colour == match.group(2) else "no"
    return _what_is(scene, text)


def _resolve(scene: Scene, phrase: str) -> list[Thing]:
    """The things of a phrase that may go by a neighbour: "the thing left of the tree"."""
    match = re.fullmatch(r"the thing (directly )?(left of|right of|above|below) (the .+)", phrase)
    if not match:
        return meant(scene, phrase)
    anchor = only(scene, match.group(3))
    found = beside(scene, anchor, match.group(2))
    assert found is not None
    assert match.group(1) or beyond(scene, anchor, match.group(2)) == [found]
    return [found]


def _what_is(scene: Scene, text: str) -> str:
    match = re.fullmatch(r"What is next to (the .+)", text)
    if match:
        anchor = only(scene, match.group(1))
        found = [thing for side in ("left of", "right of") if (thing := beside(scene, anchor, side))]
        assert len(found) == 1
        return found[0].kind
    match = re.fullmatch(r"What is (directly )?(left of|right of|above|below) (the .+)", text)
    if match:
        anchor = only(scene, match.group(3))
        found_one = beside(scene, anchor, match.group(2))
        if found_one is None:
            assert not beyond(scene, anchor, match.group(2)), f"{text}: a diagonal thing could be meant"
            return "nothing"
        assert match.group(1) or beyond(scene, anchor, match.group(2)) == [found_one], f"{text}: not directly"
        return found_one.kind
    match = re.fullmatch(r"What is in the (.+)", text)
    if match:
        found = [thing for thing in scene.things if thing.slot == match.group(1)]
        return found[0].kind if found else "nothing"
    match = re.fullmatch(r"What is (the .+)", text)
    assert match, f"cannot read {text!r}"
    return only(scene, match.group(1)).kind
