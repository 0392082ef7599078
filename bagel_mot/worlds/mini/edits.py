"""Edits: an instruction that is unambiguous in its scene, and the scene that results.

What an instruction does not name stays as it is, jitter included; a moved or swapped thing takes its jitter along; a
thing that is added is medium unless its size is named, and its jitter is drawn.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from bagel_mot.worlds.mini.sampling import sample_jitter
from bagel_mot.worlds.mini.scene import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    MIDDLE,
    QUADRANTS,
    SIZES,
    Scene,
    SceneError,
    Thing,
    choose_from,
    relation_of_slots,
)
from bagel_mot.worlds.mini.splits import in_split
from bagel_mot.worlds.mini.words import (
    BACKGROUND_PHRASES,
    PLURALS,
    SIZE_WORDS,
    counted,
    in_place,
    noun,
    refer,
    relation_phrase,
    with_article,
)

MAX_TRIES = 60


@dataclass(frozen=True)
class Edit:
    """One edit: its kind, the instruction, the resulting scene, and a short answer to "What changed?"."""

    kind: str
    instruction: str
    result: Scene
    change: str


def sample_edit(scene: Scene, rng: random.Random, split: str = "train", kind: str | None = None) -> Edit:
    """A random edit whose result is in the split; of any kind the scene allows when `kind` is None.

    Raises SceneError if the scene allows none.
    """
    if kind is not None:
        choose_from("edit kind", kind, EDIT_KINDS)
    for name in [kind] if kind is not None else rng.sample(EDIT_KINDS, len(EDIT_KINDS)):
        for _ in range(MAX_TRIES):
            edit = _EDITORS[name](scene, rng)
            if edit is None or edit.result == scene:
                continue
            if in_split(edit.result, split):
                return edit
    raise SceneError(f"no {kind or 'edit'} of split {split!r} is possible in the scene {scene.to_json()}")


def sample_chain(scene: Scene, rng: random.Random, length: int, split: str = "train") -> list[Edit]:
    """`length` edits in a row, each of the result before it; every result is in the split."""
    chain: list[Edit] = []
    for _ in range(length):
        chain.append(sample_edit(chain[-1].result if chain else scene, rng, split))
    return chain


def with_thing(scene: Scene, old: Thing, new: Thing | None) -> Scene:
    """The scene with one thing exchanged, or taken away when `new` is None."""
    things = [new if thing is old else thing for thing in scene.things]
    return replace(scene, things=tuple(thing for thing in things if thing is not None))


def _name(scene: Scene, thing: Thing, rng: random.Random, pronoun: bool = False) -> str:
    """Words for the thing; a thing that stands alone may also be "it"."""
    if pronoun and len(scene.things) == 1 and rng.random() < 0.2:
        return "it"
    return refer(scene, thing, rng)


def _recolour(scene: Scene, rng: random.Random) -> Edit | None:
    if not scene.things:
        return None
    thing = rng.choice(scene.things)
    colour = rng.choice([name for name in COLOURS if name != thing.colour])
    name = _name(scene, thing, rng, pronoun=True)
    forms = [f"make {name} {colour}", f"paint {name} {colour}", f"turn {name} {colour}"]
    if name != "it":
        forms.append(f"change the colour of {name} to {colour}")
    result = with_thing(scene, thing, replace(thing, colour=colour))
    return Edit("recolour", rng.choice(forms), result, f"the {thing.kind} is {colour}")


def _remove(scene: Scene, rng: random.Random) -> Edit | None:
    if not scene.things:
        return None
    thing = rng.choice(scene.things)
    name = _name(scene, thing, rng)
    form = rng.choices((f"remove {name}", f"delete {name}", f"take {name} away"), (3, 1, 1))[0]
    return Edit("remove", form, with_thing(scene, thing, None), f"the {noun(thing.kind, thing.colour)} is gone")


def _add(scene: Scene, rng: random.Random) -> Edit | None:
    free = scene.free_slots()
    if not free:
        return None
    slot = rng.choice(free)
    size = rng.choice(("small", "large")) if rng.random() < 0.2 else "medium"
    model = rng.choice(scene.things) if scene.things and rng.random() < 0.3 else None
    kind = model.kind if model else rng.choice(KINDS)
    colour = rng.choice(COLOURS)
    dx, dy = sample_jitter(rng)
    thing = Thing(kind, colour, size, slot, dx, dy)
    where = in_place(slot)
    if rng.random() < 0.35:
        where = _beside(scene, slot, rng) or where
    result = replace(scene, things=(*scene.things, thing))
    form = rng.choices(("add {} {}", "put {} {}"), (3, 1))[0]
    what = counted(kind, colour, size)
    return Edit("add", form.format(what, where), result, f"there is a new {noun(kind, colour)}")


def _beside(scene: Scene, slot: str, rng: random.Random) -> str:
    """ "left of the tree" for a free slot, or "" when it has no neighbour to be named by."""
    anchors = [thing for thing in scene.things if relation_of_slots(slot, thing.slot)]
    if not anchors:
        return ""
    anchor = rng.choice(anchors)
    side = relation_of_slots(slot, anchor.slot)
    assert side is not None
    return f"{relation_phrase(side, rng)} {refer(scene, anchor, rng)}"


def _replace(scene: Scene, rng: random.Random) -> Edit | None:
    """Exchange a thing's kind; its colour stays unless another is named."""
    if not scene.things:
        return None
    thing = rng.choice(scene.things)
    kind = rng.choice([name for name in KINDS if name != thing.kind])
    name = _name(scene, thing, rng)
    if rng.random() < 0.5:
        colour = thing.colour
        what = with_article(kind)
        form = rng.choice((f"turn {name} into {what}", f"replace {name} with {what}"))
    else:
        colour = rng.choice(COLOURS)
        form = f"replace {name} with {counted(kind, colour)}"
    result = with_thing(scene, thing, replace(thing, kind=kind, colour=colour))
    return Edit("replace", form, result, f"the {thing.kind} is {with_article(noun(kind, colour))}")


