"""Riddles: knowledge without double meanings, and thinking that ends in a task that is solved as the riddle is."""

from __future__ import annotations

import random
import re
from collections import Counter
from types import ModuleType

import pytest

from bagel_mot.worlds.mini.knowledge import (
    BACKGROUND_CLUES,
    CATEGORIES,
    COLOUR_CLUES,
    KIND_CLUES,
    NUMBER_FACTS,
    PARTS,
)
from bagel_mot.worlds.mini.riddles import RIDDLE_TASKS, sample_riddle
from bagel_mot.worlds.mini.scene import BACKGROUNDS, COLOURS, KINDS, SceneError
from bagel_mot.worlds.mini.spec import satisfies
from bagel_mot.worlds.mini.words import NUMBERS


def test_knowledge_is_complete_and_unambiguous() -> None:
    assert tuple(KIND_CLUES) == KINDS
    assert tuple(COLOUR_CLUES) == COLOURS
    assert tuple(BACKGROUND_CLUES) == BACKGROUNDS
    for table in (KIND_CLUES, COLOUR_CLUES, BACKGROUND_CLUES):
        assert all(len(clues) >= 3 for clues in table.values())
        clues = [clue for entries in table.values() for clue in entries]
        assert len(set(clues)) == len(clues)
    assert set(NUMBER_FACTS) >= {1, 2, 3, 4}
    for number, facts in NUMBER_FACTS.items():
        assert all(f"has {NUMBERS[number]} " in fact for _, fact in facts)
    assert all(kind in KINDS for members in CATEGORIES.values() for kind in members)
    assert max(each for parts in PARTS.values() for _, each in parts) * 4 < len(NUMBERS)


def test_clues_do_not_give_themselves_away() -> None:
    for kind, clues in KIND_CLUES.items():
        assert not any(re.search(rf"\b{kind}s?\b", clue) for clue in clues), kind
    for colour, clues in COLOUR_CLUES.items():
        assert not any(re.search(rf"\b{colour}\b", clue) for clue in clues), colour


def plain_task(think: str) -> str:
    assert ". so: " in think
    return think.rsplit(". so: ", 1)[1].removesuffix(".")


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_draw_riddles_are_solved_by_their_scene(split: str) -> None:
    rng = random.Random(1)
    plains = Counter()
    for _ in range(600):
        riddle = sample_riddle(rng, "draw", split)
        assert riddle.scene_after is not None
        assert riddle.spec is not None
        assert satisfies(riddle.scene_after, riddle.spec)
        plain = plain_task(riddle.think)
        for thing in riddle.spec.things:
            assert thing.kind is not None
            assert thing.kind in plain
            assert thing.colour is None or thing.colour in plain
        number = len(riddle.spec.things)
        if len({thing.kind for thing in riddle.spec.things}) == 1 and number > 1:
            assert plain.startswith(NUMBERS[number])
        assert riddle.prompt == riddle.prompt.lower()
        plains[number] += 1
    assert set(plains) == {1, 2, 3, 4}


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_edit_riddles_reduce_to_an_edit(split: str, reading: ModuleType) -> None:
    rng = random.Random(2)
    for _ in range(500):
        riddle = sample_riddle(rng, "edit", split)
        assert riddle.scene_before is not None
        assert riddle.scene_after is not None
        assert riddle.spec is not None
        result, _ = reading.carry_out(riddle.scene_before, plain_task(riddle.think))
        assert result == riddle.scene_after, riddle
        assert satisfies(riddle.scene_after, riddle.spec)
        assert not satisfies(riddle.scene_before, riddle.spec)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_answer_riddles_reduce_to_a_question_or_a_sum(split: str, reading: ModuleType) -> None:
    rng = random.Random(3)
    sums = 0
    for _ in range(500):
        riddle = sample_riddle(rng, "answer", split)
        assert riddle.scene_before is not None
        # Questions asked and answered on the way are right too.
        for asked, answer in re.findall(r"(how many [a-z ]+\?) (\w+)\.", riddle.think):
            assert reading.answer(riddle.scene_before, "H" + asked[1:]) == answer
        plain = plain_task(riddle.think)
        if plain.endswith("?"):
            assert reading.answer(riddle.scene_before, plain) == riddle.answer
            continue
        sums += 1
        match = re.fullmatch(r"([a-z ]+) (times|plus) (\w+) is (\w+)", plain)
        assert match, plain
        numbers = [reading.NUMBER[word] for word in [*match.group(1).split(" plus "), match.group(3)]]
        total = numbers[0] * numbers[1] if match.group(2) == "times" else sum(numbers)
        assert match.group(4) == riddle.answer == reading.WORD[total]
    assert 100 < sums < 400


def test_arithmetic_on_the_way_is_right(reading: ModuleType) -> None:
    rng = random.Random(4)
    seen = 0
    for _ in range(600):
        riddle = sample_riddle(rng, "draw")
        for a, sign, b, c in re.findall(r"(\w+) (minus|plus) (\w+) is (\w+)\.", riddle.think):
            seen += 1
            value = reading.NUMBER[a] + (1 if sign == "plus" else -1) * reading.NUMBER[b]
            assert value == reading.NUMBER[c] == len(riddle.spec.things)  # type: ignore[union-attr]
    assert seen > 50


def test_errors() -> None:
    with pytest.raises(SceneError, match="riddle task is 'sing'"):
        sample_riddle(random.Random(0), "sing")
    with pytest.raises(SceneError, match="split is 'test'"):
        sample_riddle(random.Random(0), RIDDLE_TASKS[0], "test")
