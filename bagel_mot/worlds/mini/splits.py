"""The splits: training never sees fixed sets of (thing, colour) pairs and of (thing, relation, thing) triples.

A relation holds between things that share a row or a column of the quadrants; "a left of b" and "b right of a" are one
combination, stored here as "left of" or "above". A scene is in the split "train" if it holds no such combination, in
"held_out" if it holds at least one.
"""

from __future__ import annotations

import random
from functools import cache

from bagel_mot.worlds.mini.scene import COLOURS, KINDS, Scene, choose_from, relation

SPLITS: tuple[str, ...] = ("train", "held_out")
HELD_OUT_SEED = 20_250
HELD_OUT_PAIR_COUNT = 12
"""8% of the 144 (kind, colour) pairs."""
HELD_OUT_TRIPLE_COUNT = 49
"""8% of the 612 (kind, relation, other kind) triples."""

Triple = tuple[str, str, str]


@cache
def held_out_pairs() -> frozenset[tuple[str, str]]:
    """The (kind, colour) pairs that training never sees: at most one a kind and two a colour."""
    rng = random.Random(HELD_OUT_SEED)
    kinds = list(KINDS)
    rng.shuffle(kinds)
    colours = list(COLOURS) * 2
    rng.shuffle(colours)
    return frozenset(zip(kinds[:HELD_OUT_PAIR_COUNT], colours[:HELD_OUT_PAIR_COUNT], strict=True))


@cache
def held_out_triples() -> frozenset[Triple]:
    """The (kind, "left of" or "above", other kind) triples that training never sees."""
    rng = random.Random(HELD_OUT_SEED + 1)
    triples = [(a, side, b) for a in KINDS for side in ("left of", "above") for b in KINDS if a != b]
    return frozenset(rng.sample(triples, HELD_OUT_TRIPLE_COUNT))


def canonical_triple(kind: str, side: str, other: str) -> Triple:
    """A triple as it is stored: with "left of" or "above"."""
    if side in ("right of", "below"):
        return other, "left of" if side == "right of" else "above", kind
    return kind, side, other


def is_held_out_pair(kind: str, colour: str) -> bool:
    """Whether training never sees this kind in this colour."""
    return (kind, colour) in held_out_pairs()


def is_held_out_triple(kind: str, side: str, other: str) -> bool:
    """Whether training never sees these kinds in this relation."""
    return canonical_triple(kind, side, other) in held_out_triples()


def held_out_combinations(scene: Scene) -> list[tuple[str, ...]]:
    """Every held-out pair and triple that a scene holds, in reading order."""
    found: list[tuple[str, ...]] = [(t.kind, t.colour) for t in scene.things if is_held_out_pair(t.kind, t.colour)]
    for i, a in enumerate(scene.things):
        for b in scene.things[i + 1 :]:
            side = relation(a, b)
            if side is not None and is_held_out_triple(a.kind, side, b.kind):
                found.append(canonical_triple(a.kind, side, b.kind))
    return found


def in_split(scene: Scene, split: str) -> bool:
    """Whether a scene belongs to a split. Raises SceneError for an unknown split."""
    choose_from("split", split, SPLITS)
    return bool(held_out_combinations(scene)) == (split == "held_out")
