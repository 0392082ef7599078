"""One control for each setting, made from what the settings say of themselves."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from bagel_mot.app.context import QUICK, Room
from bagel_mot.app.presets import PRESETS
from bagel_mot.app.sizes import default_size, shown, sizes
from bagel_mot.app.texts.language import LANGUAGES, Language, Spoken, say, text
from bagel_mot.app.texts.settings import SETTING_TEXTS
from bagel_mot.inference.settings import SETTINGS, Setting, Task, parse_settings, resolve, task_settings

_SLIDER_SPAN = 1000  # the widest range that a slider is any good for
_AUTOMATIC = "auto"
TOKEN_LIMITS = ("max_think_tokens", "max_new_tokens")


@dataclass(frozen=True)
class Control:
    """A setting on the page.

    Attributes:
        components: one, or two for the ends of an interval.
        read: from their values to the setting's value, which still has to be checked.
        show: the other way.
    """

    components: tuple[Any, ...]
    read: Callable[..., Any]
    show: Callable[[Any], tuple[Any, ...]]


class Controls:
    """The settings of one part of the page. Those left at their defaults are not sent: the task's own ones apply.

    Attributes:
        defaults: of this checkpoint, by name.
        components: in the order in which `settings` takes their values.
    """

    def __init__(self, room: Room, part: str, *tasks: Task) -> None:
        """
        Args:
            part: of the page, for the elements' ids.
            tasks: whose settings there are; the defaults are those of the first that has a setting.
        """
        self._room, self._part, self._tasks = room, part, tasks
        self._service, self._labels = room.service, room.labels
        service = room.service
        self.defaults: dict[str, Any] = {}
        for task in reversed(self._tasks):
            self.defaults |= resolve(task, {}, service.bagel.defaults.of(task)).as_dict(task)
        for limit in TOKEN_LIMITS:
            if limit in self.defaults:
                self.defaults[limit] = min(self.defaults[limit], service.limits.new_tokens)
        if "size" in self.defaults:
            self.defaults["size"] = None  # whatever the checkpoint's own is, or that of the last image
        self.controls: dict[str, Control] = {}

    @property
    def task(self) -> Task:
        """The first one."""
        return self._tasks[0]

    @property
    def names(self) -> list[str]:
        """Of all settings that belong here, in the order to show them."""
        return [s.name for s in SETTINGS.values() if any(s in task_settings(task) for task in self._tasks)]

    @property
    def components(self) -> list[Any]:
        return [component for control in self.controls.values() for component in control.components]

    # ---------------------------------------------------------------------------------------------------- building

    def build(self, *names: str) -> None:
        """Puts controls where the page is being built; without names all that are not there yet."""
        for name in names or [name for name in self.names if name not in self.controls]:
            self.controls[name] = self._control(SETTINGS[name])

    def build_seed_buttons(self) -> None:
        """Buttons for the seed: a new number, the last one, none."""
        (seed,) = self.controls["seed"].components
        with gr.Row(elem_classes="bagel-small"):
            dice = self._labels.make(gr.Button, value=say("dice"), size="sm", elem_id=f"{self._part}-dice")
            again = self._labels.make(gr.Button, value=say("last_seed"), size="sm", elem_id=f"{self._part}-last-seed")
            none = self._labels.make(gr.Button, value=say("no_seed"), size="sm", elem_id=f"{self._part}-no-seed")

        def reuse(request: gr.Request) -> Any:
            found = self._room.desks.of(request).seeds.get(self._part)
            return gr.skip() if found is None else str(found)

        dice.click(lambda: str(secrets.randbits(32)), None, seed, **QUICK)
        again.click(reuse, None, seed, **QUICK)
        none.click(lambda: "", None, seed, **QUICK)

    def build_presets(self) -> None:
        """Buttons for the presets of the first task, and the one that resets everything."""
        clicks = []
        with gr.Row(elem_classes="bagel-small"):
            for name, change in PRESETS[self._tasks[0]].items():
                button = self._labels.make(gr.Button, value=say(name), size="sm", elem_id=f"{self._part}-{name}")
                clicks.append((button, change(self.defaults)))
            reset = self._labels.make(gr.Button, value=say("reset"), size="sm", elem_id=f"{self._part}-reset")
        self._presets, self._reset = clicks, reset

    def connect(self) -> None:
        """What the preset buttons do: to be called once all controls are there."""
        for button, settings in self._presets:
            settings = self.within_limits(settings)
            outputs = [component for name in settings for component in self.controls[name].components]
            values = [value for name, setting in settings.items() for value in self.controls[name].show(setting)]
            button.click(_giving(values), None, outputs, **QUICK)
        self._reset.click(lambda: self.updates({}), None, self.components, **QUICK)

    def within_limits(self, settings: dict[str, Any]) -> dict[str, Any]:
        """With no more steps than the service gives to one request."""
        steps = settings.get("num_timesteps")
        return settings if steps is None else {**settings, "num_timesteps": min(steps, self._service.limits.timesteps)}

    # ----------------------------------------------------------------------------------------------- values and back

    def settings(self, values: Sequence[Any], task: Task | None = None) -> dict[str, Any]:
        """The settings that differ from the defaults, of values in the order of `components`.

        Args:
            task: leaves out those that it does not take.

        Raises:
            SettingError: a value is out of range.
        """
        task_of = task or self._tasks[0]
        left = list(values)
        changed = {}
        for name, control in self.controls.items():
            own, left = left[: len(control.components)], left[len(control.components) :]
            if task_of not in SETTINGS[name].tasks:
                continue
            value = parse_settings(task_of, {name: control.read(*own)})[name]
            if value != self.defaults[name]:
                changed[name] = value
        return changed

    def updates(self, settings: Mapping[str, Any]) -> list[Any]:
        """Values for `components`: these settings, and the defaults for all others."""
        return [
            value
            for name, control in self.controls.items()
            for value in control.show(settings.get(name, self.defaults[name]))
        ]

    # ------------------------------------------------------------------------------------------------ kinds of controls

    def _control(self, setting: Setting) -> Control:
        make = {
            "float": self._number,
            "int": self._number,
            "bool": self._checkbox,
            "choice": self._choice,
            "interval": self._interval,
            "size": self._size,
            "texts": self._texts,
        }[setting.kind]
        return self._seed(setting) if setting.name == "seed" else make(setting)

    def _properties(self, setting: Setting) -> dict[str, Any]:
        return {
            "label": Spoken(lambda language: label_of(setting, language)),
            "info": Spoken(lambda language: info_of(setting, language, self._range(setting))),
            "elem_id": f"{self._part}-{setting.name.replace('_', '-')}",
        }

    def _bounds(self, setting: Setting) -> tuple[float | None, float | None]:
        """Of a number: those of the setting, or narrower ones of the service."""
        if setting.name == "num_timesteps":
            return setting.low, self._service.limits.timesteps
        if setting.name in TOKEN_LIMITS:
            return setting.low, self._service.limits.new_tokens
        return setting.low, setting.high

    def _range(self, setting: Setting) -> str:
        """In signs that both languages share; "" where there is nothing to say."""
        low, high = self._bounds(setting)
        if low is None or setting.name == "seed":
            return ""
        if high is None:
            return f"≥ {low:g}"
        return f"{'> ' if setting.above else ''}{low:g} – {high:g}"

    def _one(self, component: Any, setting: Setting) -> Control:
        """A component whose value is the setting's; an emptied field is the default."""
        default = self.defaults[setting.name]
        return Control((component,), lambda value: default if value is None else value, lambda value: (value,))

    def _number(self, setting: Setting) -> Control:
        low, high = self._bounds(setting)
        whole = setting.kind == "int"
        own = {**self._properties(setting), "value": self.defaults[setting.name]}
        if low is None or high is None or high - low > _SLIDER_SPAN:
            return self._one(self._labels.make(gr.Number, precision=0 if whole else None, **own), setting)
        step = 1.0 if whole else 0.01
        least = low + step if setting.above else low
        return self._one(self._labels.make(gr.Slider, minimum=least, maximum=high, step=step, **own), setting)

    def _checkbox(self, setting: Setting) -> Control:
        value = self.defaults[setting.name]
        return self._one(self._labels.make(gr.Checkbox, value=value, **self._properties(setting)), setting)

    def _choice(self, setting: Setting) -> Control:
        own = {**self._properties(setting), "value": self.defaults[setting.name]}
        return self._one(self._labels.make(gr.Dropdown, choices=list(setting.choices), **own), setting)

    def _interval(self, setting: Setting) -> Control:
        def end(key: str) -> Spoken:
            return Spoken(lambda language: text(language, key, label=label_of(setting, language)))

        low, high = self.defaults[setting.name]
        own = self._properties(setting)
        bounds: dict[str, Any] = {"minimum": setting.low, "maximum": setting.high, "step": 0.01}
        first = self._labels.make(gr.Slider, value=low, **{**own, **bounds, "label": end("interval_low")})
        own = {"label": end("interval_high"), "elem_id": f"{own['elem_id']}-to"}
        second = self._labels.make(gr.Slider, value=high, **own, **bounds)
        default = self.defaults[setting.name]

        def read(low: float | None, high: float | None) -> tuple[float, float]:
            return default[0] if low is None else low, default[1] if high is None else high

        return Control((first, second), read, lambda value: tuple(value))

    def _size(self, setting: Setting) -> Control:
        own_size = shown(default_size(self._service.bagel))
        key = "size_default" if self._tasks == ("generate",) else "size_picture"
        key = "size_chat" if len(self._tasks) > 1 else key
        found = [(f"{ratio} · {shown(size)}", shown(size)) for ratio, size in sizes(self._service.bagel).items()]

        def choices(language: Language) -> list[tuple[str, str]]:
            return [(text(language, key, size=own_size), _AUTOMATIC), *found]

        own = {**self._properties(setting), "choices": Spoken(choices), "value": _AUTOMATIC}
        component = self._labels.make(gr.Dropdown, allow_custom_value=True, **own)

        # A field in which one can type may give back the words of a choice instead of its value.
        automatic = {_AUTOMATIC, "", *(choices(language)[0][0] for language in LANGUAGES)}
        typed = dict(found)

        def read(value: Any) -> Any:
            return None if value is None or value in automatic else typed.get(value, value)

        return Control((component,), read, lambda value: (_AUTOMATIC if value is None else shown(value),))

    def _texts(self, setting: Setting) -> Control:
        own = self._properties(setting)
        component = self._labels.make(gr.Textbox, value="\n".join(self.defaults[setting.name]), lines=2, **own)

        def read(value: str | None) -> tuple[str, ...]:
            return tuple(line.replace("\\n", "\n") for line in (value or "").splitlines() if line)

        return Control((component,), read, lambda value: ("\n".join(one.replace("\n", "\\n") for one in value),))

    def _seed(self, setting: Setting) -> Control:
        """A text field: whole numbers of this size would lose their last digits in a browser."""
        own = self._properties(setting)
        component = self._labels.make(gr.Textbox, value="", placeholder=say("no_seed"), max_lines=1, **own)

        def read(value: str | None) -> Any:
            typed = (value or "").strip()
            return None if not typed else int(typed) if typed.isdecimal() and len(typed) < 30 else typed

        return Control((component,), read, lambda value: ("" if value is None else str(value),))


def label_of(setting: Setting, language: Language) -> str:
    """What a setting is called on the page."""
    return getattr(SETTING_TEXTS[setting.name], language)


def info_of(setting: Setting, language: Language, range: str = "") -> str:
    """What a setting does and when to change it; its published name and its range."""
    facts = f"{setting.name}, {range}" if range else setting.name
    texts = SETTING_TEXTS[setting.name]
    if language == "zh":
        return f"{texts.about}{texts.when}（{facts}）"
    return f"{setting.about} {setting.when} ({facts})"


def _giving(values: list[Any]) -> Callable[[], Any]:
    return lambda: values if len(values) != 1 else values[0]
