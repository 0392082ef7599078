"""Mappers are made of the names that a recipe gives; what they do not know is one sentence."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from bagel_mot.data.tasks.frames import FrameSampler
from bagel_mot.data.tasks.registry import TASKS, mapper_of
from bagel_mot.data.tasks.think import Thinking
from bagel_mot.data.tasks.video import VideoGeneration
from bagel_mot.errors import DataError


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_mapper_with_defaults(task: str) -> None:
    mapper = mapper_of(task, {}, Path("in"), "data")
    assert pickle.loads(pickle.dumps(mapper)) == mapper == TASKS[task](folder=Path("in"))


def test_names_of_fields_and_settings_are_taken() -> None:
    mapper = mapper_of("think", {"question": "q", "target": None, "learnt": 0.5}, None, "data")
    assert mapper == Thinking(question="q", target=None, learnt=0.5)
    clip = mapper_of("video", {"sampler": {"max_num_frames": 6, "min_num_frames": 2, "sample": "middle"}}, None, "data")
    assert clip == VideoGeneration(sampler=FrameSampler(6, 2, "middle"))


@pytest.mark.parametrize(
    ("task", "arguments", "said"),
    [
        ("thinking", {}, r"data: there is no task 'thinking'; did you mean think\?"),
        ("think", {"questions": "q"}, r"the task think has no questions; did you mean question\?"),
        ("think", {"learnt": "often"}, "learnt is 'often'"),
        ("video", {"groups": "two"}, "groups is 'two'"),
        ("video", {"sampler": {"max_num_frames": 2, "min_num_frames": 3}}, "min_num_frames is 3"),
        ("self_edit", {"kinds": ["tint"]}, "'tint' is not a kind of self-supervised edit"),
    ],
)
def test_what_a_mapper_does_not_know_is_refused(task: str, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        mapper_of(task, arguments, None, "data")
    assert "\n" not in str(caught.value)
