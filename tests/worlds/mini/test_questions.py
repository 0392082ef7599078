"""Questions have the answer that an independent reader of their words finds."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from types import ModuleType

import pytest

from bagel_mot.worlds.mini.questions import QUESTION_TYPES, question, questions
from bagel_mot.worlds.mini.sampling import sample_scene
from bagel_mot.worlds.mini.scene import Scene, SceneError


def test_answers_agree_with_brute_force(reading: ModuleType) -> None:
    rng = random.Random(1)
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for _ in range(2500):
        scene = sample_scene(rng, rng.choice(("train", "held_out")))
        for qa in questions(scene, rng, 4):
            assert reading.answer(scene, qa.question) == qa.answer, (qa, scene)
            assert 1 <= len(qa.answer.split()) <= 3
            assert qa.question[0].isupper()
            assert qa.question.endswith("?")
            answers[qa.type][qa.answer] += 1
    assert set(answers) == set(QUESTION_TYPES)
    assert 0.9 < answers["exist"]["yes"] / answers["exist"]["no"] < 1.1
    assert 0.8 < answers["compare"]["yes"] / answers["compare"]["no"] < 1.25
    for counts in answers.values():
        # No answer is so common that guessing it would do.
        assert counts.most_common(1)[0][1] < 0.56 * sum(counts.values())


def test_asks_different_questions() -> None:
    rng = random.Random(2)
    for _ in range(300):
        asked = questions(sample_scene(rng), rng, 6)
        assert len({qa.question for qa in asked}) == len(asked) == 6


def test_empty_scenes_can_be_asked_about(reading: ModuleType) -> None:
    rng = random.Random(3)
    for _ in range(100):
        for qa in questions(Scene("sand"), rng, 3):
            assert reading.answer(Scene("sand"), qa.question) == qa.answer


def test_errors() -> None:
    rng = random.Random(4)
    with pytest.raises(SceneError, match="type is 'taste'"):
        question(sample_scene(rng), rng, "taste")
    with pytest.raises(SceneError, match="no colour question"):
        question(Scene("sand"), rng, "colour")
