"""One control for each setting, made from the settings' own metadata, in groups that fit the task."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from bagel_mot.app.context import INSTANT_EVENT, PageContext, settings_group, small_button
from bagel_mot.app.presets import PRESETS, default_size, shown, sizes
from bagel_mot.app.texts.language import LANGUAGES, Language, Spoken, say, text
from bagel_mot.app.texts.settings import SETTING_TEXTS
from bagel_mot.inference.settings import SETTING_GROUPS, SETTINGS, Setting, parse_settings, resolve, task_settings
from bagel_mot.task import Task

TOKEN_LIMITS = ("max_think_tokens", "max_new_tokens")
_SAMPLING = ("temperature", "top_k", "top_p")
_MAX_SLIDER_RANGE = 1000
_AUTOMATIC = "auto"


@dataclass(frozen=True)
class Control:
    """A setting on the page.

    Attributes:
        components: one, or two for the ends of an interval.
        read: converts their values to the setting's value, which still has to be checked.
        show: converts the setting's value to theirs.
    """

    components: tuple[Any, ...]
    read: Callable[..., Any]
    show: Callable[[Any], tuple[Any, ...]]


class Controls:
    """The settings of one part of the page. Those left at their defaults are not sent: the task's own ones apply.

    Attributes:
        task: the first of the tasks that use these settings.
        names: all settings that belong here, in the order to show them.
        defaults: this checkpoint's defaults by name.
        controls: the controls built so far, by setting.
    """

    def __init__(self, page: PageContext, part: str, *tasks: Task) -> None:
        """Collects the settings of `tasks`; the first that has a setting gives its default."""
        self.task, self._tasks = tasks[0], tasks
        self._page, self._part, self._make, self._limits = page, part, page.labels.make, page.service.limits
        bagel = page.service.bagel
        shown = [setting for setting in SETTINGS.values() if not setting.evaluation]
        self.names = [setting.name for setting in shown if any(setting in task_settings(task) for task in tasks)]
        if tasks == (Task.GENERATE,):
            self.names.remove("cfg_image_scale")  # image guidance needs an image
        self.defaults: dict[str, Any] = {}
        for task in reversed(tasks):
            self.defaults |= resolve(task, {}, bagel.defaults.of(task)).as_dict(task)
        for limit in TOKEN_LIMITS:
            if limit in self.defaults:
                self.defaults[limit] = min(self.defaults[limit], self._limits.new_tokens)
        if "size" in self.defaults:
            self.defaults["size"] = None  # the checkpoint's own, or that of the last image
        self.controls: dict[str, Control] = {}
        self._seed_buttons: list[Any] = []

    @property
    def components(self) -> list[Any]:
        """All components, in the order in which `settings` takes their values."""
        return [component for control in self.controls.values() for component in control.components]

    def build(self, *names: str) -> None:
        """Puts controls where the page is being built; without names all that are not there yet."""
        for name in names or [name for name in self.names if name not in self.controls]:
            self.controls[name] = self._control(SETTINGS[name])

    def build_seed_buttons(self) -> None:
        """Builds buttons that set the seed: a new number, the last one, none."""
        (seed,) = self.controls["seed"].components
        with gr.Row(elem_classes="bagel-small", visible=self._has_effect("seed")) as row:
            dice, again, none = (self._button(key) for key in ("dice", "last_seed", "no_seed"))
        self._seed_buttons = [row]

        def reuse(request: gr.Request) -> Any:
            found = self._page.tabs.of(request).seeds.get(self._part)
            return gr.skip() if found is None else str(found)

        dice.click(lambda: str(secrets.randbits(32)), None, seed, **INSTANT_EVENT)
        again.click(reuse, None, seed, **INSTANT_EVENT)
        none.click(lambda: "", None, seed, **INSTANT_EVENT)

    def build_presets(self) -> None:
        """Builds the choice of a preset of the first task, and a button that resets everything."""
        with gr.Row(elem_classes="bagel-small bagel-presets"):
            own = {"elem_id": f"{self._part}-preset", "elem_classes": "bagel-segments", "container": False}
            self._preset = self._make(
                gr.Radio,
                choices=Spoken(lambda language: [(text(language, name), name) for name in PRESETS[self.task]]),
                value=next(name for name in PRESETS[self.task] if self._preset_settings(name) == self._own(name)),
                show_label=False,
                label=say("presets"),
                **own,
            )
            self._reset = self._button("reset")

    def build_groups(self) -> None:
        """Builds all controls that are not there yet, in groups that are folded away."""
        for key, names in SETTING_GROUPS.items():
            left = [name for name in names if name in self.names and name not in self.controls]
            # The only text before an image is the thinking, so its settings belong there.
            if key == "thinking" and Task.ASK not in self._tasks:
                left += [name for name in SETTING_GROUPS["writing"] if name in self.names and name not in self.controls]
            if left:
                with settings_group(self._page, self._part, f"group_{key}"):
                    self.build(*left)
                    if "seed" in left:
                        self.build_seed_buttons()

    def switches(self, name: str) -> tuple[str, ...]:
        """The settings of type bool that must all be on for a setting to have any effect."""
        draws_only, sampled = Task.ASK not in self._tasks, name in _SAMPLING
        in_thinking = name == "max_think_tokens" or (draws_only and name in SETTING_GROUPS["writing"])
        sampled = sampled or (name == "seed" and self._tasks == (Task.ASK,))
        return ("think",) * in_thinking + ("do_sample",) * sampled

    def connect(self) -> None:
        """Makes the presets work, and shows settings only where they have an effect, once all controls are there."""
        presets = {name: self._preset_settings(name) for name in PRESETS[self.task]}
        names = list(next(iter(presets.values())))
        parts = [component for name in names for component in self.controls[name].components]

        def put(preset: str) -> Any:
            return _outputs([v for name in names for v in self.controls[name].show(presets[preset][name])])

        def which(*values: Any) -> str | None:
            left, found = list(values), {}
            for name in names:
                control = self.controls[name]
                own, left = left[: len(control.components)], left[len(control.components) :]
                found[name] = control.read(*own)
            return next((name for name, settings in presets.items() if settings == found), None)

        self._preset.input(put, self._preset, parts, **INSTANT_EVENT)
        gr.on([part.change for part in parts], which, parts, self._preset, **INSTANT_EVENT)
        self._reset.click(lambda: self.updates({}), None, self.components, **INSTANT_EVENT)
        dependent = {name: self.switches(name) for name in self.controls if self.switches(name)}
        switches = list(dict.fromkeys(switch for found in dependent.values() for switch in found))
        shown_parts = [part for name in dependent for part in (*self.controls[name].components, *self._extras(name))]

        def visible(*values: bool) -> Any:
            on = dict(zip(switches, values, strict=True))
            updates = []
            for name, needed in dependent.items():
                update = gr.update(visible=all(on[one] for one in needed))
                updates += [update] * len([*self.controls[name].components, *self._extras(name)])
            return _outputs(updates)

        triggers = [part for switch in switches for part in self.controls[switch].components]
        gr.on([one.change for one in triggers], visible, triggers, shown_parts, **INSTANT_EVENT)

    def _extras(self, name: str) -> list[Any]:
        """The components that are shown and hidden together with a control."""
        return self._seed_buttons if name == "seed" else []

    def _own(self, preset: str) -> dict[str, Any]:
        """The defaults of the settings that a preset changes."""
        return {name: self.defaults[name] for name in self._preset_settings(preset)}

    def _preset_settings(self, preset: str) -> dict[str, Any]:
        return self.within_limits(PRESETS[self.task][preset](self.defaults))

    def within_limits(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Settings with no more steps than the service gives to one request."""
        steps = settings.get("num_timesteps")
        return settings if steps is None else {**settings, "num_timesteps": min(steps, self._limits.timesteps)}

    def settings(self, values: Sequence[Any], task: Task | None = None) -> dict[str, Any]:
        """The settings that differ from the defaults, by name.

        Args:
            values: the values of `components`, in their order.
            task: leaves out the settings that it does not take; the first task if not given.

        Raises:
            SettingError: a value is out of range.
        """
        task = task or self.task
        left = list(values)
        changed = {}
        for name, control in self.controls.items():
            own, left = left[: len(control.components)], left[len(control.components) :]
            if task in SETTINGS[name].tasks:
                value = parse_settings(task, {name: control.read(*own)})[name]
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

    def _button(self, key: str) -> Any:
        return small_button(self._page, self._part, key)

    def _control(self, setting: Setting) -> Control:
        default, make = self.defaults[setting.name], partial(self._simple, setting)
        if setting.name == "seed":
            return self._seed(setting)
        if setting.kind == "bool":
            return make(gr.Checkbox)
        if setting.kind == "choice":
            return make(gr.Dropdown, choices=list(setting.choices))
        if setting.kind == "interval":
            return self._interval(setting, default)
        if setting.kind == "size":
            return self._size(setting)
        if setting.kind == "texts":
            return self._texts(setting, default)
        low, high = self._bounds(setting)
        whole = setting.kind == "int"
        if low is None or high is None or high - low > _MAX_SLIDER_RANGE:
            return make(gr.Number, precision=0 if whole else None)
        step = 1.0 if whole else 0.01
        return make(gr.Slider, minimum=low + step if setting.above else low, maximum=high, step=step)

    def _simple(self, setting: Setting, kind: Callable[..., Any], **properties: Any) -> Control:
        """A component whose value is the setting's; an emptied field is the default."""
        default = self.defaults[setting.name]
        component = self._make(kind, value=default, **self._properties(setting), **properties)
        return Control((component,), lambda value: default if value is None else value, lambda value: (value,))

    def _properties(self, setting: Setting) -> dict[str, Any]:
        return {
            "label": Spoken(lambda language: label_of(setting, language)),
            "info": Spoken(lambda language: info_of(setting, language, self._range(setting))),
            "elem_id": f"{self._part}-{setting.name.replace('_', '-')}",
            "elem_classes": "bagel-setting",
            "visible": self._has_effect(setting.name),
        }

    def _has_effect(self, name: str) -> bool:
        """Whether a setting has an effect while all others are at their defaults."""
        return all(self.defaults[switch] for switch in self.switches(name))

    def _bounds(self, setting: Setting) -> tuple[float | None, float | None]:
        """The bounds of a number: those of the setting, or narrower ones of the service."""
        if setting.name == "num_timesteps":
            return setting.low, self._limits.timesteps
        if setting.name in TOKEN_LIMITS:
            return setting.low, self._limits.new_tokens
        return setting.low, setting.high

    def _range(self, setting: Setting) -> str:
        """The bounds in signs that both languages share; "" where there are none."""
        low, high = self._bounds(setting)
        if low is None or setting.name == "seed":
            return ""
        if high is None:
            return f"≥ {low:g}"
        return f"{'> ' if setting.above else ''}{low:g} – {high:g}"

    def _interval(self, setting: Setting, default: tuple[float, float]) -> Control:
        own = {**self._properties(setting), "minimum": setting.low, "maximum": setting.high, "step": 0.01}

        def end(key: str) -> Spoken:
            return Spoken(lambda language: text(language, key, label=label_of(setting, language)))

        low = self._make(gr.Slider, **{**own, "value": default[0], "label": end("interval_low")})
        own = {**own, "elem_id": f"{own['elem_id']}-to", "info": None}
        high = self._make(gr.Slider, **{**own, "value": default[1], "label": end("interval_high")})

        def read(*ends: float | None) -> tuple[float, ...]:
            return tuple(own if end is None else end for own, end in zip(default, ends, strict=True))

        return Control((low, high), read, tuple)

    def _size(self, setting: Setting) -> Control:
        bagel = self._page.service.bagel
        own_size = shown(default_size(bagel))
        key = "size_chat" if len(self._tasks) > 1 else "size_default" if self.task == Task.GENERATE else "size_picture"
        found = [(f"{ratio} · {shown(size)}", shown(size)) for ratio, size in sizes(bagel).items()]

        def choices(language: Language) -> list[tuple[str, str]]:
            return [(text(language, key, size=own_size), _AUTOMATIC), *found]

        own = {**self._properties(setting), "choices": Spoken(choices), "value": _AUTOMATIC}
        component = self._make(gr.Dropdown, allow_custom_value=True, **own)

        # A field in which one can type may yield the words of a choice instead of its value.
        automatic = {_AUTOMATIC, "", *(choices(language)[0][0] for language in LANGUAGES)}
        typed = dict(found)

        def read(value: Any) -> Any:
            return None if value is None or value in automatic else typed.get(value, value)

        return Control((component,), read, lambda value: (_AUTOMATIC if value is None else shown(value),))

    def _texts(self, setting: Setting, default: Sequence[str]) -> Control:
        component = self._make(gr.Textbox, value="\n".join(default), lines=2, **self._properties(setting))

        def read(value: str | None) -> tuple[str, ...]:
            return tuple(line.replace("\\n", "\n") for line in (value or "").splitlines() if line)

        return Control((component,), read, lambda value: ("\n".join(one.replace("\n", "\\n") for one in value),))

    def _seed(self, setting: Setting) -> Control:
        """A text field: whole numbers of this size would lose their last digits in a browser."""
        own = self._properties(setting)
        component = self._make(gr.Textbox, value="", placeholder=say("no_seed"), max_lines=1, **own)

        def read(value: str | None) -> Any:
            typed = (value or "").strip()
            return None if not typed else int(typed) if typed.isdecimal() and len(typed) < 30 else typed

        return Control((component,), read, lambda value: ("" if value is None else str(value),))


def label_of(setting: Setting, language: Language) -> str:
    """The name of a setting on the page."""
    return getattr(SETTING_TEXTS[setting.name], language)


def info_of(setting: Setting, language: Language, range: str = "") -> str:
    """The effect of a setting and when to change it; its published name and its range."""
    facts = f"{setting.name}, {range}" if range else setting.name
    texts = SETTING_TEXTS[setting.name]
    if language == "zh":
        return f"{texts.about}{texts.when}（{facts}）"
    return f"{setting.about} {setting.when} ({facts})"


def _outputs(values: list[Any]) -> Any:
    """The return value of a handler: Gradio takes the value itself where there is one output."""
    return values if len(values) != 1 else values[0]
