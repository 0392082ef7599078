"""Scenes: validation, places and relations."""

from __future__ import annotations

import pytest

from bagel_mot.errors import BagelError
from bagel_mot.worlds.mini.scene import (
    OPPOSITE,
    QUADRANTS,
    SLOTS,
    Scene,
    SceneError,
    Thing,
    neighbour_slot,
    relation,
    relation_of_slots,
)


def test_order_of_things_does_not_matter() -> None:
    a, b = Thing("car", "red", "small", "bottom right"), Thing("cat", "blue", "large", "top left", 1, -2)
    assert Scene("day", (a, b)) == Scene("day", (b, a))
    assert hash(Scene("day", (a, b))) == hash(Scene("day", (b, a)))
    assert Scene("day", (a, b)).things == (b, a)


def test_impossible_scenes() -> None:
    car = Thing("car", "red", "small", "middle")
    with pytest.raises(SceneError, match="dx is 3"):
        Thing("car", "red", "small", "middle", 3)
    with pytest.raises(SceneError, match="dy is True"):
        Thing("car", "red", "small", "middle", 0, True)
    with pytest.raises(SceneError, match="colour is 'mauve'"):
        Thing("car", "mauve", "small", "middle")
    with pytest.raises(SceneError, match="place of its own"):
        Scene("day", (Thing("car", "red", "small", "top left"), Thing("cat", "red", "small", "top left")))
    with pytest.raises(SceneError, match="alone"):
        Scene("day", (car, Thing("cat", "red", "small", "top left")))
    with pytest.raises(SceneError, match="5 things"):
        Scene("day", (car,) * 5)
    assert issubclass(SceneError, BagelError)


def test_relations_are_of_rows_and_columns() -> None:
    assert relation_of_slots("top left", "top right") == "left of"
    assert relation_of_slots("bottom left", "top left") == "below"
    assert relation_of_slots("top left", "bottom right") is None
    assert relation_of_slots("middle", "top left") is None
    for a in SLOTS:
        for b in SLOTS:
            side = relation_of_slots(a, b)
            assert relation_of_slots(b, a) == (OPPOSITE[side] if side else None)
            if side:
                assert neighbour_slot(b, side) == a
    assert neighbour_slot("top left", "above") is None
    assert relation(Thing("car", "red", "small", "top left"), Thing("cat", "red", "small", "bottom left")) == "above"


def test_free_slots() -> None:
    assert Scene("day").free_slots() == SLOTS
    assert Scene("day", (Thing("car", "red", "small", "middle"),)).free_slots() == ()
    one = Scene("day", (Thing("car", "red", "small", "top left"),))
    assert one.free_slots() == tuple(slot for slot in QUADRANTS if slot != "top left")
