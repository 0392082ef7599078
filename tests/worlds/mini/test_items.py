"""Evaluation items: as many as asked for, right by their own rules, the same every time; and the scoring of edits."""

from __future__ import annotations

import random
from types import ModuleType

import numpy as np
import pytest

from bagel_mot.worlds.mini.draw import draw, draw_array
from bagel_mot.worlds.mini.edits import EDIT_KINDS
from bagel_mot.worlds.mini.items import (
    DRAW_ROWS,
    HELD_OUT_DRAW_ROWS,
    ask_items,
    chain_items,
    draw_is_right,
    draw_items,
    edit_is_right,
    edit_items,
    riddle_items,
    unchanged_error,
)
from bagel_mot.worlds.mini.questions import QUESTION_TYPES
from bagel_mot.worlds.mini.riddles import RIDDLE_TASKS
from bagel_mot.worlds.mini.sampling import sample_scene
from bagel_mot.worlds.mini.scene import Scene, SceneError, Thing
from bagel_mot.worlds.mini.splits import held_out_pairs, in_split, is_held_out_triple


@pytest.mark.parametrize("row", DRAW_ROWS)
def test_draw_items_mean_their_row(row: str) -> None:
    items = draw_items(row, 200)
    assert len(items) == 200
    assert items == draw_items(row, 200)
    assert items != draw_items(row, 200, seed=1)
    assert len({item.prompt for item in items}) == (36 if row == "one_thing" else 200)
    for item in items:
        things = item.spec.things
        kinds, colours = {thing.kind for thing in things}, {thing.colour for thing in things}
        assert item.prompt.startswith(("a photo of ", "a picture of "))
        assert all(str(kind) in item.prompt for kind in kinds)
        assert all(colour in item.prompt for colour in colours if colour)
        assert not any((thing.kind, thing.colour) in held_out_pairs() for thing in things)
        if row == "one_thing":
            assert (len(things), colours) == (1, {None})
        elif row == "two_things":
            assert (len(things), len(kinds), colours) == (2, 2, {None})
        elif row == "counting":
            assert len(things) in (2, 3, 4)
            assert len(kinds) == len(colours) == 1
            assert {2: "two", 3: "three", 4: "four"}[len(things)] in item.prompt
        elif row == "colours":
            assert len(things) == 1
            assert None not in colours
        elif row == "position":
            assert len(kinds) == 2
            ((i, side, j),) = item.spec.relations
            assert not is_held_out_triple(str(things[i].kind), side, str(things[j].kind))
        else:
            assert len(kinds) == len(colours) == 2
            assert None not in colours


def test_draw_items_can_be_solved() -> None:
    """A right scene for every item exists and is judged right; one with another kind is judged wrong."""
    rng = random.Random(1)
    for row in DRAW_ROWS:
        for item in draw_items(row, 12):
            kinds = [str(thing.kind) for thing in item.spec.things]
            colours = [thing.colour or "yellow" for thing in item.spec.things]
            slots = ["top left", "top right", "bottom left", "bottom right"][: len(kinds)]
            if item.spec.relations:
                side = item.spec.relations[0][1]
                slots = {
                    "left of": ["top left", "top right"],
                    "right of": ["top right", "top left"],
                    "above": ["top left", "bottom left"],
                    "below": ["bottom left", "top left"],
                }[side]
            things = tuple(
                Thing(k, c, rng.choice(("small", "large")), s) for k, c, s in zip(kinds, colours, slots, strict=True)
            )
            assert draw_is_right(draw(Scene("day", things)), item.spec), item
            wrong = Thing("sun" if kinds[0] != "sun" else "cup", colours[0], "small", slots[0])
            assert not draw_is_right(draw(Scene("day", (wrong, *things[1:]))), item.spec)


@pytest.mark.parametrize("row", HELD_OUT_DRAW_ROWS)
def test_held_out_draw_items_ask_for_the_unseen(row: str) -> None:
    for item in draw_items(row, 100, split="held_out"):
        things = item.spec.things
        pairs = any((thing.kind, thing.colour) in held_out_pairs() for thing in things)
        triples = any(
            is_held_out_triple(str(things[i].kind), s, str(things[j].kind)) for i, s, j in item.spec.relations
        )
        assert pairs or triples


