"""Every setting of generating images and text: name, range, default, what it does and when to change it.

The fields of `GenerationSettings` are the settings; the data beside each is what validates it here and what `--help`,
the README and every other interface are made from. Names and defaults are the published ones; `eta`, which the
published sampler has not, is 0.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeGuard

from bagel_mot.errors import SettingError
from bagel_mot.task import Task

TASKS = tuple(Task)
DRAWING = tuple(task for task in Task if task.draws)
MAX_SEED = 2**63 - 1
_MAX_SIDE = 10**9  # pixels; far beyond any model, and small enough for arithmetic and messages
_SHOWN = 60  # characters of a wrong value in a message


@dataclass(frozen=True)
class Setting:
    """The facts of one setting.

    Attributes:
        name: the field's name.
        kind: "float", "int", "bool", "choice", "interval" (two floats), "size" (width, height) or "texts".
        about: a sentence on its effect.
        when: a sentence on when to change it.
        tasks: the tasks that take it.
        low, high: the range of a number, or of both ends of an interval.
        above: whether `low` itself is excluded.
        choices: the values of a choice.
        optional: whether None is a value.
        evaluation: whether it serves evaluations alone, so that pages and nodes leave it out.
    """

    name: str
    kind: str
    about: str
    when: str
    tasks: tuple[Task, ...] = TASKS
    low: float | None = None
    high: float | None = None
    above: bool = False
    choices: tuple[str, ...] = ()
    optional: bool = False
    evaluation: bool = False

    @property
    def range(self) -> str:
        """The accepted values, in words."""
        if self.kind == "bool":
            return "true or false"
        if self.kind == "choice":
            return ", ".join(self.choices[:-1]) + " or " + self.choices[-1]
        if self.kind == "texts":
            return "a text, or several"
        if self.kind == "size":
            return "width and height in pixels, such as 1024×768"
        low = "" if self.low is None else f"more than {self.low:g}" if self.above else f"{self.low:g}"
        if self.high == MAX_SEED:
            numbers = f"{low} to 2⁶³ − 1"
        elif self.high is None:
            numbers = low if self.above else f"{low} or more"
        else:
            numbers = f"{low}, at most {self.high:g}" if self.above else f"{low} to {self.high:g}"
        return f"two numbers, low < high, from {numbers}" if self.kind == "interval" else numbers

    def default(self, task: Task) -> Any:
        """The official default for a task."""
        return TASK_DEFAULTS[task].get(self.name, _DEFAULTS[self.name])

    def default_text(self, task: Task) -> str:
        """The official default as one would type it."""
        value = self.default(task)
        if value is None:
            return "none"
        if isinstance(value, bool):
            return "true" if value else "false"
        if self.kind == "interval":
            return " ".join(f"{end:g}" for end in value)
        if self.kind == "texts":
            return " ".join(value) or "none"
        return f"{value:g}" if isinstance(value, float) else str(value)

    def parse(self, value: Any) -> Any:
        """The value in its proper type.

        Raises:
            SettingError: it is of another type, or out of range.
        """
        if value is None and self.optional:
            return None
        parsed = _PARSERS[self.kind](self, value)
        if parsed is None:
            whole = "a whole number, " if self.kind == "int" and not _is_whole(value) else ""
            wanted = whole + self.range + (" or none" if self.optional else "")
            raise SettingError(f"{self.name} is {_shown(value)}: it must be {wanted}.")
        return parsed

    def _within(self, number: float) -> bool:
        """Compares before anything is converted: a whole number of any length may come. NaN is not within."""
        above_low = self.low is None or (number > self.low if self.above else number >= self.low)
        return bool(above_low and (self.high is None or number <= self.high))


def _shown(value: Any) -> str:
    """A value as one would type it; of a long one the beginning."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write out whole numbers of thousands of digits
        return "a whole number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a number of any kind, numpy's among them."""
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _parse_int(setting: Setting, value: Any) -> int | None:
    whole = _is_whole(value) or (_is_number(value) and float(value).is_integer())
    return int(value) if whole and setting._within(int(value)) else None


