"""Widgets made from the settings' own metadata, conversion of their values, and the nodes that hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bagel_mot.errors import SettingError
from bagel_mot.inference.settings import SETTINGS, Setting, parse_settings, task_settings
from bagel_mot.task import Task

DRAWING_SETTINGS = "BAGEL_DRAWING_SETTINGS"
ANSWER_SETTINGS = "BAGEL_ANSWER_SETTINGS"

# ComfyUI's front end is JavaScript: larger whole numbers lose their last digits on the way.
LARGEST_INT = 2**53 - 1
LARGEST_SIDE = 16384  # pixels, as in ComfyUI's own nodes
FLOAT_STEP = 0.01

Widget = tuple[Any, dict[str, Any]]

# Settings without a widget here: the seed is beside the prompt, and the choice of node says whether to think.
_ELSEWHERE = ("seed", "think")


def widgets_of(setting: Setting, task: Task) -> dict[str, Widget]:
    """The widgets of one setting, by name: two for an interval and a size, else one.

    Args:
        setting: a setting of any kind.
        task: the task whose official defaults apply.
    """
    about = f"{setting.about} {setting.when}"
    default = setting.default(task)
    options: dict[str, Any] = {"default": default, "tooltip": about}
    if setting.kind == "bool":
        return {setting.name: ("BOOLEAN", options)}
    if setting.kind == "choice":
        return {setting.name: (list(setting.choices), options)}
    if setting.kind == "texts":
        options |= {"default": "\n".join(default), "multiline": True}
        options["tooltip"] = f"{about} One a line; \\n is a line break."
        return {setting.name: ("STRING", options)}
    if setting.kind == "size":
        options = {"default": 0, "min": 0, "max": LARGEST_SIDE, "step": 8, "tooltip": f"{about} Both 0: by default."}
        return {side: ("INT", dict(options)) for side in ("width", "height")}
    if setting.kind == "interval":
        ends = zip(("low", "high"), default, strict=True)
        return {f"{setting.name}_{end}": ("FLOAT", _number(setting, value, about)) for end, value in ends}
    kind = "INT" if setting.kind == "int" else "FLOAT"
    return {setting.name: (kind, _number(setting, 0 if default is None else default, about))}


def _number(setting: Setting, default: float, about: str) -> dict[str, Any]:
    whole = setting.kind == "int"
    step = 1 if whole else FLOAT_STEP
    low = 0 if setting.low is None else setting.low
    options = {
        "default": default,
        "min": low + step if setting.above else low,
        "max": LARGEST_INT if setting.high is None else min(setting.high, LARGEST_INT),
        "step": step,
        "tooltip": about,
    }
    return options if whole else {**options, "round": False}  # rounded to the step, a typed value would change


def setting_value(setting: Setting, widgets: Mapping[str, Any]) -> Any:
    """The value of a setting from the values of its widgets."""
    if setting.kind == "texts":
        return tuple(line.replace("\\n", "\n") for line in widgets[setting.name].splitlines() if line)
    if setting.kind == "size":
        size = widgets["width"], widgets["height"]
        if any(size) and not all(size):
            raise SettingError(f"width is {size[0]} and height is {size[1]}: give both, or 0 for both.")
        return size if any(size) else None
    if setting.kind == "interval":
        return widgets[f"{setting.name}_low"], widgets[f"{setting.name}_high"]
    return widgets[setting.name]


def seed_widget(control: bool | str = True) -> Widget:
    """The seed, with ComfyUI's control of what becomes of it after each run.

    Args:
        control: the control's first value; with True ComfyUI takes "randomize". Texts are the likeliest ones unless
            do_sample is on, so that another seed would repeat them.
    """
    kind, options = widgets_of(SETTINGS["seed"], Task.GENERATE)["seed"]
    about = "The same seed gives the same result. The control below says whether it changes after each run."
    return kind, {**options, "tooltip": about, "control_after_generate": control}


class _Settings:
    """A node with a widget for each setting of a task."""

    TASK: Task
    CATEGORY = "BAGEL/settings"
    FUNCTION = "collect"
    RETURN_NAMES = ("settings",)
    OUTPUT_TOOLTIPS = ("The settings, for the nodes that draw or write.",)

    @classmethod
    def settings(cls) -> list[Setting]:
        """The settings that have widgets here."""
        shown = [setting for setting in task_settings(cls.TASK) if not setting.evaluation]
        return [setting for setting in shown if setting.name not in _ELSEWHERE]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        widgets: dict[str, Widget] = {}
        for setting in cls.settings():
            widgets |= widgets_of(setting, cls.TASK)
        return {"required": widgets}

    def collect(self, **widgets: Any) -> tuple[dict[str, Any]]:
        """The values of the widgets as settings.

        Raises:
            SettingError: a value is out of range.
        """
        values = {setting.name: setting_value(setting, widgets) for setting in self.settings()}
        return (parse_settings(self.TASK, values),)


class _DrawingSettings(_Settings):
    RETURN_TYPES = (DRAWING_SETTINGS,)

    @classmethod
    def VALIDATE_INPUTS(
        cls,
        cfg_interval_low: float | None = None,
        cfg_interval_high: float | None = None,
        width: int | None = None,
        height: int | None = None,
    ) -> bool | str:
        """Checks what ComfyUI cannot by the range of one widget. A value from another node is None."""
        try:
            if cfg_interval_low is not None and cfg_interval_high is not None:
                parse_settings(cls.TASK, {"cfg_interval": (cfg_interval_low, cfg_interval_high)})
            if width is not None and height is not None:
                setting_value(SETTINGS["size"], {"width": width, "height": height})
        except SettingError as error:
            return str(error)
        return True


class BagelDrawingSettings(_DrawingSettings):
    """Settings for Text to Image, Think and Draw, and sessions without an image."""

    DESCRIPTION = "Settings of drawing. All of them apply as shown; without this node the checkpoint's own apply."
    TASK = Task.GENERATE


class BagelEditingSettings(_DrawingSettings):
    """The same settings with the defaults of editing: for Edit, and wherever there is an input image."""

    DESCRIPTION = "Settings of editing. All of them apply as shown; without this node the checkpoint's own apply."
    TASK = Task.EDIT


class BagelAnswerSettings(_Settings):
    """Settings for Ask, Think and Answer, and Session: Answer."""

    DESCRIPTION = "Settings of answers. All of them apply as shown; without this node the checkpoint's own apply."
    TASK = Task.ASK
    RETURN_TYPES = (ANSWER_SETTINGS,)