def test_rows_without_held_out_items() -> None:
    with pytest.raises(SceneError, match="names no held-out combination"):
        draw_items("one_thing", 5, split="held_out")
    with pytest.raises(SceneError, match="makes no held-out combination"):
        edit_items("remove", 5, split="held_out")
    with pytest.raises(SceneError, match="draw row is 'poetry'"):
        draw_items("poetry", 5)


def test_ask_items(reading: ModuleType) -> None:
    for type in QUESTION_TYPES:
        for split in ("train", "held_out"):
            items = ask_items(type, 25, split=split)
            assert len(items) == 25
            for item in items:
                assert item.type == type
                assert in_split(item.scene, split)
                assert reading.answer(item.scene, item.question) == item.answer


def test_edit_items(reading: ModuleType) -> None:
    for kind in EDIT_KINDS:
        items = edit_items(kind, 25)
        assert len(items) == 25
        for item in items:
            assert in_split(item.scene, "train")
            assert in_split(item.result, "train")
            reading.carry_out(item.scene, item.instruction)
    for item in edit_items("recolour", 25, split="held_out"):
        assert in_split(item.scene, "train")
        assert in_split(item.result, "held_out")


def test_chain_and_riddle_items() -> None:
    for chain in chain_items(25):
        assert len(chain.edits) == 3
        assert chain.result == chain.edits[-1].result
    assert all(len(chain.edits) == 2 for chain in chain_items(5, length=2))
    with pytest.raises(SceneError, match="at least 1"):
        chain_items(5, length=0)
    for task in RIDDLE_TASKS:
        riddles = riddle_items(task, 25, split="held_out")
        assert len(riddles) == 25
        assert all(riddle.task == task for riddle in riddles)


def test_right_edits_are_right(damage: ModuleType) -> None:
    noise = np.random.default_rng(2)
    right = total = 0
    for kind in EDIT_KINDS:
        for item in edit_items(kind, 12):
            before, after = draw_array(item.scene), draw_array(item.result)
            assert unchanged_error(before, after, item.scene, item.result) == 0
            assert edit_is_right(before, after, item.scene, item.result)
            assert not edit_is_right(before, before, item.scene, item.result)
            total += 1
            right += edit_is_right(before, damage.autoencoded(after, noise, 0.5), item.scene, item.result)
    assert right / total >= 0.97


def test_an_added_thing_may_stand_anywhere_in_its_place() -> None:
    old = Thing("car", "red", "medium", "top left")
    before = Scene("sea", (old,))
    result = Scene("sea", (old, Thing("cat", "blue", "medium", "bottom right", 2, 2)))
    other = Scene("sea", (old, Thing("cat", "blue", "medium", "bottom right", -2, -1)))
    assert unchanged_error(draw(before), draw(other), before, result) == 0
    assert edit_is_right(draw(before), draw(other), before, result)


def test_the_rest_must_stay() -> None:
    rng = random.Random(3)
    for _ in range(40):
        scene = sample_scene(rng, things=3)
        kept = scene.things[1]
        first = scene.things[0]
        colour = "white" if first.colour != "white" else "blue"
        result = Scene(scene.background, (Thing(**{**vars(first), "colour": colour}), *scene.things[1:]))
        moved = Thing(**{**vars(kept), "dx": kept.dx - 2 if kept.dx >= 0 else kept.dx + 2})
        spoilt = Scene(result.background, tuple(moved if thing == kept else thing for thing in result.things))
        assert edit_is_right(draw(scene), draw(result), scene, result)
        assert not edit_is_right(draw(scene), draw(spoilt), scene, result)
    dark = draw_array(result).astype(int)
    dark[:, :, :] = np.clip(dark + 14, 0, 255)
    assert not edit_is_right(draw(scene), dark.astype(np.uint8), scene, result)


def test_unchanged_error_measures_the_mean() -> None:
    scene = Scene("day", (Thing("car", "red", "medium", "top left"),))
    result = Scene("day", (Thing("car", "blue", "medium", "top left"),))
    before = draw_array(scene)
    after = draw_array(result).astype(int)
    shifted = np.clip(after - 10, 0, 255).astype(np.uint8)
    assert unchanged_error(before, shifted, scene, result) == pytest.approx(10, abs=0.01)
    # Inside the touched place anything goes.
    after[0:32, 0:32] = 0
    assert unchanged_error(before, after.astype(np.uint8), scene, result) == 0
    with pytest.raises(SceneError, match="must be equal"):
        unchanged_error(before, draw_array(result, 128), scene, result)