def _parse_interval(setting: Setting, value: Any) -> tuple[float, float] | None:
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        return None
    if not all(_is_number(end) and setting._within(end) for end in value) or value[0] >= value[1]:
        return None
    return float(value[0]), float(value[1])


def _parse_size(setting: Setting, value: Any) -> tuple[int, int] | None:
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d{1,9})\s*[x×*,]\s*(\d{1,9})\s*", value)
        value = (int(match[1]), int(match[2])) if match else None
    if not isinstance(value, Sequence) or len(value) != 2:
        return None
    if not all(_is_whole(v) and abs(v) < _MAX_SIDE for v in value):
        return None
    return int(value[0]), int(value[1])  # whether the model can draw that size is the model's to say (SizeError)


def _parse_texts(setting: Setting, value: Any) -> tuple[str, ...] | None:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) and text for text in texts):
        return None
    return tuple(texts)


_PARSERS: dict[str, Callable[[Setting, Any], Any]] = {
    "float": lambda setting, value: float(value) if _is_number(value) and setting._within(value) else None,
    "int": _parse_int,
    "bool": lambda setting, value: value if isinstance(value, bool) else None,
    "choice": lambda setting, value: value if isinstance(value, str) and value in setting.choices else None,
    "interval": _parse_interval,
    "size": _parse_size,
    "texts": _parse_texts,
}