def _move(scene: Scene, rng: random.Random) -> Edit | None:
    if not scene.things:
        return None
    thing = rng.choice(scene.things)
    alone = len(scene.things) == 1
    free = QUADRANTS if thing.slot == MIDDLE else (*scene.free_slots(), *((MIDDLE,) if alone else ()))
    if not free:
        return None
    slot = rng.choice(free)
    name = _name(scene, thing, rng, pronoun=True)
    result = with_thing(scene, thing, replace(thing, slot=slot))
    form = rng.choices((f"move {name} to the {slot}", f"put {name} in the {slot}"), (3, 1))[0]
    return Edit("move", form, result, f"the {thing.kind} is {in_place(slot)}")


def _swap(scene: Scene, rng: random.Random) -> Edit | None:
    if len(scene.things) < 2:
        return None
    a, b = rng.sample(scene.things, 2)
    if (a.kind, a.colour, a.size) == (b.kind, b.colour, b.size):
        return None
    first, second = refer(scene, a, rng), refer(scene, b, rng)
    moved = {a: replace(a, slot=b.slot), b: replace(b, slot=a.slot)}
    result = replace(scene, things=tuple(moved.get(thing, thing) for thing in scene.things))
    form = rng.choices((f"swap {first} and {second}", f"let {first} and {second} change places"), (3, 1))[0]
    return Edit("swap", form, result, f"{first} and {second} changed places")


def _resize(scene: Scene, rng: random.Random) -> Edit | None:
    if not scene.things:
        return None
    thing = rng.choice(scene.things)
    size = rng.choice([name for name in SIZES if name != thing.size])
    name = _name(scene, thing, rng, pronoun=True)
    step = SIZES.index(size) - SIZES.index(thing.size)
    # One step is what "bigger" and "smaller" mean here; two steps need the size itself.
    words = [SIZE_WORDS[size]] if size != "medium" else []
    if abs(step) == 1:
        words += ["bigger" if step > 0 else "smaller"] * 2
    result = with_thing(scene, thing, replace(thing, size=size))
    return Edit("resize", f"make {name} {rng.choice(words)}", result, f"the {thing.kind} is {words[-1]}")


def _background(scene: Scene, rng: random.Random) -> Edit | None:
    name = rng.choice([other for other in BACKGROUNDS if other != scene.background])
    where = rng.choice(BACKGROUND_PHRASES[name])
    forms = [f"change the background to {name}", f"make the background {name}", f"let it be {where}"]
    if name in ("day", "night"):
        forms += [f"make it {name}"] * 2
    else:
        forms.append(f"put everything {where}")
    return Edit(
        "background", rng.choice(forms), replace(scene, background=name), f"it is {BACKGROUND_PHRASES[name][0]}"
    )


def _all(scene: Scene, rng: random.Random) -> Edit | None:
    """Change every thing of a kind, of a colour, or every thing there is: two or more."""
    if len(scene.things) < 2:
        return None
    model = rng.choice(scene.things)
    by = rng.choice(("kind", "kind", "colour", "everything"))
    if by == "kind":
        group = [thing for thing in scene.things if thing.kind == model.kind]
        name = f"all the {PLURALS[model.kind]}"
    elif by == "colour":
        group = [thing for thing in scene.things if thing.colour == model.colour]
        name = f"all the {model.colour} things"
    else:
        group, name = list(scene.things), "everything"
    if len(group) < 2:
        return None
    action = rng.choices(("colour", "size", "kind", "remove"), (45, 15, 15, 25))[0]
    verb = "is" if name == "everything" else "are"
    changed: list[Thing | None]
    if action == "colour":
        colour = rng.choice(COLOURS)
        instruction, change = f"{rng.choice(('make', 'paint'))} {name} {colour}", f"{name} {verb} {colour}"
        changed = [replace(thing, colour=colour) for thing in group]
    elif action == "size":
        size = rng.choice(("small", "large"))
        instruction, change = f"make {name} {SIZE_WORDS[size]}", f"{name} {verb} {SIZE_WORDS[size]}"
        changed = [replace(thing, size=size) for thing in group]
    elif action == "kind":
        kind = rng.choice([other for other in KINDS if other != model.kind])
        target = with_article(kind) if name == "everything" else PLURALS[kind]
        instruction = f"turn {'every thing' if name == 'everything' else name} into {target}"
        change = f"{name} {verb} {target}"
        changed = [replace(thing, kind=kind) for thing in group]
    else:
        instruction, change = f"remove {name}", f"{name} {verb} gone"
        changed = [None] * len(group)
    swap = dict(zip(group, changed, strict=True))
    things = [swap.get(thing, thing) for thing in scene.things]
    result = replace(scene, things=tuple(thing for thing in things if thing is not None))
    return Edit("all", instruction, result, change)


_EDITORS: dict[str, Callable[[Scene, random.Random], Edit | None]] = {
    editor.__name__[1:]: editor
    for editor in (_recolour, _remove, _add, _replace, _move, _swap, _resize, _background, _all)
}
EDIT_KINDS: tuple[str, ...] = tuple(_EDITORS)
