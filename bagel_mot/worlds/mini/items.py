"""Evaluation items: prompts, questions, instructions and riddles from fixed seeds, and the rules that score images.

The six draw rows follow GenEval. In the split "held_out" every item asks for a combination that training never saw;
rows that name no combination (one thing, two things: kinds alone) have no such items.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from bagel_mot.worlds.mini.draw import draw_array
from bagel_mot.worlds.mini.edits import EDIT_KINDS, Edit, sample_chain, sample_edit
from bagel_mot.worlds.mini.parser import ParsedScene, matches, parse, same_scene
from bagel_mot.worlds.mini.questions import QUESTION_TYPES, question
from bagel_mot.worlds.mini.riddles import RIDDLE_TASKS, Riddle, sample_riddle
from bagel_mot.worlds.mini.sampling import sample_scene
from bagel_mot.worlds.mini.scene import CENTRE, COLOURS, KINDS, MIDDLE, RELATIONS, WORLD, Scene, SceneError, choose_from
from bagel_mot.worlds.mini.spec import Spec, ThingSpec
from bagel_mot.worlds.mini.splits import SPLITS, held_out_pairs, held_out_triples, is_held_out_pair, is_held_out_triple
from bagel_mot.worlds.mini.words import counted, relation_phrase

DRAW_ROWS: tuple[str, ...] = ("one_thing", "two_things", "counting", "colours", "position", "colour_binding")
HELD_OUT_DRAW_ROWS: tuple[str, ...] = ("counting", "colours", "position", "colour_binding")
PROMPT_PREFIXES = ("a photo of", "a picture of")
UNCHANGED_LIMIT = 12.0
"""Largest `unchanged_error` of a right edit, in 0..255.