def _setting(default: Any, kind: str, about: str, when: str, **facts: Any) -> Any:
    return dataclasses.field(default=default, metadata={"kind": kind, "about": about, "when": when, **facts})


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """The settings of one request, validated: make it with `resolve`. `SETTINGS` describes the fields."""

    # fmt: off
    cfg_text_scale: float = _setting(
        4.0, "float", tasks=DRAWING, low=0, high=20,
        about="How strongly the picture follows the text: guidance away from the picture without it; 1 or less is off.",
        when="Raise it when the prompt is ignored; lower it when colours and contrasts get harsh.")
    cfg_image_scale: float = _setting(
        1.0, "float", tasks=DRAWING, low=0, high=20,
        about="How strongly the picture follows the given pictures: guidance away from the picture without them; 1 or "
        "less is off.",
        when="Raise it when an edit changes too much; lower it when it changes too little.")
    cfg_interval: tuple[float, float] = _setting(
        (0.4, 1.0), "interval", tasks=DRAWING, low=0, high=1,
        about="The times at which guidance is on, from low (excluded) to high, where 1 is pure noise and 0 the "
        "picture.",
        when="A higher low end is faster and gives details more freedom; edits keep the whole interval.")
    cfg_renorm_type: str = _setting(
        "global", "choice", tasks=DRAWING, choices=("global", "channel", "text_channel"),
        about="The length that the guided velocity is restored to: that of the whole picture, of each token, "
        "or of each token after text guidance alone.",
        when="Edits use text_channel; try global or channel when a picture looks blurry.")
    cfg_renorm_min: float = _setting(
        0.0, "float", tasks=DRAWING, low=0, high=1,
        about="The smallest factor by which the guided velocity may be shortened; 1 switches that off.",
        when="Raise it when pictures look pale or blurry.")
    num_timesteps: int = _setting(
        50, "int", tasks=DRAWING, low=2, high=1000,
        about="The number of times from noise to picture; N times make N − 1 steps.",
        when="Lower it for speed (25 is often enough); raise it for fine detail.")
    timestep_shift: float = _setting(
        3.0, "float", tasks=DRAWING, low=0.01, high=100,
        about="Spends more steps near pure noise the higher it is; 1 spaces them evenly.",
        when="Raise it when the layout is wrong; lower it when details are.")
    eta: float = _setting(
        0.0, "float", tasks=DRAWING, low=0, high=1,
        about="How much of its noise each step replaces by fresh noise: none at 0, the published way, and all "
        "of it at 1.",
        when="Raise it when things are missing, doubled or misplaced: later steps then mend what earlier ones "
        "got wrong.")
    enable_taylorseer: bool = _setting(
        False, "bool", tasks=DRAWING,
        about="Extrapolates two of three late steps instead of computing them; `eta` then acts in the first "
        "three steps "
        "alone.",
        when="Switch it on for about twice the speed at some loss of quality; it needs 20 timesteps or more to "
        "gain much.")
    size: tuple[int, int] | None = _setting(
        None, "size", tasks=DRAWING, optional=True,
        about="Width and height of the picture; by default the checkpoint's own, for an edit that of its last picture.",
        when="Both must be multiples of the latent stride (16 in the official model).")
    think: bool = _setting(
        False, "bool",
        about="Lets the model write down its reasoning before it draws or answers.",
        when="Switch it on for prompts that need knowledge or planning; it costs the time of writing.")
    max_think_tokens: int = _setting(
        1024, "int", tasks=DRAWING, low=1, high=32768,
        about="The maximum number of tokens of thinking before a picture.",
        when="Lower it to bound the time; raise it when thoughts break off.")
    max_new_tokens: int = _setting(
        1024, "int", tasks=(Task.ASK,), low=1, high=32768,
        about="The maximum number of tokens of an answer, thinking included.",
        when="Lower it to bound the time; raise it when answers break off.")
    do_sample: bool = _setting(
        False, "bool",
        about="Draws each token at random by its probability instead of taking the likeliest.",
        when="Switch it on for variety, or when text runs in circles.")
    temperature: float = _setting(
        0.3, "float", low=0, high=10,
        about="With do_sample: flattens (above 1) or sharpens (below 1) the probabilities; 0 takes the "
        "likeliest token.",
        when="Raise it for more variety.")
    top_k: int = _setting(
        0, "int", low=0,
        about="With do_sample: chooses among the k likeliest tokens only; 0 is off.",
        when="Set it (20 to 100) when sampled text derails.")
    top_p: float = _setting(
        1.0, "float", low=0, high=1, above=True,
        about="With do_sample: chooses among the likeliest tokens that together have this probability; 1 is off.",
        when="Set it (0.8 to 0.95) when sampled text derails.")
    repetition_penalty: float = _setting(
        1.0, "float", low=0, high=10, above=True,
        about="Makes tokens that the text has already used less likely; 1 is off.",
        when="Raise it slightly (1.05 to 1.2) when text repeats itself.")
    stop: tuple[str, ...] = _setting(
        (), "texts", tasks=(Task.ASK,),
        about="Ends the answer before the first of these texts to appear.",
        when="Set it when an answer has a known end, such as a line break.")
    vit_min_size: int | None = _setting(
        None, "int", tasks=(Task.EDIT, Task.ASK), low=1, optional=True, evaluation=True,
        about="The pixels that the short side of a given picture is enlarged to before the model looks at it; the "
        "picture is then resized once, and not for drawing first.",
        when="Set it to 378 to see pictures as the published evaluations of answers and edits do.")
    seed: int | None = _setting(
        None, "int", low=0, high=MAX_SEED, optional=True,
        about="The seed of all randomness; the same seed gives the same result, whatever else runs beside it.",
        when="Fix it to compare settings; leave it for a new result each time (the one drawn is reported).")
    # fmt: on

    def as_dict(self, task: Task) -> dict[str, Any]:
        """The settings that a task takes, by name."""
        return {name: getattr(self, name) for name, setting in SETTINGS.items() if task in setting.tasks}


