"""The translation of what lmms-eval gives into what `Bagel` takes, and back. Nothing here imports lmms-eval.

Source: the interface of lmms-eval 0.7.3, and the texts that its tasks make.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from bagel_mot.errors import PromptError, SettingError, did_you_mean
from bagel_mot.inference.settings import SETTINGS, parse_settings, task_settings
from bagel_mot.task import Task

MODES = ("auto", "answer", "draw")
_DRAWING_TASKS = re.compile(r"(?:gedit|imgedit|kris|wise)(?:[_-]|$)", re.IGNORECASE)
_COT = re.compile(r"\[GEN_PROMPT\](.*?)\[/GEN_PROMPT\]\s*\[QUESTION\](.*?)\[/QUESTION\]", re.DOTALL)


def draws(task: str, mode: str) -> bool:
    """Whether the results of a task are images.

    Args:
        task: the task's name.
        mode: "answer", "draw", or "auto": by the name of the task, as lmms-eval does not say.
    """
    return mode == "draw" or (mode == "auto" and _DRAWING_TASKS.match(task) is not None)


def check_mode(mode: str) -> str:
    """The mode.

    Raises:
        SettingError: there is none of that name.
    """
    if mode not in MODES:
        raise SettingError(f"mode is {mode!r}: {did_you_mean(mode, MODES)}")
    return mode


def model_settings(given: Mapping[str, Any]) -> dict[Task, dict[str, Any]]:
    """The settings among the arguments of the model, for each task that takes them, validated.

    Two numbers, such as those of `cfg_interval`, are a text with a blank between them: commas part arguments.

    Raises:
        SettingError: a name is unknown, or a value is out of range.
    """
    found: dict[Task, dict[str, Any]] = {task: {} for task in Task}
    for name, value in given.items():
        if name not in SETTINGS:
            known = [setting.name for task in Task for setting in task_settings(task)]
            raise SettingError(f"there is no model argument {name!r}: {did_you_mean(name, dict.fromkeys(known))}")
        if SETTINGS[name].kind == "interval" and isinstance(value, str):
            value = [float(part) for part in value.split()]
        for task in SETTINGS[name].tasks:
            found[task] |= parse_settings(task, {name: value})
    return found


def answer_settings(gen_kwargs: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an answer.

    Args:
        gen_kwargs: the settings that the task asks for.
        own: the settings that the user gave as arguments of the model; they come first.

    Raises:
        SettingError: a value is out of range, or beams are asked for.
    """
    asked: dict[str, Any] = {}
    beams = gen_kwargs.get("num_beams")
    if beams not in (None, 1):
        raise SettingError(f"num_beams is {beams!r}: only one beam is searched; give --gen_kwargs num_beams=1.")
    if gen_kwargs.get("max_new_tokens") is not None:
        asked["max_new_tokens"] = gen_kwargs["max_new_tokens"]
    if until := gen_kwargs.get("until"):
        stops = [until] if isinstance(until, str) else list(until)
        asked["stop"] = [text for text in stops if text]
    temperature = gen_kwargs.get("temperature")
    if gen_kwargs.get("do_sample") and temperature != 0:
        asked["do_sample"] = True
        asked |= {name: gen_kwargs[name] for name in ("temperature", "top_p", "top_k") if gen_kwargs.get(name)}
    return parse_settings(Task.ASK, {**asked, **own})


def given_images(visuals: Any) -> list[Image.Image]:
    """The images of a document.

    Raises:
        PromptError: something else, such as a video or a sound, is among them.
    """
    found = []
    for one in [] if visuals is None else visuals if isinstance(visuals, list | tuple) else [visuals]:
        if not isinstance(one, Image.Image):
            raise PromptError(f"the task gives {one!r:.80}: images are read, no video and no sound.")
        found.append(one)
    return found


def inputs_of(messages: Sequence[Mapping[str, Any]]) -> list[str | Image.Image]:
    """Texts and images of a conversation in their order; there are no roles in a prompt.

    Args:
        messages: the messages of lmms-eval's `doc_to_messages`: a role, and a list of contents with a type.

    Raises:
        PromptError: there is a video or a sound.
    """
    found: list[str | Image.Image] = []
    for message in messages:
        for content in message["content"]:
            if content["type"] == "text":
                if content["text"].strip():
                    found.append(content["text"])
            elif content["type"] == "image":
                found += given_images(content["url"])
            else:
                raise PromptError(f"the task gives a {content['type']}: texts and images are read.")
    return found


@dataclass(frozen=True)
class DrawThenAnswer:
    """The two steps of a task that has an image drawn before the answer.

    Attributes:
        drawing: the text by which the auxiliary image is drawn.
        question: the text that is answered with all images.
    """

    drawing: str
    question: str


def draw_then_answer(context: str) -> DrawThenAnswer:
    """The two texts in the context of a task of the type `generate_visual_cot`.

    Raises:
        PromptError: they are not there.
    """
    found = _COT.search(context)
    if found is None or not all(text.strip() for text in found.groups()):
        raise PromptError(
            f"the context {context!r:.80} has no [GEN_PROMPT]…[/GEN_PROMPT] and [QUESTION]…[/QUESTION]: the task "
            "does not draw before it answers."
        )
    return DrawThenAnswer(found[1].strip(), found[2].strip())


def drawn_answer(thinking: str, image: Path) -> str:
    """A drawn image as lmms-eval's tasks read it: JSON with a text and the files of images."""
    return json.dumps({"text": thinking, "images": [str(image)]}, ensure_ascii=False)


def image_file(folder: Path, task: str, split: str, doc_id: Any, repeat: int) -> Path:
    """The file of the image that is drawn for a document."""
    parts = [re.sub(r"[^\w.-]", "_", str(part)) for part in (task, split, doc_id)]
    return folder / parts[0] / f"{parts[1]}-{parts[2]}{f'-{repeat}' if repeat else ''}.png"
