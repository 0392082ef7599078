"""The pictures: every sprite its own, in its place, legible on every background, and quickly drawn."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from bagel_mot.worlds.mini.draw import BOX, background, draw, draw_array, sprite
from bagel_mot.worlds.mini.sampling import sample_scene
from bagel_mot.worlds.mini.scene import (
    BACKGROUNDS,
    COLOURS,
    DIAMETER,
    KINDS,
    QUADRANTS,
    SIZES,
    Scene,
    SceneError,
    Thing,
)
from bagel_mot.worlds.mini.sprites import ART


def over_grey(kind: str, colour: str, size: str) -> np.ndarray:
    pixels = np.asarray(sprite(kind, colour, size), float)
    alpha = pixels[..., 3:] / 255
    return pixels[..., :3] * alpha + 128 * (1 - alpha)


@pytest.mark.parametrize("size", SIZES)
def test_sprites_differ_pairwise(size: str) -> None:
    """Any two kinds of a colour, and any two colours of a kind, differ clearly, also when they are small."""
    for colour in ("red", "white"):
        art = [over_grey(kind, colour, size) for kind in KINDS]
        closest = min(float(np.sqrt(((a - b) ** 2).mean())) for a, b in itertools.combinations(art, 2))
        assert closest > 18
    for kind in KINDS:
        art = [over_grey(kind, colour, size) for colour in COLOURS]
        # Colour fills only part of the box, so it is the strongest difference that counts.
        assert min(float(np.abs(a - b).max()) for a, b in itertools.combinations(art, 2)) > 75


@pytest.mark.parametrize("side", [64, 128])
def test_sprites_have_their_size(side: int) -> None:
    for size in SIZES:
        widest = 0
        for kind in KINDS:
            alpha = np.asarray(sprite(kind, "red", size, side).getchannel("A")) > 100
            assert alpha.shape == (BOX[size] * side // 64,) * 2
            widest = max(widest, np.ptp(np.nonzero(alpha)[0]) + 1, np.ptp(np.nonzero(alpha)[1]) + 1)
            assert max(np.ptp(np.nonzero(alpha)[i]) + 1 for i in (0, 1)) >= 0.8 * DIAMETER[size] * side / 64
        assert abs(widest - DIAMETER[size] * side / 64) <= 2 * side / 64


def test_legible_on_every_background() -> None:
    """Some part of every sprite stands out from every background by far, and so does most of its area a little."""
    for name in BACKGROUNDS:
        empty = draw_array(Scene(name)).astype(float)
        for kind in KINDS:
            for colour in COLOURS:
                for slot in QUADRANTS:
                    full = draw_array(Scene(name, (Thing(kind, colour, "small", slot),))).astype(float)
                    difference = np.abs(full - empty).max(axis=2)
                    assert (difference > 60).sum() >= 24, (name, kind, colour, slot)


def test_things_stay_in_the_image_and_apart() -> None:
    for dx, dy in itertools.product((-2, 2), repeat=2):
        masks = []
        for slot in QUADRANTS:
            single = draw_array(Scene("day", (Thing("circle", "red", "large", slot, dx, -dy),)))
            mask = (single != draw_array(Scene("day"))).any(axis=2)
            assert mask.sum() > 450
            masks.append(mask)
    for a, b in itertools.combinations(masks, 2):
        assert not (a & b).any()


def test_jitter_moves_whole_pixels() -> None:
    base = draw_array(Scene("snow", (Thing("cat", "blue", "medium", "middle"),)), 128).astype(int)
    moved = draw_array(Scene("snow", (Thing("cat", "blue", "medium", "middle", 2, -1),)), 128).astype(int)
    inside = (slice(52, 76), slice(52, 76))
    shifted = (slice(50, 74), slice(56, 80))
    assert (base[inside] == moved[shifted]).all()


def test_details_can_be_left_out() -> None:
    for kind in KINDS:
        same = np.array_equal(sprite(kind, "red", "large"), sprite(kind, "red", "large", 64, details=False))
        assert same != any(polygon.detail for polygon in ART[kind])


def test_backgrounds_differ_and_are_calm() -> None:
    images = {name: np.asarray(background(name), float) for name in BACKGROUNDS}
    for a, b in itertools.combinations(images.values(), 2):
        assert np.abs(a - b).mean() > 15
    for image in images.values():
        # Calm: few pixels differ much from the ones above them (a horizon and little waves do).
        assert (np.abs(np.diff(image, axis=0)).max(axis=2) > 40).mean() < 0.09


def test_drawing_leaves_the_cache_alone() -> None:
    before = np.array(background("sea"))
    draw(Scene("sea", (Thing("sun", "yellow", "large", "middle"),)))
    assert np.array_equal(before, background("sea"))
    first = draw_array(Scene("sea"))
    first[:] = 0
    assert np.array_equal(before, draw_array(Scene("sea")))


def test_bad_side() -> None:
    for side in (0, 63, 100, 1024, "64"):
        with pytest.raises(SceneError, match="multiple of 64"):
            draw(Scene("day"), side)  # type: ignore[arg-type]


def test_sprites_and_backgrounds_are_drawn_once() -> None:
    """Later images only paste what the cache holds."""
    rng = random.Random(0)
    scenes = [sample_scene(rng) for _ in range(300)]
    for scene in scenes:
        draw_array(scene)
    misses = [cached.cache_info().misses for cached in (sprite, background)]
    for scene in scenes:
        draw_array(scene)
    assert [cached.cache_info().misses for cached in (sprite, background)] == misses
