"""The held-out combinations: fixed, of the right number, and never leaked into training."""

from __future__ import annotations

import hashlib
import random
from collections import Counter

import pytest

from bagel_mot.worlds.mini.edits import sample_edit
from bagel_mot.worlds.mini.sampling import sample_scene
from bagel_mot.worlds.mini.scene import BACKGROUNDS, CENTRE, COLOURS, KINDS, Scene, SceneError, Thing
from bagel_mot.worlds.mini.splits import (
    canonical_triple,
    held_out_combinations,
    held_out_pairs,
    held_out_triples,
    in_split,
    is_held_out_triple,
)
from bagel_mot.worlds.mini.training_examples import EXAMPLE_TASKS, Show, sample_example


def leaks(scene: Scene) -> bool:
    """By brute force, from the centres, without the code under test."""
    for thing in scene.things:
        if (thing.kind, thing.colour) in held_out_pairs():
            return True
    for a in scene.things:
        for b in scene.things:
            (ax, ay), (bx, by) = CENTRE[a.slot], CENTRE[b.slot]
            if len(scene.things) > 1 and ay == by and ax < bx and (a.kind, "left of", b.kind) in held_out_triples():
                return True
            if len(scene.things) > 1 and ax == bx and ay < by and (a.kind, "above", b.kind) in held_out_triples():
                return True
    return False


def test_sets_are_fixed() -> None:
    """A change here makes every trained model's held-out figures meaningless."""
    text = repr(sorted(held_out_pairs())) + repr(sorted(held_out_triples()))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "9707014b6a47712b"


def test_sets_have_the_right_shape() -> None:
    pairs, triples = held_out_pairs(), held_out_triples()
    assert 0.07 <= len(pairs) / (len(KINDS) * len(COLOURS)) <= 0.09
    assert 0.07 <= len(triples) / (2 * len(KINDS) * (len(KINDS) - 1)) <= 0.09
    assert max(Counter(kind for kind, _ in pairs).values()) == 1
    assert max(Counter(colour for _, colour in pairs).values()) <= 2
    assert all(side in ("left of", "above") and a != b for a, side, b in triples)


def test_a_triple_is_the_same_either_way_round() -> None:
    assert canonical_triple("car", "right of", "cat") == ("cat", "left of", "car")
    assert canonical_triple("car", "below", "cat") == ("cat", "above", "car")
    for a, side, b in sorted(held_out_triples()):
        assert is_held_out_triple(b, {"left of": "right of", "above": "below"}[side], a)


def test_in_split_agrees_with_brute_force() -> None:
    rng = random.Random(4)
    for _ in range(4000):
        places = rng.sample(("top left", "top right", "bottom left", "bottom right"), rng.randint(0, 4))
        scene = Scene("day", tuple(Thing(rng.choice(KINDS), rng.choice(COLOURS), "small", slot) for slot in places))
        assert in_split(scene, "held_out") == leaks(scene) == bool(held_out_combinations(scene))
        assert in_split(scene, "train") != leaks(scene)


def test_train_scenes_never_leak() -> None:
    rng = random.Random(5)
    assert not any(leaks(sample_scene(rng)) for _ in range(20_000))


def test_held_out_scenes_always_hold_something_out() -> None:
    rng = random.Random(6)
    scenes = [sample_scene(rng, "held_out") for _ in range(3000)]
    assert all(leaks(scene) for scene in scenes)
    found = Counter(combination for scene in scenes for combination in held_out_combinations(scene))
    assert set(found) == held_out_pairs() | held_out_triples()


def test_train_edits_never_leak() -> None:
    rng = random.Random(7)
    for _ in range(6000):
        scene = sample_scene(rng)
        assert not leaks(sample_edit(scene, rng).result)


def test_train_documents_never_leak() -> None:
    rng = random.Random(8)
    mix = dict.fromkeys(EXAMPLE_TASKS, 1.0)
    seen = Counter()
    for _ in range(9000):
        task, parts = sample_example(rng, mix)
        seen[task] += 1
        for part in parts:
            if isinstance(part, Show):
                assert not leaks(part.scene), task
    assert set(seen) == set(EXAMPLE_TASKS)


def test_scenes_are_varied() -> None:
    rng = random.Random(9)
    scenes = [sample_scene(rng) for _ in range(4000)]
    counts = Counter(len(scene.things) for scene in scenes)
    assert set(counts) == {1, 2, 3, 4}
    assert min(counts.values()) > 600
    assert set(Counter(scene.background for scene in scenes)) == set(BACKGROUNDS)
    kinds = Counter(thing.kind for scene in scenes for thing in scene.things)
    assert min(kinds.values()) > 0.6 * max(kinds.values())
    repeated = [scene for scene in scenes if len({thing.kind for thing in scene.things}) < len(scene.things)]
    assert len(repeated) > 0.3 * len(scenes)
    assert any(thing.slot == "middle" for scene in scenes for thing in scene.things)


def test_wishes_are_kept() -> None:
    rng = random.Random(10)
    scene = sample_scene(rng, kinds=["car", "cat"], colours=["red", "blue"], slots=["top left", "top right"])
    assert [(t.kind, t.colour, t.slot) for t in scene.things] == [
        ("car", "red", "top left"),
        ("cat", "blue", "top right"),
    ]
    assert len(sample_scene(rng, things=4, background="sea").things) == 4
    assert sample_scene(rng, background="sea").background == "sea"
    kind, colour = sorted(held_out_pairs())[0]
    assert sample_scene(rng, "held_out", kinds=[kind], colours=[colour]).things[0].colour == colour


def test_impossible_wishes() -> None:
    rng = random.Random(11)
    kind, colour = sorted(held_out_pairs())[0]
    with pytest.raises(SceneError, match="held out"):
        sample_scene(rng, kinds=[kind], colours=[colour])
    with pytest.raises(SceneError, match="takes 1 to 4"):
        sample_scene(rng, things=5)
    with pytest.raises(SceneError, match="different numbers"):
        sample_scene(rng, things=2, kinds=["car"])
    with pytest.raises(SceneError, match="split is 'test'"):
        sample_scene(rng, "test")
    with pytest.raises(SceneError, match="no scene"):
        sample_scene(rng, "held_out", kinds=["car"], colours=["red"])
