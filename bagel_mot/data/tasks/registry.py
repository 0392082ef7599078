"""Mappers by the name of their task, with the names of fields that a recipe gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bagel_mot.config import parse
from bagel_mot.data.dataset import Mapper
from bagel_mot.data.tasks.chat import Conversation
from bagel_mot.data.tasks.edit import Compose, EditSession
from bagel_mot.data.tasks.interleaved import ReasoningSteps, ReasoningTrace, WebPage
from bagel_mot.data.tasks.messages import Messages
from bagel_mot.data.tasks.self_edit import SelfEdit
from bagel_mot.data.tasks.t2i import TextToImage
from bagel_mot.data.tasks.think import Thinking
from bagel_mot.data.tasks.video import VideoGeneration
from bagel_mot.errors import DataError, did_you_mean

TASKS: dict[str, type[Any]] = {
    "t2i": TextToImage,
    "edit": Compose,
    "session": EditSession,
    "chat": Conversation,
    "messages": Messages,
    "think": Thinking,
    "page": WebPage,
    "steps": ReasoningSteps,
    "trace": ReasoningTrace,
    "video": VideoGeneration,
    "self_edit": SelfEdit,
}
"""The mappers by the task that a recipe names."""


def mapper_of(task: str, arguments: Mapping[str, Any], folder: Path | None, where: str) -> Mapper:
    """The mapper of a task.

    Args:
        task: one of `TASKS`.
        arguments: the mapper's own arguments, above all the names of fields; those left out keep their defaults.
        folder: the folder that paths of images and videos are relative to.
        where: the words that an error begins with.

    Raises:
        DataError: the task or an argument is not known, or an argument is of another type.
    """
    if task not in TASKS:
        raise DataError(f"{where}: there is no task {task!r}; {did_you_mean(task, TASKS)}")
    known = [field.name for field in dataclasses.fields(TASKS[task]) if field.name not in ("folder", "read")]
    if unknown := [name for name in arguments if name not in known]:
        raise DataError(f"{where}: the task {task} has no {unknown[0]}; {did_you_mean(unknown[0], known)}")
    mapper: Mapper = parse(TASKS[task], {**arguments, "folder": folder}, where, DataError)
    return mapper
