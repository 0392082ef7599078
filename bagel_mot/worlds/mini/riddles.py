"""Riddles: a prompt that needs a fact and a step, the thinking that solves it, and the right image or answer.

The last sentence of the thinking restates the task in the plain wording of captions, instructions and questions, so
that the task left after thinking is one that the model knows.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from bagel_mot.worlds.mini.edits import with_thing
from bagel_mot.worlds.mini.knowledge import (
    BACKGROUND_CLUES,
    CATEGORIES,
    COLOUR_CLUES,
    KIND_CLUES,
    NUMBER_FACTS,
    PARTS,
)
from bagel_mot.worlds.mini.sampling import sample_scene
from bagel_mot.worlds.mini.scene import BACKGROUNDS, COLOURS, KINDS, RELATIONS, Scene, SceneError, Thing, choose_from
from bagel_mot.worlds.mini.spec import Spec, ThingSpec, exact_spec
from bagel_mot.worlds.mini.splits import SPLITS, in_split, is_held_out_pair, is_held_out_triple
from bagel_mot.worlds.mini.words import (
    BACKGROUND_PHRASES,
    NUMBERS,
    PLURALS,
    counted,
    join,
    matching,
    noun,
    relation_phrase,
    with_article,
)

RIDDLE_TASKS: tuple[str, ...] = ("draw", "edit", "answer")
MAX_TRIES = 500


@dataclass(frozen=True)
class Riddle:
    """A riddle and its solution.

    `scene_before` is the scene of the image that comes with the prompt (edit, answer). `think` is the thinking, without
    tags. A draw or edit riddle has a `scene_after` that solves it and a `spec` of every solution; an answer riddle has
    an `answer`.
    """

    task: str
    scene_before: Scene | None
    prompt: str
    think: str
    answer: str | None
    scene_after: Scene | None
    spec: Spec | None


def sample_riddle(rng: random.Random, task: str = "draw", split: str = "train") -> Riddle:
    """A random riddle whose scenes are in the split (for an edit, the result).

    Raises SceneError for an unknown task or split.
    """
    choose_from("riddle task", task, RIDDLE_TASKS)
    choose_from("split", split, SPLITS)
    for _ in range(MAX_TRIES):
        makers = {"draw": _DRAW, "edit": _EDIT, "answer": _ANSWER}[task]
        riddle = rng.choice(makers)(rng, split)
        if riddle is None:
            continue
        scene = riddle.scene_after or riddle.scene_before
        if scene is not None and in_split(scene, split):
            return riddle
    raise SceneError(f"no {task} riddle of split {split!r} found in {MAX_TRIES} tries")


def _kind_clue(kind: str, rng: random.Random) -> tuple[str, str]:
    """(clue, the fact that resolves it)."""
    clue = rng.choice(KIND_CLUES[kind])
    return clue, f"{clue} is {with_article(kind)}."


def _colour_clue(colour: str, rng: random.Random) -> tuple[str, str]:
    owner = rng.choice(COLOUR_CLUES[colour])
    return f"the colour of {owner}", f"{owner} is {colour}."


def _solved(facts: list[str], task: str) -> str:
    """Facts, then the plain task."""
    return " ".join([*facts, f"so: {task}{'' if task.endswith('?') else '.'}"])


def _drawn(
    rng: random.Random,
    split: str,
    prompt: str,
    facts: list[str],
    plain: str,
    spec: Spec,
    slots: tuple[str, ...] | None = None,
) -> Riddle | None:
    """A draw riddle with a scene that satisfies its spec, or None where the split has none."""
    kinds = [thing.kind or rng.choice(KINDS) for thing in spec.things]
    colours = [thing.colour or rng.choice(COLOURS) for thing in spec.things]
    fixed_out = any(is_held_out_pair(kind, colour) for kind, colour in zip(kinds, colours, strict=True))
    # Things of one kind stand in no relation that is held out, so their colours alone decide the split.
    if len(set(kinds)) == 1 and fixed_out != (split == "held_out"):
        return None
    try:
        scene = sample_scene(rng, split, background=spec.background, kinds=kinds, colours=colours, slots=slots)
    except SceneError:
        return None
    return Riddle("draw", None, prompt, _solved(facts, plain), None, scene, spec)


def _ask_to_draw(what: str, rng: random.Random) -> str:
    return f"draw {what}" if rng.random() < 0.6 else what


def _draw_coloured(rng: random.Random, split: str) -> Riddle | None:
    """ "draw the vehicle that floats, in the colour of a ripe banana" """
    kind, colour = rng.choice(KINDS), rng.choice(COLOURS)
    if is_held_out_pair(kind, colour) != (split == "held_out"):
        return None
    clue, fact = _kind_clue(kind, rng)
    paint, paint_fact = _colour_clue(colour, rng)
    roll = rng.random()
    if roll < 0.15:
        what, facts = f"{with_article(kind)}, in {paint}", [paint_fact]
    elif roll < 0.3:
        what, facts = f"{clue}, in {colour}", [fact]
    else:
        what, facts = f"{clue}, in {paint}", [fact, paint_fact]
    return _drawn(
        rng, split, _ask_to_draw(what, rng), facts, counted(kind, colour), Spec(None, (ThingSpec(kind, colour),))
    )


def _draw_background(rng: random.Random, split: str) -> Riddle | None:
    """ "draw a red cat, when owls are awake" """
    kind, colour, place = rng.choice(KINDS), rng.choice(COLOURS), rng.choice(BACKGROUNDS)
    if is_held_out_pair(kind, colour) != (split == "held_out"):
        return None
    when, when_fact = rng.choice(BACKGROUND_CLUES[place])
    facts = [f"{when_fact}."]
    if rng.random() < 0.5:
        what, plain, fixed = counted(kind, colour), counted(kind, colour), ThingSpec(kind, colour)
    else:
        what, fact = _kind_clue(kind, rng)
        facts, plain, fixed = [fact, *facts], with_article(kind), ThingSpec(kind)
    plain = f"{plain} {BACKGROUND_PHRASES[place][0]}"
    return _drawn(rng, split, _ask_to_draw(f"{what}, {when}", rng), facts, plain, Spec(place, (fixed,)))


def _arithmetic(rng: random.Random, largest: int) -> tuple[int, str, list[str]]:
    """(number of 1..largest, "as a cat has legs, minus one", facts)."""
    base = rng.choice(sorted(NUMBER_FACTS))
    asked, fact = rng.choice(NUMBER_FACTS[base])
    choices = [(base, "", "")]
    for step in (1, 2):
        choices.append((base - step, f", minus {NUMBERS[step]}", f"{NUMBERS[base]} minus {NUMBERS[step]} is"))
        choices.append((base + step, f", plus {NUMBERS[step]}", f"{NUMBERS[base]} plus {NUMBERS[step]} is"))
    fitting = [choice for choice in choices if 1 <= choice[0] <= largest]
    if not fitting:
        return _arithmetic(rng, largest)
    number, words, step_fact = rng.choice(fitting)
    facts = [f"{fact}."]
    if step_fact:
        facts.append(f"{step_fact} {NUMBERS[number]}.")
    return number, f"as {asked}{words}", facts


def _draw_counted(rng: random.Random, split: str) -> Riddle | None:
    """ "draw as many stars as a cat has legs, minus one" """
    number, words, facts = _arithmetic(rng, 4)
    kind = rng.choice(KINDS)
    colour = rng.choice(COLOURS) if rng.random() < 0.6 else None
    spec = Spec(None, (ThingSpec(kind, colour),) * number)
    prompt = _ask_to_draw(f"as many {noun(kind, colour, count=2)} {words}", rng)
    return _drawn(rng, split, prompt, facts, counted(kind, colour, count=number), spec)


def _draw_related(rng: random.Random, split: str) -> Riddle | None:
    """ "draw the vehicle that floats left of the animal that purrs" """
    kind, other = rng.sample(KINDS, 2)
    side = rng.choice(RELATIONS)
    if is_held_out_triple(kind, side, other) != (split == "held_out"):
        return None
    first, second = _kind_clue(kind, rng), _kind_clue(other, rng)
    colour = rng.choice(COLOURS) if rng.random() < 0.4 else None
    paint = _colour_clue(colour, rng) if colour else None
    slots = {
        "left of": (("top left", "top right"), ("bottom left", "bottom right")),
        "above": (("top left", "bottom left"), ("top right", "bottom right")),
    }
    places = rng.choice(slots["left of" if side in ("left of", "right of") else "above"])
    if side in ("right of", "below"):
        places = (places[1], places[0])
    phrase = relation_phrase(side, rng)
    head = f"{first[0]}, in {paint[0]}," if paint else first[0]
    facts = [first[1], *([paint[1]] if paint else []), second[1]]
    spec = Spec(None, (ThingSpec(kind, colour), ThingSpec(other)), ((0, side, 1),))
    plain = f"{counted(kind, colour)} {phrase} {with_article(other)}"
    return _drawn(rng, split, _ask_to_draw(f"{head} {phrase} {second[0]}", rng), facts, plain, spec, places)


def _unique(scene: Scene, rng: random.Random) -> Thing | None:
    """A thing whose kind no other thing of the scene shares."""
    alone = [thing for thing in scene.things if len(matching(scene, thing.kind, None, None, None)) == 1]
    return rng.choice(alone) if alone else None


def _edited(scene: Scene, prompt: str, facts: list[str], plain: str, after: Scene) -> Riddle | None:
    if after == scene:
        return None
    return Riddle("edit", scene, prompt, _solved(facts, plain), None, after, exact_spec(after))


def _edit_recolour(rng: random.Random, split: str) -> Riddle | None:
    """ "make the animal that purrs the colour of grass" """
    scene = sample_scene(rng)
    thing = _unique(scene, rng)
    if thing is None:
        return None
    colour = rng.choice([name for name in COLOURS if name != thing.colour])
    clue, fact = _kind_clue(thing.kind, rng)
    paint, paint_fact = _colour_clue(colour, rng)
    roll = rng.random()
    if roll < 0.2:
        prompt, facts = f"make the {thing.kind} {paint}", [paint_fact]
    elif roll < 0.4:
        prompt, facts = f"make {clue} {colour}", [fact]
    else:
        prompt, facts = f"make {clue} {paint}", [fact, paint_fact]
    after = with_thing(scene, thing, replace(thing, colour=colour))
    return _edited(scene, prompt, facts, f"make the {thing.kind} {colour}", after)


def _edit_remove(rng: random.Random, split: str) -> Riddle | None:
    """ "remove the thing that opens a lock", or what has the colour of milk."""
    scene = sample_scene(rng)
    thing = _unique(scene, rng)
    if thing is None:
        return None
    if rng.random() < 0.4 and len(matching(scene, None, thing.colour, None, None)) == 1:
        owner = rng.choice(COLOUR_CLUES[thing.colour])
        prompt, fact, name = f"remove the thing in the colour of {owner}", f"{owner} is {thing.colour}.", "thing"
        plain = f"remove the {thing.colour} {name}"
    else:
        clue, fact = _kind_clue(thing.kind, rng)
        prompt, plain = f"remove {clue}", f"remove the {thing.kind}"
    return _edited(scene, prompt, [fact], plain, with_thing(scene, thing, None))


def _edit_replace(rng: random.Random, split: str) -> Riddle | None:
    """ "replace the animal that swims with the plant with petals" """
    scene = sample_scene(rng)
    thing = _unique(scene, rng)
    if thing is None:
        return None
    kind = rng.choice([name for name in KINDS if name != thing.kind])
    clue, fact = _kind_clue(thing.kind, rng)
    new, new_fact = _kind_clue(kind, rng)
    if rng.random() < 0.4:
        prompt, facts = f"replace the {thing.kind} with {new}", [new_fact]
    else:
        prompt, facts = f"replace {clue} with {new}", [fact, new_fact]
    after = with_thing(scene, thing, replace(thing, kind=kind))
    return _edited(scene, prompt, facts, f"replace the {thing.kind} with {with_article(kind)}", after)


def _edit_background(rng: random.Random, split: str) -> Riddle | None:
    """ "change the background to the place where camels walk" """
    scene = sample_scene(rng, split)
    name = rng.choice([other for other in BACKGROUNDS if other != scene.background])
    when, fact = rng.choice(BACKGROUND_CLUES[name])
    place = "time" if when.startswith("when") else "place"
    prompt = f"change the background to the {place} {when}"
    return _edited(scene, prompt, [f"{fact}."], f"change the background to {name}", replace(scene, background=name))


def _answered(scene: Scene, prompt: str, facts: list[str], plain: str, answer: str) -> Riddle:
    return Riddle("answer", scene, prompt, _solved(facts, plain), answer, None, None)


def _answer_parts(rng: random.Random, split: str) -> Riddle | None:
    """ "How many legs do the cats in the picture have together?" """
    kind = rng.choice(sorted(PARTS))
    part, each = rng.choice(PARTS[kind])
    number = rng.randint(1, 4)
    try:
        scene = sample_scene(rng, split, kinds=[kind] * number + rng.choices(KINDS, k=rng.randint(0, 4 - number)))
    except SceneError:
        return None
    number = len(matching(scene, kind, None, None, None))
    total = number * each
    prompt = f"How many {part} do the {PLURALS[kind]} in the picture have together?"
    singular = part[:-1]
    facts = [
        f"how many {PLURALS[kind]} are there? {NUMBERS[number]}.",
        f"{with_article(kind)} has {NUMBERS[each]} {part if each > 1 else singular}.",
    ]
    return _answered(
        scene, prompt, facts, f"{NUMBERS[number]} times {NUMBERS[each]} is {NUMBERS[total]}", NUMBERS[total]
    )


def _answer_category(rng: random.Random, split: str) -> Riddle | None:
    """ "How many vehicles are there?" """
    name = rng.choice(sorted(CATEGORIES))
    members = CATEGORIES[name]
    count = rng.randint(1, 4)
    kinds = [rng.choice(members) if rng.random() < 0.5 else rng.choice(KINDS) for _ in range(count)]
    try:
        scene = sample_scene(rng, split, kinds=kinds)
    except SceneError:
        return None
    counts = [sum(thing.kind == kind for thing in scene.things) for kind in members]
    facts = [
        f"{join([PLURALS[kind] for kind in members])} are {name}s.",
        *(f"how many {PLURALS[k]} are there? {NUMBERS[n]}." for k, n in zip(members, counts, strict=True)),
    ]
    total = sum(counts)
    plain = f"{' plus '.join(NUMBERS[n] for n in counts)} is {NUMBERS[total]}"
    return _answered(scene, f"How many {name}s are there?", facts, plain, NUMBERS[total])


def _answer_clue(rng: random.Random, split: str) -> Riddle | None:
    """A plain question with a clue in the place of a name: "What colour is the animal that purrs?" """
    scene = sample_scene(rng, split)
    thing = _unique(scene, rng)
    if thing is None:
        return None
    clue, fact = _kind_clue(thing.kind, rng)
    form = rng.choice(("colour", "where", "thing", "there"))
    if form == "colour":
        plain, answer = f"What colour is the {thing.kind}?", thing.colour
        return _answered(scene, f"What colour is {clue}?", [fact], plain, answer)
    if form == "where":
        return _answered(scene, f"Where is {clue}?", [fact], f"Where is the {thing.kind}?", thing.slot)
    if form == "thing":
        if len(matching(scene, None, thing.colour, None, None)) > 1:
            return None
        owner = rng.choice(COLOUR_CLUES[thing.colour])
        prompt, plain = f"What has the colour of {owner}?", f"What is the {thing.colour} thing?"
        return _answered(scene, prompt, [f"{owner} is {thing.colour}."], plain, thing.kind)
    kind = thing.kind if rng.random() < 0.5 else rng.choice(KINDS)
    clue, fact = _kind_clue(kind, rng)
    there = any(other.kind == kind for other in scene.things)
    prompt = f"Can you see {clue}?"
    return _answered(scene, prompt, [fact], f"Is there {with_article(kind)}?", "yes" if there else "no")


_Maker = Callable[[random.Random, str], Riddle | None]
_DRAW: tuple[_Maker, ...] = (
    _draw_coloured,
    _draw_coloured,
    _draw_background,
    _draw_counted,
    _draw_counted,
    _draw_related,
)
_EDIT: tuple[_Maker, ...] = (_edit_recolour, _edit_recolour, _edit_remove, _edit_replace, _edit_background)
_ANSWER: tuple[_Maker, ...] = (_answer_parts, _answer_category, _answer_clue, _answer_clue)
