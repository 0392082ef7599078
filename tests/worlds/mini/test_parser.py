"""The judge: exact on fresh pictures, steady under autoencoder-like damage, and strict with pictures nearly right."""

from __future__ import annotations

import itertools
import random
import time
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from bagel_mot.worlds.mini.captions import caption_with_spec
from bagel_mot.worlds.mini.draw import BOX, background, draw, draw_array, sprite
from bagel_mot.worlds.mini.edits import sample_edit
from bagel_mot.worlds.mini.parser import matches, parse, same_scene
from bagel_mot.worlds.mini.sampling import sample_jitter, sample_scene
from bagel_mot.worlds.mini.scene import BACKGROUNDS, COLOURS, KINDS, QUADRANTS, SIZES, Scene, SceneError, Thing
from bagel_mot.worlds.mini.spec import Spec, ThingSpec

NEARLY_RIGHT = (
    "half_and_half",
    "between_colours",
    "ghost",
    "transparent",
    "no_details",
    "cut_off",
    "extra_blob",
    "between_sizes",
    "between_backgrounds",
    "smeared",
    "scribbled",
)


def test_every_sprite_is_recognised_exactly() -> None:
    """Each kind in each colour and size, three of four backgrounds by turns, jitter included."""
    rng = random.Random(1)
    wanted = [(kind, colour, size) for kind in KINDS for colour in COLOURS for size in SIZES]
    for i in range(0, len(wanted), 4):
        things = tuple(
            Thing(*entry, slot, *sample_jitter(rng)) for entry, slot in zip(wanted[i : i + 4], QUADRANTS, strict=True)
        )
        scene = Scene(BACKGROUNDS[i // 4 % len(BACKGROUNDS)], things)
        assert same_scene(parse(draw(scene)), scene, jitter=True), scene


def recovered(count: int, seed: int, side: int, damage: ModuleType | None, strength: float = 1.0) -> float:
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    right = 0
    for _ in range(count):
        scene = sample_scene(rng, rng.choice(("train", "held_out")))
        image = draw_array(scene, side)
        if damage is not None:
            image = damage.autoencoded(image, noise, strength)
        right += same_scene(parse(image), scene, jitter=damage is None)
    return right / count


@pytest.mark.parametrize("side", [64, 128])
def test_fresh_scenes(side: int) -> None:
    assert recovered(150, 2, side, None) == 1.0


@pytest.mark.parametrize("side", [64, 128])
def test_damaged_scenes(side: int, damage: ModuleType) -> None:
    assert recovered(150, 3, side, damage) >= 0.97


def rejected(name: str, count: int, damage: ModuleType, strength: float) -> float:
    rng, noise = random.Random(4), np.random.default_rng(4)
    caught = 0
    for _ in range(count):
        image = damage.nearly_right(name, rng)
        caught += not parse(damage.autoencoded(image, noise, strength) if strength else image).clean
    return caught / count


@pytest.mark.parametrize("name", NEARLY_RIGHT)
def test_nearly_right_images_are_rejected(name: str, damage: ModuleType) -> None:
    assert set(NEARLY_RIGHT) == set(damage.NEARLY_RIGHT)
    assert rejected(name, 40, damage, 0.0) >= 0.95


@pytest.mark.slow
def test_fresh_scenes_in_numbers() -> None:
    assert recovered(2500, 5, 64, None) >= 0.999
    assert recovered(600, 6, 128, None) >= 0.999


@pytest.mark.slow
def test_damaged_scenes_in_numbers(damage: ModuleType) -> None:
    assert recovered(1200, 7, 64, damage) >= 0.97
    assert recovered(600, 8, 64, damage, 0.5) >= 0.995
    assert recovered(300, 9, 128, damage) >= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("name", NEARLY_RIGHT)
def test_nearly_right_images_in_numbers(name: str, damage: ModuleType) -> None:
    assert rejected(name, 200, damage, 0.0) >= 0.95
    assert rejected(name, 200, damage, 0.5) >= 0.94


def test_another_scene_is_not_the_same() -> None:
    """Whatever an edit changes, the judge sees it."""
    rng = random.Random(6)
    for _ in range(120):
        scene = sample_scene(rng)
        edit = sample_edit(scene, rng)
        parsed = parse(draw(edit.result))
        assert same_scene(parsed, edit.result)
        assert not same_scene(parsed, scene)
        if edit.kind == "resize":
            assert same_scene(parsed, scene, sizes=False)


def test_captions_are_judged() -> None:
    rng = random.Random(7)
    for _ in range(120):
        scene, other = sample_scene(rng), sample_scene(rng)
        _, spec = caption_with_spec(scene, rng)
        assert matches(parse(draw(scene)), spec)
        if sorted(t.kind for t in scene.things) != sorted(t.kind for t in other.things):
            assert not matches(parse(draw(other)), spec)


def pasted(things: list[tuple[str, str, str, int, int]], name: str = "grass") -> Image.Image:
    """Things anywhere: (kind, colour, size, centre x, centre y)."""
    image = background(name).copy()
    for kind, colour, size, x, y in things:
        art = sprite(kind, colour, size)
        corner = BOX[size] // 2
        image.paste(art.convert("RGB"), (x - corner, y - corner), art.getchannel("A"))
    return image


def test_things_may_stand_anywhere() -> None:
    parsed = parse(pasted([("car", "red", "medium", 21, 12), ("cat", "white", "small", 44, 52)]))
    assert parsed.clean
    assert {(t.kind, t.slot, t.dx, t.dy) for t in parsed.things} == {
        ("car", "top left", 5, -4),
        ("cat", "bottom right", -4, 4),
    }
    between = parse(pasted([("car", "red", "medium", 24, 16)]))
    assert between.clean
    assert between.things[0].slot is None
    assert matches(between, Spec("grass", (ThingSpec("car", "red"),)))
    assert not matches(between, Spec(None, (ThingSpec("car", slot="top left"),)))
    assert not same_scene(between, Scene("grass", (Thing("car", "red", "medium", "top left"),)))


def test_relations_are_judged_by_centres() -> None:
    spec = Spec(None, (ThingSpec("car"), ThingSpec("cat")), ((0, "left of", 1),))
    assert matches(parse(pasted([("car", "red", "small", 20, 30), ("cat", "blue", "small", 40, 34)])), spec)
    assert not matches(parse(pasted([("car", "red", "small", 40, 30), ("cat", "blue", "small", 20, 34)])), spec)
    assert not matches(parse(pasted([("car", "red", "small", 30, 12), ("cat", "blue", "small", 34, 48)])), spec)


def test_one_more_or_one_less_is_wrong() -> None:
    spec = Spec(None, (ThingSpec("star"),) * 3)
    for number in (1, 2, 3, 4):
        scene = Scene("sea", tuple(Thing("star", "red", "medium", slot) for slot in QUADRANTS[:number]))
        assert matches(parse(draw(scene)), spec) == (number == 3)


def test_things_cut_by_the_border_or_overlapping_are_unclean() -> None:
    assert not parse(pasted([("house", "red", "large", 6, 30)])).clean
    assert not parse(pasted([("house", "red", "large", 28, 30), ("circle", "blue", "large", 40, 34)])).clean


def test_rubbish_is_unclean() -> None:
    rng = np.random.default_rng(8)
    for image in (
        rng.integers(0, 256, (64, 64, 3)),
        np.zeros((64, 64, 3)),
        np.full((64, 64, 3), 255),
        np.full((128, 128, 3), 130),
        np.where(np.indices((64, 64)).sum(axis=0)[..., None] % 16 < 8, 255, 0) * np.ones(3, int),
    ):
        parsed = parse(image.astype(np.uint8))
        assert not parsed.clean
        assert parsed.reason


def test_reasons_say_what_is_wrong() -> None:
    red, orange = (
        draw_array(Scene("sea", (Thing("circle", c, "large", "middle"),))).astype(float) for c in ("red", "orange")
    )
    assert "not quite" in parse(((red + orange) / 2).astype(np.uint8)).reason
    spot = draw_array(Scene("sand"))
    spot[40:44, 10:14] = 0
    assert parse(spot).reason


def test_bad_input() -> None:
    for image in (np.zeros((64, 32, 3), np.uint8), np.zeros((64, 64), np.uint8), np.zeros((60, 60, 3), np.uint8)):
        with pytest.raises(SceneError):
            parse(image)
    with pytest.raises(SceneError, match="uint8"):
        parse(np.zeros((64, 64, 3)))


def test_modes_are_equal() -> None:
    scene = Scene("night", (Thing("moon", "yellow", "large", "top right"),))
    image = draw(scene)
    assert parse(image) == parse(np.asarray(image)) == parse(image.convert("RGBA"))


def test_judging_is_fast() -> None:
    """About 8 ms of one core a picture; the limit leaves room for slower ones."""
    rng = random.Random(9)
    images = [draw_array(sample_scene(rng)) for _ in range(30)]
    times = []
    for image in itertools.chain(images[:2], images):
        start = time.process_time()
        parse(image)
        times.append(time.process_time() - start)
    assert sorted(times[2:])[15] < 0.04