A right image damaged half as much as the parser tolerates (blur 0.35 pixels, noise 3, tint 3, a quarter of a pixel of
shift) costs 3 to 8, the worst of 360 edits 11.5; the two most similar backgrounds, day and snow, differ by 17."""
UNTOUCHED_SHIFT = 1.5
"""World pixels that a thing an edit does not touch may have moved."""
MAX_TRIES = 2000
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class DrawItem:
    """A prompt and the spec of a right image."""

    prompt: str
    spec: Spec


@dataclass(frozen=True)
class AskItem:
    """A question about the image of `scene`, and its exact answer."""

    type: str
    scene: Scene
    question: str
    answer: str


@dataclass(frozen=True)
class EditItem:
    """An instruction for the image of `scene`, and the scene that a right edit shows."""

    kind: str
    scene: Scene
    instruction: str
    result: Scene


@dataclass(frozen=True)
class ChainItem:
    """Edits to be made one after the other in one session; the last result is judged."""

    scene: Scene
    edits: tuple[Edit, ...]

    @property
    def result(self) -> Scene:
        return self.edits[-1].result


def scene_items(n: int, seed: int = 0) -> list[Scene]:
    """`n` random scenes, for testing the parser itself."""
    rng = _rng("scene", seed)
    return [sample_scene(rng) for _ in range(n)]


def draw_items(row: str, n: int, seed: int = 0, split: str = "train") -> list[DrawItem]:
    """`n` items of a draw row, all different if the row has as many; the same ones for the same seed everywhere.

    Raises SceneError for an unknown row, or one that has no items in the split.
    """
    choose_from("draw row", row, DRAW_ROWS)
    choose_from("split", split, SPLITS)
    if split == "held_out" and row not in HELD_OUT_DRAW_ROWS:
        raise SceneError(
            f"draw row {row!r} names no held-out combination; those that do: {', '.join(HELD_OUT_DRAW_ROWS)}"
        )
    rng = _rng("draw", row, seed, split)
    items: list[DrawItem] = []
    prompts: set[str] = set()
    for attempt in range(n + MAX_TRIES):
        if len(items) == n:
            break
        prompt, spec = _draw_prompt(row, rng, split == "held_out")
        if prompt not in prompts or attempt >= MAX_TRIES // 2:
            prompts.add(prompt)
            items.append(DrawItem(prompt, spec))
    return items


def ask_items(type: str, n: int, seed: int = 0, split: str = "train") -> list[AskItem]:
    """`n` questions of a type, each about a scene of its own. Raises SceneError for an unknown type or split."""
    choose_from("question type", type, QUESTION_TYPES)
    rng = _rng("ask", type, seed, split)

    def item() -> AskItem:
        scene = sample_scene(rng, split)
        qa = question(scene, rng, type)
        return AskItem(type, scene, qa.question, qa.answer)

    return _possible(n, item)


def edit_items(kind: str, n: int, seed: int = 0, split: str = "train") -> list[EditItem]:
    """`n` edits of a kind, each of a scene of its own from the split "train"; the result is in `split`."""
    choose_from("edit kind", kind, EDIT_KINDS)
    choose_from("split", split, SPLITS)
    rng = _rng("edit", kind, seed, split)
    # Only the things an edit touches can make a held-out combination; a removal, resizing or new background makes none.
    if split == "held_out" and kind in ("remove", "resize", "background"):
        raise SceneError(f"an edit of kind {kind!r} makes no held-out combination")

    def item() -> EditItem:
        scene = sample_scene(rng)
        edit = sample_edit(scene, rng, split, kind)
        return EditItem(kind, scene, edit.instruction, edit.result)

    return _possible(n, item)


def chain_items(n: int, length: int = 3, seed: int = 0, split: str = "train") -> list[ChainItem]:
    """`n` chains of `length` edits; every image on the way is in the split."""
    if length < 1:
        raise SceneError(f"a chain of {length} edits was asked for; it takes at least 1")
    rng = _rng("chain", str(length), seed, split)

    def item() -> ChainItem:
        scene = sample_scene(rng, split)
        return ChainItem(scene, tuple(sample_chain(scene, rng, length, split)))

    return _possible(n, item)


def _possible(n: int, make: Callable[[], _Item]) -> list[_Item]:
    """`n` items, each of the first scene that allows one: `make` raises SceneError for the others."""
    items: list[_Item] = []
    while len(items) < n:
        with suppress(SceneError):
            items.append(make())
    return items


def riddle_items(task: str, n: int, seed: int = 0, split: str = "train") -> list[Riddle]:
    """`n` riddles of a task ("draw", "edit", "answer")."""
    choose_from("riddle task", task, RIDDLE_TASKS)
    rng = _rng("riddle", task, seed, split)
    return [sample_riddle(rng, task, split) for _ in range(n)]


def draw_is_right(image: Image.Image | np.ndarray, spec: Spec) -> bool:
    """Whether an image is clean and shows exactly what the spec demands."""
    return matches(parse(image), spec)


def edit_is_right(
    before: Image.Image | np.ndarray, after: Image.Image | np.ndarray, scene: Scene, result: Scene
) -> bool:
    """Whether `after` cleanly shows the resulting scene and left the rest of `before` as it was.

    The rest: every thing the edit does not touch stands within UNTOUCHED_SHIFT of where it stood, and the
    `unchanged_error` is at most UNCHANGED_LIMIT.
    """
    parsed: ParsedScene = parse(after)
    if not same_scene(parsed, result):
        return False
    found = {thing.slot: thing.centre for thing in parsed.things}
    for thing in set(scene.things) & set(result.things):
        (x, y), (there_x, there_y) = thing.centre, found[thing.slot]
        if max(abs(x - there_x), abs(y - there_y)) > UNTOUCHED_SHIFT:
            return False
    return unchanged_error(before, after, scene, result) <= UNCHANGED_LIMIT


def unchanged_error(
    before: Image.Image | np.ndarray, after: Image.Image | np.ndarray, scene_before: Scene, scene_after: Scene
) -> float:
    """Mean absolute difference, 0..255, of two images where the edit changes nothing.

    That is where the drawings of both scenes agree (also one pixel around, for the blur at edges), outside the places
    whose thing the edit touches (a new thing may stand anywhere in its place). 0 if no such pixel is left. Raises
    SceneError for images of different shape.
    """
    first, second = _pixels(before), _pixels(after)
    if first.shape != second.shape or first.ndim != 3:
        raise SceneError(f"the pictures to compare have shapes {first.shape} and {second.shape}; they must be equal")
    side = first.shape[0]
    same = (draw_array(scene_before, side) == draw_array(scene_after, side)).all(axis=2)
    touched = {thing.slot for thing in set(scene_before.things) ^ set(scene_after.things)}
    for slot in touched:
        reach = 20 if slot == MIDDLE else 16
        (x, y), scale = CENTRE[slot], side // WORLD
        same[(y - reach) * scale : (y + reach) * scale, (x - reach) * scale : (x + reach) * scale] = False
    wide = np.pad(same, 1, constant_values=True)
    rows = wide[:-2] & wide[1:-1] & wide[2:]
    same = rows[:, :-2] & rows[:, 1:-1] & rows[:, 2:]
    if not same.any():
        return 0.0
    return float(np.abs(first.astype(float) - second.astype(float))[same].mean())


def _pixels(image: Image.Image | np.ndarray) -> np.ndarray:
    return np.asarray(image.convert("RGB")) if isinstance(image, Image.Image) else np.asarray(image)


def _rng(*key: Any) -> random.Random:
    """The generator of one set of items: a text seed is hashed the same way in every process."""
    return random.Random("/".join(["bagel mini items", *map(str, key)]))


def _draw_prompt(row: str, rng: random.Random, held_out: bool) -> tuple[str, Spec]:
    """One prompt of a row and its spec."""
    first, second = rng.sample(KINDS, 2)
    relations: tuple[tuple[int, str, int], ...] = ()
    if row == "one_thing":
        things: tuple[ThingSpec, ...] = (ThingSpec(first),)
        text = counted(first)
    elif row == "two_things":
        things = (ThingSpec(first), ThingSpec(second))
        text = f"{counted(first)} and {counted(second)}"
    elif row == "counting":
        number = rng.choice((2, 3, 4))
        kind, colour = _pair(rng, held_out) if held_out or rng.random() < 0.5 else (first, None)
        things = (ThingSpec(kind, colour),) * number
        text = counted(kind, colour, count=number)
    elif row == "colours":
        kind, colour = _pair(rng, held_out)
        things = (ThingSpec(kind, colour),)
        text = counted(kind, colour)
    elif row == "position":
        kind, side, other = _triple(rng, held_out)
        things = (ThingSpec(kind), ThingSpec(other))
        relations = ((0, side, 1),)
        text = f"{counted(kind)} {relation_phrase(side, rng)} {counted(other)}"
    else:
        pairs = [_pair(rng, held_out), _pair(rng, False)]
        while pairs[0][0] == pairs[1][0] or pairs[0][1] == pairs[1][1]:
            pairs[1] = _pair(rng, False)
        rng.shuffle(pairs)
        things = tuple(ThingSpec(kind, colour) for kind, colour in pairs)
        text = " and ".join(counted(kind, colour) for kind, colour in pairs)
    return f"{rng.choice(PROMPT_PREFIXES)} {text}", Spec(None, things, relations)


def _pair(rng: random.Random, held_out: bool) -> tuple[str, str]:
    """A (kind, colour) that training sees, or one it never does."""
    if held_out:
        return rng.choice(sorted(held_out_pairs()))
    while True:
        kind, colour = rng.choice(KINDS), rng.choice(COLOURS)
        if not is_held_out_pair(kind, colour):
            return kind, colour


def _triple(rng: random.Random, held_out: bool) -> tuple[str, str, str]:
    """A (kind, relation, other kind) that training sees, or one it never does, told either way round."""
    if held_out:
        kind, side, other = rng.choice(sorted(held_out_triples()))
        if rng.random() < 0.5:
            return other, "right of" if side == "left of" else "below", kind
        return kind, side, other
    while True:
        kind, other = rng.sample(KINDS, 2)
        side = rng.choice(RELATIONS)
        if not is_held_out_triple(kind, side, other):
            return kind, side, other