SETTINGS: dict[str, Setting] = {
    field.name: Setting(field.name, **field.metadata) for field in dataclasses.fields(GenerationSettings)
}
_DEFAULTS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(GenerationSettings)}
SETTING_GROUPS: dict[str, tuple[str, ...]] = {
    "size": ("size", "vit_min_size"),
    "thinking": ("think", "max_think_tokens"),
    "writing": (
        "max_new_tokens", "stop", "repetition_penalty", "do_sample", "temperature", "top_k", "top_p",
    ),
    "steps": ("num_timesteps", "timestep_shift", "eta", "enable_taylorseer"),
    "guidance": ("cfg_text_scale", "cfg_image_scale", "cfg_interval", "cfg_renorm_type", "cfg_renorm_min"),
    "seed": ("seed",),
}  # fmt: skip
"""The settings by what they are about, in the order in which an interface shows them."""
TASK_DEFAULTS: dict[Task, dict[str, Any]] = {
    Task.GENERATE: {},
    Task.EDIT: {"cfg_image_scale": 2.0, "cfg_interval": (0.0, 1.0), "cfg_renorm_type": "text_channel"},
    Task.ASK: {},
}


OTHER_NAMES = {
    **dict.fromkeys(("width", "height", "resolution", "image_size", "image_shape", "image_shapes"), "size"),
    **dict.fromkeys(("steps", "num_inference_steps", "sampling_steps"), "num_timesteps"),
    **dict.fromkeys(("guidance_scale", "cfg", "cfg_scale"), "cfg_text_scale"),
    "image_guidance_scale": "cfg_image_scale",
    **dict.fromkeys(("max_tokens", "max_length", "max_completion_tokens"), "max_new_tokens"),
    "generator": "seed",
}
"""Names that other libraries have for some settings; messages name ours."""


def task_settings(task: Task) -> list[Setting]:
    """The settings that a task takes, in the order to show them."""
    return [setting for setting in SETTINGS.values() if task in setting.tasks]


def parse_settings(task: Task, values: Mapping[str, Any]) -> dict[str, Any]:
    """Validates settings of a task given by name.

    Raises:
        SettingError: a name is unknown or belongs to another task, or a value is of the wrong type or out of range.
    """
    parsed = {}
    for name, value in values.items():
        setting = SETTINGS.get(name)
        if setting is None:
            # No name is close to one that is much longer, and comparing would take long.
            close = difflib.get_close_matches(name[:_SHOWN], SETTINGS, n=1, cutoff=0.5)
            if meant := OTHER_NAMES.get(name) or (close[0] if close else None):
                hint = f"did you mean {meant}{', such as size=(64, 64)' if meant == 'size' else ''}?"
            else:
                hint = f"there are {', '.join(s.name for s in task_settings(task))}."
            raise SettingError(f"there is no setting {_shown(name)}: {hint}")
        if task not in setting.tasks:
            of = " and ".join(repr(one.value) for one in setting.tasks)
            raise SettingError(f"{name} is no setting of {str(task)!r}: only of {of}.")
        parsed[name] = setting.parse(value)
    return parsed


def resolve(task: Task, values: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> GenerationSettings:
    """The settings of a request.

    Args:
        task: the task; its official defaults apply.
        values: the values that the user gave, by name.
        defaults: the checkpoint's own defaults, which go before the official ones.

    Raises:
        SettingError: see `parse_settings`.
    """
    return GenerationSettings(**{**TASK_DEFAULTS[task], **(defaults or {}), **parse_settings(task, values)})


def per_request(name: str, value: Any) -> list[Any] | None:
    """The values of one setting for each request of a batch, if `value` is a list of such; None if it is one value for
    all.

    A list of two numbers is one size or interval, and a list of texts one set of stop texts; lists of those are one for
    each.
    """
    if not isinstance(value, list):
        return None
    kind = SETTINGS[name].kind if name in SETTINGS else ""
    if kind in ("size", "interval") and value and all(_is_number(v) for v in value):
        return None
    if kind == "texts" and all(isinstance(v, str) for v in value):
        return None
    return value
