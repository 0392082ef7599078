"""Rows of any layout as documents: columns by the names that a recipe gives them, for each task."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from bagel_mot.config import parse
from bagel_mot.data.columns import all_of, first_of, missing, values_of
from bagel_mot.data.documents import Document
from bagel_mot.data.draws import Draws
from bagel_mot.data.image_places import ImagePlace
from bagel_mot.data.readers.base import Row
from bagel_mot.data.rows import SkipRow
from bagel_mot.data.tasks.chat import Conversation
from bagel_mot.data.tasks.edit import Compose, EditSession
from bagel_mot.data.tasks.fields import text_of
from bagel_mot.data.tasks.frames import FrameSampler
from bagel_mot.data.tasks.interleaved import ReasoningSteps, ReasoningTrace, WebPage
from bagel_mot.data.tasks.messages import Messages
from bagel_mot.data.tasks.parts import Parts
from bagel_mot.data.tasks.self_edit import SelfEdit
from bagel_mot.data.tasks.t2i import TextToImage, plain_captions
from bagel_mot.data.tasks.think import Thinking
from bagel_mot.data.tasks.video import VideoGeneration
from bagel_mot.errors import DataError, did_you_mean

Names = tuple[str, ...]

_BACKWARDS = Fraction(1, 2)
_CAPTIONS = ("txt", "caption", "captions", "prompt", "text")
_IMAGES = ("image", "jpg", "png", "webp")


@dataclass(frozen=True)
class RowTask:
    """A kind of document that is made of rows.

    Attributes:
        columns: the roles of columns, with the names that they have by default.
        document: makes the document of a row.
        mapper: the type of the mapper of rows with the usual names.
        optional: the roles that a row may lack.
        options: the names of the mapper's arguments that a recipe may give.
    """

    columns: Mapping[str, Names]
    document: Callable[[RowMapper, Row, Draws], Document]
    mapper: type[Any]
    optional: frozenset[str] = frozenset()
    options: tuple[str, ...] = ()

    def with_options(self, options: Mapping[str, Any], where: str) -> Any:
        """The mapper with arguments of a recipe.

        Args:
            options: the arguments.
            where: the words that an error begins with.

        Raises:
            DataError: an option is not known, or of another type.
        """
        if unknown := [name for name in options if name not in self.options]:
            there = did_you_mean(unknown[0], self.options) if self.options else "there are no options for this task"
            raise DataError(f"{where} has {unknown[0]}; {there}")
        return parse(self.mapper, dict(options), where, DataError)


@dataclass(frozen=True)
class RowMapper:
    """Maps rows by a task, with columns of any names and images from any place.

    Attributes:
        task: the name of the task, one of `TASKS`.
        columns: the names of the columns, for each role of the task.
        place: makes images of what the columns hold.
        base: the task's own mapper, with the options of the recipe.
        human, gpt: the roles of turns in conversations.
        image_mark: the mark of an image in a turn.
        frames: the choice of a video's frames.
    """

    task: str
    columns: Mapping[str, Names]
    place: ImagePlace
    base: Any
    human: Names = ("human", "user")
    gpt: Names = ("gpt", "assistant")
    image_mark: str = "<image>"
    frames: FrameSampler = FrameSampler(12, 8)  # noqa: RUF009 - it is frozen

    def __call__(self, row: Row, draws: Draws) -> Document:
        return TASKS[self.task].document(self, row, draws)

    def image(self, row: Row, role: str) -> Any:
        """The image in the first column of a role that the row has."""
        value = first_of(row, self.columns[role], role)
        if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray) and len(value) == 1:
            value = value[0]
        return self.place.image(value)

    def images(self, row: Row, role: str) -> list[Any]:
        """The images in all columns of a role."""
        return [self.place.image(value) for value in all_of(row, self.columns[role], role)]

    def texts(self, row: Row, role: str) -> list[str]:
        """The wordings in all columns of a role. A text of JSON with an object counts as the texts in that."""
        return [text for value in all_of(row, self.columns[role], role) for text in _wordings(value, role)]

    def has(self, row: Row, role: str) -> bool:
        """Whether a row has a column of a role."""
        return any(values_of(row, name) for name in self.columns.get(role, ()))


def _wordings(value: Any, role: str) -> list[str]:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            content = json.loads(value)
        except (ValueError, RecursionError):
            content = None  # a text that begins with a brace
        if isinstance(content, dict) and content:
            value = content
    if isinstance(value, Mapping):
        return [text_of(text, f"a {role}") for text in value.values() if text is not None]
    return [text_of(value, f"a {role}")]


def _t2i(mapper: RowMapper, row: Row, draws: Draws) -> Document:
    found = {"image": mapper.image(row, "image"), "captions": mapper.texts(row, "caption")}
    return _text_to_image(mapper.base, found, draws)


def _text_to_image(base: TextToImage, found: Row, draws: Draws) -> Document:
    return replace(base, read=plain_captions)(found, draws)


def _self_edit(mapper: RowMapper, row: Row, draws: Draws) -> Document:
    return mapper.base({"image": mapper.image(row, "image")}, draws)


def _pair(mapper: RowMapper, row: Row) -> dict[str, Any]:
    return {
        "input_images": mapper.images(row, "before"),
        "instruction": mapper.texts(row, "instruction"),
        "output_image": mapper.image(row, "after"),
    }


def _edit(mapper: RowMapper, row: Row, draws: Draws) -> Document:
    base: Compose = mapper.base if isinstance(mapper.base, Compose) else Compose()
    return base(_pair(mapper, row), draws)


class _LazyStates(Sequence[Any]):
    """States of a session, of which those that are drawn are looked at alone."""

    def __init__(self, values: Sequence[Any], place: ImagePlace) -> None:
        self.values, self.place = values, place

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, number: Any) -> Any:
        return self.place.image(self.values[number])


def _session(mapper: RowMapper, row: Row, draws: Draws) -> Document:
    states: Sequence[Any] = all_of(row, mapper.columns["states"], "states")
    steps = _steps(row, mapper.columns["steps"])
    if mapper.has(row, "inverse") and draws.chance(_BACKWARDS):
        states, steps = states[::-1], _steps(row, mapper.columns["inverse"])[::-1]
    return EditSession()({"image_list": _LazyStates(states, mapper.place), "instruction_list": steps}, draws)


def _steps(row: Row, names: Names) -> list[Any]:
    """One entry for each step: of numbered columns and paths each value, of a plain column the items of its list."""
    found: list[Any] = []
    for name in names:
        for value in values_of(row, name):
            listed = isinstance(value, Sequence) and not isinstance(value, str) and name in row
            found += value if listed else [value]
    if not found:
        raise missing(row, names, "steps")
    return found


def _chat(mapper: RowMapper, row: Row, draws: Draws) -> Document:
    turns = first_of(row, mapper.columns["messages"], "messages")
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise SkipRow("messages are no list", f"the messages are {turns!r:.80}; a list of turns is expected")
    if any(isinstance(turn, Mapping) and not isinstance(turn.get("content", ""), str) for turn in turns):
        return _messages(mapper, row, draws)
    found: dict[str, Any] = {"conversations": [_turn(turn) for turn in turns]}
    if mapper.has(row, "image"):
        found["image"] = mapper.images(row, "image")
    elif mapper.has(row, "video"):
        name = text_of(first_of(row, mapper.columns["video"], "video"), "a video")
        found["video"] = str(mapper.place.path(name)) + ("/" if name.endswith("/") else "")
    map_turns = Conversation(
        human=mapper.human, gpt=mapper.gpt, image_mark=mapper.image_mark, sampler=mapper.frames, exact=True
    )
    return map_turns(found, draws)


def _turn(turn: Any) -> Any:
    """A turn with the published names, whichever of the two usual pairs of names it has."""
    if isinstance(turn, Mapping) and "role" in turn and "content" in turn:
        return {"from": turn["role"], "value": turn["content"]}
    return turn


def _messages(mapper: RowMapper, row: Row, draws: Draws) -> Document:
    messages = first_of(row, mapper.columns["messages"], "messages")
    found: dict[str, Any] = {"messages": messages}
    if isinstance(messages, Sequence) and not isinstance(messages, str):
        found["messages"] = [_placed(message, mapper.place) for message in messages]
    if mapper.has(row, "image"):
        found["images"] = mapper.images(row, "image")
    base: Messages = mapper.base if isinstance(mapper.base, Messages) else Messages()
    return base(found, draws)


def _placed(message: Any, place: ImagePlace) -> Any:
    """A message whose images are found at their place."""
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, Sequence) or isinstance(content, str):
        return message
    items = []
    for item in content:
        kind = item.get("type") if isinstance(item, Mapping) else None
        value = item.get(kind) if kind in ("image", "image_url") else None
        value = value["url"] if isinstance(value, Mapping) and "url" in value else value
        items.append(item if value is None else {**item, kind: place.image(value)})
    return {**message, "content": items}


def _think(mapper: RowMapper, row: Row, draws: Draws) -> Document:
    draw = mapper.has(row, "after")
    if draw and not mapper.has(row, "thought"):
        return _edit(mapper, row, draws) if mapper.has(row, "before") else _plain(mapper, row, draws)
    found: dict[str, Any] = {
        "question": mapper.texts(row, "instruction"),
        "thought": first_of(row, mapper.columns["thought"], "thought"),
        "images": mapper.images(row, "before") if mapper.has(row, "before") else None,
    }
    if draw:
        found["image"] = mapper.image(row, "after")
    else:
        found["answer"] = first_of(row, mapper.columns["answer"], "answer")
    return replace(mapper.base, images="images", target="image" if draw else None)(found, draws)


def _plain(mapper: RowMapper, row: Row, draws: Draws) -> Document:
    found = {"image": mapper.image(row, "after"), "captions": mapper.texts(row, "instruction")}
    return _text_to_image(TextToImage(), found, draws)


def _page(mapper: RowMapper, row: Row, draws: Draws) -> Document:
    found: dict[str, Any] = {
        "images": mapper.images(row, "image"),
        "captions": all_of(row, mapper.columns["caption"], "caption"),
    }
    texts = first_of(row, mapper.columns["text"], "text") if mapper.has(row, "text") else None
    return replace(mapper.base, texts=None if texts is None else "texts")({**found, "texts": texts}, draws)


def _reasoning(mapper: RowMapper, row: Row, draws: Draws) -> Document:
    found = {
        "image_list": mapper.images(row, "states"),
        "instruction_list": first_of(row, mapper.columns["instruction"], "instruction"),
        "output_text_list": first_of(row, mapper.columns["thought"], "thought"),
    }
    return mapper.base(found, draws)


def _trace(mapper: RowMapper, row: Row, draws: Draws) -> Document:
    question, trace, answer = (mapper.columns[role][0] for role in ("question", "trace", "answer"))
    steps = replace(mapper.base, question=question, trace=trace, answer=answer)
    marked = re.findall(steps.mark, f"{row.get(question)} {row.get(trace)}")
    images = {name: mapper.place.image(row[name]) for name in marked if row.get(name) is not None}
    return steps({**row, **images}, draws)


def _video(mapper: RowMapper, row: Row, draws: Draws) -> Document:
    value = first_of(row, mapper.columns["video"], "video")
    video = str(mapper.place.path(value)) if isinstance(value, str) else [mapper.place.image(v) for v in value]
    found = {"video": video, "caption": mapper.texts(row, "caption")}
    if not mapper.has(row, "text"):
        return mapper.base(found, draws)
    found["changes"] = first_of(row, mapper.columns["text"], "text")
    return replace(mapper.base, changes="changes")(found, draws)


def _parts(mapper: RowMapper, row: Row, draws: Draws) -> Document:
    found = {"parts": first_of(row, mapper.columns["parts"], "parts"), "images": row.get("images")}
    return Parts(image=mapper.place.image, path=mapper.place.path)(found, draws)


TASKS: dict[str, RowTask] = {
    "t2i": RowTask({"image": _IMAGES, "caption": _CAPTIONS}, _t2i, TextToImage, options=("copies",)),
    "edit": RowTask(
        {"before": ("before",), "after": ("after",), "instruction": ("instruction",)}, _edit, Compose, options=("most",)
    ),
    "session": RowTask(
        {"states": ("image_list",), "steps": ("instruction_list",), "inverse": ()},
        _session,
        EditSession,
        frozenset({"inverse"}),
    ),
    "chat": RowTask(
        {"messages": ("conversations", "messages"), "image": ("image", "images"), "video": ("video",)},
        _chat,
        Conversation,
        frozenset({"image", "video"}),
    ),
    "messages": RowTask(
        {"messages": ("messages",), "image": ("images", "image")},
        _messages,
        Messages,
        frozenset({"image"}),
        ("starts_image",),
    ),
    "think": RowTask(
        {
            "before": ("before",), "instruction": ("question", "prompt", "instruction"), "thought": ("thought",),
            "after": ("image", "after"), "answer": ("answer",),
        },
        _think,
        Thinking,
        frozenset({"before", "after", "answer", "thought"}),
        ("learnt", "starts_image"),
    ),
    "page": RowTask(
        {"image": ("images",), "caption": ("captions",), "text": ("texts",)},
        _page,
        WebPage,
        frozenset({"text"}),
        ("fewest", "most", "learnt", "starts_image"),
    ),
    "steps": RowTask(
        {"states": ("image_list",), "instruction": ("instruction_list",), "thought": ("output_text_list",)},
        _reasoning,
        ReasoningSteps,
        options=("system", "starts_image"),
    ),
    "trace": RowTask(
        {"question": ("Question",), "trace": ("Text Reasoning Trace",), "answer": ("Final Answer",)},
        _trace,
        ReasoningTrace,
        frozenset({"answer"}),
        ("mark", "closing", "starts_image"),
    ),
    "video": RowTask(
        {"video": ("video",), "caption": ("caption",), "text": ("changes",)},
        _video,
        VideoGeneration,
        frozenset({"text"}),
        ("groups", "given", "sampler"),
    ),
    "self_edit": RowTask({"image": _IMAGES}, _self_edit, SelfEdit, options=("kinds",)),
    "parts": RowTask({"parts": ("parts",)}, _parts, Parts),
}  # fmt: skip
"""The tasks by name."""
