"""Edits: an independent reader carries out the instruction and arrives at the same scene."""

from __future__ import annotations

import random
from collections import Counter
from types import ModuleType

import pytest

from bagel_mot.worlds.mini.edits import EDIT_KINDS, sample_chain, sample_edit
from bagel_mot.worlds.mini.sampling import sample_scene
from bagel_mot.worlds.mini.scene import Scene, SceneError, Thing


def without_jitter_at(scene: Scene, slot: str | None) -> Scene:
    things = [Thing(t.kind, t.colour, t.size, t.slot) if t.slot == slot else t for t in scene.things]
    return Scene(scene.background, tuple(things))


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_instruction_determines_the_result(kind: str, reading: ModuleType) -> None:
    rng = random.Random(f"edits/{kind}")
    done = 0
    while done < 500:
        scene = sample_scene(rng)
        try:
            edit = sample_edit(scene, rng, kind=kind)
        except SceneError:
            continue
        done += 1
        result, added = reading.carry_out(scene, edit.instruction)
        assert result == without_jitter_at(edit.result, added), (edit.instruction, scene)
        assert edit.result != scene
        assert edit.kind == kind
        assert edit.instruction == edit.instruction.lower()
        assert edit.change


def changed(before: Scene, after: Scene) -> int:
    return len(set(before.things) - set(after.things))


def test_only_what_is_said_changes() -> None:
    rng = random.Random(2)
    for _ in range(4000):
        scene = sample_scene(rng)
        edit = sample_edit(scene, rng)
        gone, new = set(scene.things) - set(edit.result.things), set(edit.result.things) - set(scene.things)
        if edit.kind == "background":
            assert scene.things == edit.result.things
            assert scene.background != edit.result.background
            continue
        assert scene.background == edit.result.background
        expected = {"remove": (1, 0), "add": (0, 1), "swap": (2, 2)}.get(edit.kind, (1, 1))
        if edit.kind != "all":
            assert (len(gone), len(new)) == expected, edit
        same = {
            "recolour": "kind size slot dx dy",
            "resize": "kind colour slot dx dy",
            "move": "kind colour size dx dy",
        }
        if edit.kind in same:
            old, fresh = gone.pop(), new.pop()
            assert all(getattr(old, name) == getattr(fresh, name) for name in same[edit.kind].split())


def test_all_changes_two_or_more() -> None:
    rng = random.Random(3)
    sizes = Counter()
    while sum(sizes.values()) < 300:
        scene = sample_scene(rng)
        try:
            edit = sample_edit(scene, rng, kind="all")
        except SceneError:
            continue
        sizes[changed(scene, edit.result)] += 1
        assert "all the " in edit.instruction or "every" in edit.instruction
    assert sizes[2] > 50
    assert sizes[3] > 10


def test_every_kind_turns_up() -> None:
    rng = random.Random(4)
    kinds = Counter(sample_edit(sample_scene(rng), rng).kind for _ in range(2000))
    assert set(kinds) == set(EDIT_KINDS)
    assert min(kinds.values()) > 100


def test_chains_follow_on(reading: ModuleType) -> None:
    rng = random.Random(5)
    for _ in range(200):
        scene = sample_scene(rng)
        try:
            chain = sample_chain(scene, rng, 3)
        except SceneError:
            continue
        for edit in chain:
            result, added = reading.carry_out(scene, edit.instruction)
            assert result == without_jitter_at(edit.result, added)
            scene = edit.result


def test_edits_of_an_empty_scene() -> None:
    rng = random.Random(6)
    kinds = {sample_edit(Scene("day"), rng).kind for _ in range(60)}
    assert kinds == {"add", "background"}


def test_errors() -> None:
    rng = random.Random(7)
    with pytest.raises(SceneError, match="edit kind is 'melt'"):
        sample_edit(sample_scene(rng), rng, kind="melt")
    with pytest.raises(SceneError, match="no swap of split 'train'"):
        sample_edit(sample_scene(rng, things=1), rng, kind="swap")
