"""Random scenes. Everything is drawn from one `random.Random`, so a seed fixes the scene on every machine."""

from __future__ import annotations

import random
from collections.abc import Sequence

from bagel_mot.worlds.mini.scene import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    MAX_THINGS,
    MIDDLE,
    QUADRANTS,
    SIZES,
    Scene,
    SceneError,
    Thing,
)
from bagel_mot.worlds.mini.splits import held_out_pairs, held_out_triples, in_split, is_held_out_pair

JITTER = 1
"""Maximum offset of a thing from its slot in random scenes, in world pixels along each axis."""
THING_COUNT_WEIGHTS = (25, 30, 25, 20)
"""Percentages of scenes with one, two, three and four things."""
MIDDLE_SHARE = 0.4
"""Share of scenes with one thing in which it stands in the middle."""
ALIGNED_SHARE = 0.8
"""Share of scenes with two things in which they share a row or a column, so that a relation holds between them."""
ALL_ALIKE_SHARE = 0.2
"""Share of scenes whose things are all of one kind, for counting."""
REPEAT_SHARE = 0.3
"""Share of further things that repeat a kind of the scene."""
SAME_COLOUR_SHARE = 0.6
"""Share of repeated kinds that repeat the colour too."""
MAX_TRIES = 300
"""Nearly all scenes fit at the first try; constraints that fail this often are almost certainly impossible."""


def sample_scene(
    rng: random.Random,
    split: str = "train",
    things: int | None = None,
    background: str | None = None,
    kinds: Sequence[str] | None = None,
    colours: Sequence[str] | None = None,
    slots: Sequence[str] | None = None,
) -> Scene:
    """A random scene of a split; the arguments that are given are fixed, the rest is drawn.

    Args:
        rng: the source of all randomness.
        split: "train" (no held-out combination) or "held_out" (at least one).
        things: the number of things, 1 to 4; drawn when None, unless kinds, colours or slots determine it.
        background: one of BACKGROUNDS.
        kinds, colours, slots: one value for each thing.

    Raises:
        SceneError: the constraints are impossible, such as a split that the fixed parts rule out.
    """
    lengths = {len(given) for given in (kinds, colours, slots) if given is not None}
    if things is not None:
        lengths.add(things)
    if len(lengths) > 1:
        raise SceneError(f"things, kinds, colours and slots ask for different numbers of things: {sorted(lengths)}")
    wanted = lengths.pop() if lengths else None
    if wanted is not None and not 1 <= wanted <= MAX_THINGS:
        raise SceneError(f"a random scene was asked for {wanted} things; it takes 1 to {MAX_THINGS}")
    if split == "train" and kinds is not None and colours is not None:
        for kind, colour in zip(kinds, colours, strict=True):
            if is_held_out_pair(kind, colour):
                raise SceneError(f"a {colour} {kind} is held out; scenes of split 'train' hold none")
    for _ in range(MAX_TRIES):
        # The number of things is drawn once, so that rejection below does not thin out full scenes.
        if wanted is None:
            wanted = rng.choices((1, 2, 3, 4), THING_COUNT_WEIGHTS)[0]
        scene = _draw_scene(rng, wanted, background, kinds, colours, slots, split == "held_out")
        if in_split(scene, split):
            return scene
    raise SceneError(f"no scene of split {split!r} found with kinds {kinds}, colours {colours} and slots {slots}")


def sample_jitter(rng: random.Random) -> tuple[int, int]:
    """(dx, dy), each −JITTER..JITTER, uniform."""
    return rng.randint(-JITTER, JITTER), rng.randint(-JITTER, JITTER)


def _draw_scene(
    rng: random.Random,
    count: int,
    background: str | None,
    kinds: Sequence[str] | None,
    colours: Sequence[str] | None,
    slots: Sequence[str] | None,
    seek_held_out: bool,
) -> Scene:
    """One candidate, whose split the caller checks; `seek_held_out` plants a held-out combination to speed that up."""
    places = list(slots) if slots is not None else sample_slots(rng, count)
    pairs = _draw_pairs(rng, count, kinds, colours)
    if seek_held_out:
        _plant(rng, places, pairs, kinds is None, colours is None)
    made = []
    for (kind, colour), slot in zip(pairs, places, strict=True):
        dx, dy = sample_jitter(rng)
        made.append(Thing(kind, colour, rng.choice(SIZES), slot, dx, dy))
    return Scene(background if background is not None else rng.choice(BACKGROUNDS), tuple(made))


def sample_slots(rng: random.Random, count: int) -> list[str]:
    """Distinct places for `count` things, in random order."""
    if count == 1:
        return [MIDDLE] if rng.random() < MIDDLE_SHARE else [rng.choice(QUADRANTS)]
    if count == 2:
        aligned = (("top left", "top right"), ("bottom left", "bottom right"))
        columns = (("top left", "bottom left"), ("top right", "bottom right"))
        diagonal = (("top left", "bottom right"), ("top right", "bottom left"))
        pair = list(rng.choice(aligned + columns if rng.random() < ALIGNED_SHARE else diagonal))
        rng.shuffle(pair)
        return pair
    return rng.sample(QUADRANTS, count)


def _draw_pairs(
    rng: random.Random, count: int, kinds: Sequence[str] | None, colours: Sequence[str] | None
) -> list[tuple[str, str]]:
    """(kind, colour) of each thing, with kinds often repeated."""
    all_alike = rng.random() < ALL_ALIKE_SHARE
    pairs: list[tuple[str, str]] = []
    for i in range(count):
        repeated = rng.choice(pairs) if pairs and (all_alike or rng.random() < REPEAT_SHARE) else None
        kind = repeated[0] if repeated else rng.choice(KINDS)
        colour = repeated[1] if repeated and rng.random() < SAME_COLOUR_SHARE else rng.choice(COLOURS)
        pairs.append((kinds[i] if kinds is not None else kind, colours[i] if colours is not None else colour))
    return pairs


def _plant(
    rng: random.Random, places: list[str], pairs: list[tuple[str, str]], kinds_free: bool, colours_free: bool
) -> None:
    """Put one held-out pair or triple into the scene being drawn, as far as kinds and colours are free."""
    if not kinds_free:
        if colours_free:
            known = dict(sorted(held_out_pairs()))
            spots = [i for i, (kind, _) in enumerate(pairs) if kind in known]
            if spots and rng.random() < 0.5:
                i = rng.choice(spots)
                pairs[i] = (pairs[i][0], known[pairs[i][0]])
        return
    sides = {("top left", "top right"): "left of", ("bottom left", "bottom right"): "left of"}
    sides |= {("top left", "bottom left"): "above", ("top right", "bottom right"): "above"}
    neighbours = [(i, j, sides[(a, b)]) for i, a in enumerate(places) for j, b in enumerate(places) if (a, b) in sides]
    if neighbours and rng.random() < 0.5:
        i, j, side = rng.choice(neighbours)
        kind, _, other = rng.choice([triple for triple in sorted(held_out_triples()) if triple[1] == side])
        pairs[i], pairs[j] = (kind, pairs[i][1]), (other, pairs[j][1])
        return
    i = rng.randrange(len(pairs))
    fitting = [pair for pair in sorted(held_out_pairs()) if colours_free or pair[1] == pairs[i][1]]
    if fitting:
        pairs[i] = rng.choice(fitting)
