"""Controls, presets, sizes and languages, without a browser."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

import bagel_mot.app
from bagel_mot.app.context import PageContext
from bagel_mot.app.controls import Controls, info_of
from bagel_mot.app.presets import PRESETS, sizes
from bagel_mot.app.texts.language import LANGUAGES, TEXTS, Labels, say
from bagel_mot.app.texts.settings import SETTING_TEXTS
from bagel_mot.errors import SettingError
from bagel_mot.inference.api import Bagel
from bagel_mot.inference.defaults import check_size
from bagel_mot.inference.settings import SETTING_GROUPS, SETTINGS, TASKS, parse_settings, task_settings
from bagel_mot.serving.service import Limits, Service
from bagel_mot.task import Task


def built(context: PageContext, *tasks: Task) -> Controls:
    controls = Controls(context, "part", *tasks)
    controls.build()
    return controls


def values(controls: Controls, **settings: Any) -> list[Any]:
    """What the components hold when these settings are shown."""
    return controls.updates(settings)


@pytest.mark.parametrize("task", TASKS)
def test_there_is_a_control_for_every_setting_and_untouched_they_send_nothing(context: PageContext, task: Task) -> None:
    controls = built(context, task)
    assert list(controls.controls) == [setting.name for setting in task_settings(task) if useful(setting.name, task)]
    assert controls.settings([component.value for component in controls.components]) == {}
    assert controls.settings(values(controls)) == {}


def useful(name: str, task: Task) -> bool:
    """Whether a setting has a control: there is no image to be guided by where none is given, and some settings are for
    evaluations alone.
    """
    return (name, task) != ("cfg_image_scale", Task.GENERATE) and not SETTINGS[name].evaluation


CHANGED: dict[str, Any] = {
    "cfg_text_scale": 2.5,
    "cfg_image_scale": 3.0,
    "cfg_interval": (0.25, 0.75),
    "cfg_renorm_type": "channel",
    "cfg_renorm_min": 0.5,
    "num_timesteps": 20,
    "timestep_shift": 1.5,
    "eta": 0.75,
    "enable_taylorseer": True,
    "size": (64, 48),
    "think": True,
    "max_think_tokens": 50,
    "max_new_tokens": 40,
    "do_sample": True,
    "temperature": 0.9,
    "top_k": 20,
    "top_p": 0.75,
    "repetition_penalty": 1.25,
    "stop": ("\n", "the end"),
    "seed": 2**62 + 1,
}


@pytest.mark.parametrize("task", TASKS)
def test_what_is_shown_is_what_is_sent(context: PageContext, task: Task) -> None:
    assert set(CHANGED) == {name for name, setting in SETTINGS.items() if not setting.evaluation}
    wanted = {name: value for name, value in CHANGED.items() if task in SETTINGS[name].tasks and useful(name, task)}
    controls = built(context, task)
    shown = values(controls, **wanted)
    assert len(shown) == len(controls.components)
    processed = [
        component.preprocess(component.postprocess(value))
        for component, value in zip(controls.components, shown, strict=True)
    ]
    assert controls.settings(processed) == parse_settings(task, wanted)


def test_a_chat_sends_each_task_its_own(context: PageContext) -> None:
    controls = built(context, "generate", "ask")
    shown = values(controls, num_timesteps=20, max_new_tokens=40, temperature=0.9)
    assert controls.settings(shown, "ask") == {"max_new_tokens": 40, "temperature": 0.9}
    assert controls.settings(shown, "generate") == {"num_timesteps": 20, "temperature": 0.9}


def test_values_out_of_range_are_told(context: PageContext) -> None:
    controls = built(context, "generate")
    names = [name for name, control in controls.controls.items() for _ in control.components]
    for name, wrong, sentence in (
        ("seed", "-1", "seed is '-1'"),
        ("size", "64 by 64", "size is '64 by 64'"),
        ("top_k", -1, "top_k is -1"),
    ):
        shown = values(controls)
        shown[names.index(name)] = wrong
        with pytest.raises(SettingError, match=sentence):
            controls.settings(shown)
    shown = values(controls)
    shown[names.index("cfg_interval")] = 1.0
    with pytest.raises(SettingError, match="cfg_interval"):
        controls.settings(shown)
    shown = values(controls)
    shown[names.index("top_k")] = None  # an emptied field
    assert controls.settings(shown) == {}


def test_the_size_field_takes_words_and_numbers(context: PageContext) -> None:
    controls = built(context, "generate")
    read = controls.controls["size"].read
    assert [read(value) for value in (None, "", "auto", "模型默认 · 64×64", "model's own · 64×64")] == [None] * 5
    assert read("4:3 · 64×48") == "64×48"
    assert read("32x32") == "32x32"


def test_limits_of_the_service_bound_the_controls(service: Service) -> None:
    own = Bagel(service.bagel.checkpoint, defaults=service.bagel.defaults)
    bounded = Service(own, limits=Limits(timesteps=20, new_tokens=100))
    with gr.Blocks(analytics_enabled=False):
        context = PageContext(bounded, None, Labels("en"), gr.Radio())  # type: ignore[arg-type]
        controls = built(context, "generate")
    (steps,) = controls.controls["num_timesteps"].components
    assert steps.maximum == 20
    assert controls.within_limits({"num_timesteps": 30}) == {"num_timesteps": 20}
    assert controls.defaults["max_think_tokens"] == 100
    assert "max_think_tokens, 1 – 100" in controls.controls["max_think_tokens"].components[0].info


def test_sizes_can_be_drawn(service: Service) -> None:
    found = sizes(service.bagel)
    assert found == {"1:1": (64, 64), "4:3": (64, 48), "3:4": (48, 64), "16:9": (64, 32), "9:16": (32, 64)}
    for size in found.values():
        check_size(size, service.bagel.config)


@pytest.mark.parametrize("task", TASKS)
def test_presets_change_the_same_settings_and_one_of_them_is_the_default(context: PageContext, task: Task) -> None:
    controls = Controls(context, "part", task)
    changes = {name: change(controls.defaults) for name, change in PRESETS[task].items()}
    assert len({frozenset(change) for change in changes.values()}) == 1
    for change in changes.values():
        parse_settings(task, change)
    default = {name: controls.defaults[name] for name in next(iter(changes.values()))}
    assert list(changes.values()).count(default) == 1
    assert len({str(change) for change in changes.values()}) == len(changes)


def test_every_text_is_there_in_both_languages_and_is_used() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in Path(bagel_mot.app.__file__).parent.rglob("*.py"))
    sources += "".join(f'"group_{group}"' for group in SETTING_GROUPS)
    for key, texts in TEXTS.items():
        assert set(texts) == set(LANGUAGES), key
        said = re.sub("_(hint|empty|sure|yes)$", "", key)  # these follow from the key of a label or a part
        assert sources.count(f'"{said}"') >= 1, f"{key} is said nowhere"
        fields = [set(re.findall(r"{(\w+)}", text)) for text in texts.values()]
        assert fields[0] == fields[1], key
    assert set(SETTING_TEXTS) == set(SETTINGS)
    for name, setting in SETTINGS.items():
        assert all(dataclasses.astuple(SETTING_TEXTS[name]))
        assert setting.about in info_of(setting, "en")
        assert setting.when in info_of(setting, "en")
        assert SETTING_TEXTS[name].when in info_of(setting, "zh")


def test_every_setting_is_in_a_group_and_those_without_effect_are_not_shown(context: PageContext) -> None:
    assert all(f"group_{key}" in TEXTS for key in SETTING_GROUPS)
    drawing, asking = built(context, Task.GENERATE), built(context, Task.ASK)
    hidden = {
        part: {name for name, one in controls.controls.items() if not one.components[0].visible}
        for part, controls in (("draw", drawing), ("ask", asking))
    }
    sampling = {"temperature", "top_k", "top_p"}
    assert hidden["draw"] == {"max_think_tokens", "do_sample", "repetition_penalty", *sampling}, "without thinking"
    assert hidden["ask"] == {"seed", *sampling}, "a greedy answer"


def test_labels_follow_the_language() -> None:
    labels = Labels("en")
    with gr.Blocks(analytics_enabled=False):
        button = labels.make(gr.Button, value=say("draw"), variant="primary")
        labels.make(gr.Textbox, label="the same everywhere")
    assert button.value == "Draw"
    assert labels.components == [button]
    (update,) = labels.switch("zh")
    assert update["value"] == "开始画"
    assert "variant" not in update


def test_gradio_is_imported_by_the_page_alone() -> None:
    root = Path(bagel_mot.app.__file__).parents[1]
    for path in root.rglob("*.py"):
        if "app" in path.relative_to(root).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "gradio" for name in names), path
