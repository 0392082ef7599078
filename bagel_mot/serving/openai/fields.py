"""The generation settings as fields of HTTP bodies, made from the settings' own metadata; and OpenAI's other fields."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bagel_mot.errors import SettingError
from bagel_mot.inference.settings import SETTINGS, Setting, parse_settings
from bagel_mot.serving.openai.errors import ApiError
from bagel_mot.task import Task

# OpenAI's fields without effect here, on which no client relies. They are ignored, and the answer says so; a strict
# server takes those of NEUTRAL only with values that ask for nothing.
HARMLESS = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prediction",
    "verbosity",
    "frequency_penalty",
    "presence_penalty",
    "quality",
    "style",
    "moderation",
    "input_fidelity",
)
# OpenAI's fields that a strict server refuses, or any, with the values that ask for nothing and so are accepted.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "prediction": (),
    "audio": (),
    "web_search_options": (),
    "quality": ("auto", "standard"),
    "style": (),
    "background": ("auto", "opaque"),
    "moderation": ("auto", "low"),
    "input_fidelity": (),
    "mask": (),
    "negative_prompt": ("",),
}
_INSTEAD = {
    "quality": "num_timesteps says how finely it draws",
    "mask": "say in the prompt what is to change",
    "negative_prompt": "say in the prompt what is to be there",
    "frequency_penalty": "repetition_penalty does about the same",
    "presence_penalty": "repetition_penalty does about the same",
    "reasoning_effort": "think switches thinking on",
}
_NO_THINKING = ("none", "minimal")  # values of reasoning_effort
# What -1 means where clients send it: not given, or off.
_MINUS_ONE = {"seed": None, "max_new_tokens": None, "max_think_tokens": None, "top_k": 0}


@dataclass(frozen=True)
class Extra:
    """The fields that a body has besides its own, read.

    Attributes:
        settings: the generation settings, validated.
        ignored: names of fields that were given and have no effect.
    """

    settings: dict[str, Any]
    ignored: tuple[str, ...]


def parse_extra(extra: Mapping[str, Any], task: Task, strict: bool = False) -> Extra:
    """Reads the fields that a body has besides its own.

    Raises:
        ApiError: a field is unknown, belongs to another task, or has a value that is not offered.
    """
    settings: dict[str, Any] = {}
    ignored = []
    for name, value in extra.items():
        if value is None or (name in NEUTRAL and value in NEUTRAL[name]):
            continue
        if name == "reasoning_effort" and not strict and isinstance(value, str):
            settings.setdefault("think", value not in _NO_THINKING)
        elif name in HARMLESS and not (strict and name in NEUTRAL):
            ignored.append(name)
        elif name in NEUTRAL:
            hint = _INSTEAD.get(name, "leave it out")
            raise ApiError(400, f"this server has no {name}: {hint}.", param=name)
        else:
            settings[name] = _parsed(name, value, task)
    return Extra({name: value for name, value in settings.items() if value is not None}, tuple(ignored))


def _parsed(name: str, value: Any, task: Task) -> Any:
    try:
        setting = SETTINGS.get(name)
        if name in _MINUS_ONE and value == -1 and setting is not None and task in setting.tasks:
            return _MINUS_ONE[name]
        return parse_settings(task, {name: value})[name]
    except SettingError as error:
        raise ApiError(400, str(error), param=name) from error


def from_form(name: str, values: list[str]) -> Any:
    """Converts a form field, which is text, for the setting of that name."""
    kind = SETTINGS[name].kind if name in SETTINGS else "text"
    if kind == "texts":
        return values
    if kind == "interval":
        parts = values if len(values) > 1 else values[0].strip("[]() ").replace(",", " ").split()
        return [_number(part) for part in parts]
    value = values[-1]
    if kind == "bool":
        return {"true": True, "false": False, "1": True, "0": False}.get(value.lower(), value)
    return _number(value) if kind in ("float", "int") else value


def _number(text: str) -> Any:
    """A number in JSON's syntax; any other text as it is, for the setting to refuse."""
    try:
        number = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return number if isinstance(number, int | float) and not isinstance(number, bool) else text


def setting_schemas(*tasks: Task) -> dict[str, dict[str, Any]]:
    """The JSON schema of each setting that one of the tasks takes."""
    found = {}
    for setting in SETTINGS.values():
        own = [task for task in tasks if task in setting.tasks]
        if own:
            about = f"{setting.about} {setting.when} Default: {setting.default_text(own[0])}, or the checkpoint's own."
            found[setting.name] = {"anyOf": [_schema(setting), {"type": "null"}], "description": about}
    return found


def with_settings(*tasks: Task) -> Callable[[dict[str, Any]], None]:
    """A value for `json_schema_extra` that adds the settings of these tasks to a body's own fields."""

    def add(schema: dict[str, Any]) -> None:
        schema["properties"] = {**setting_schemas(*tasks), **schema["properties"]}

    return add


def _schema(setting: Setting) -> dict[str, Any]:
    if setting.kind == "bool":
        return {"type": "boolean"}
    if setting.kind == "choice":
        return {"type": "string", "enum": list(setting.choices)}
    if setting.kind == "texts":
        return {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    if setting.kind == "size":
        return {"type": "string", "pattern": r"^\d{1,4}x\d{1,4}$", "examples": ["1024x768"]}
    number: dict[str, Any] = {"type": "integer" if setting.kind == "int" else "number"}
    if setting.low is not None:
        number["exclusiveMinimum" if setting.above else "minimum"] = setting.low
    if setting.high is not None:
        number["maximum"] = setting.high
    if setting.kind == "interval":
        return {"type": "array", "items": number, "minItems": 2, "maxItems": 2}
    return number
