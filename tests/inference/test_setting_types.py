"""The types of the settings and of results, as editors and type checkers see them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import bagel_mot
from bagel_mot.inference import setting_types
from bagel_mot.inference.settings import SETTINGS, TASK_DEFAULTS, TASKS, GenerationSettings, per_request, task_settings
from bagel_mot.task import Task

PAIRS = {
    setting_types.DrawingSettings: setting_types.DrawingSettingsLists,
    setting_types.EditingSettings: setting_types.EditingSettingsLists,
    setting_types.AnswerSettings: setting_types.AnswerSettingsLists,
    setting_types.AnySettings: setting_types.AnySettingsLists,
}
PLAIN = {"float": float, "int": int, "bool": bool}


@pytest.mark.parametrize("task", TASKS)
def test_the_types_have_the_settings_of_their_task(task: Task) -> None:
    kinds = {
        Task.GENERATE: setting_types.DrawingSettings,
        Task.EDIT: setting_types.EditingSettings,
        Task.ASK: setting_types.AnswerSettings,
    }
    assert get_type_hints(kinds[task]).keys() == {setting.name for setting in task_settings(task)}


def test_together_they_are_all_settings_and_those_for_a_batch_have_the_same_names() -> None:
    assert get_type_hints(setting_types.AnySettings).keys() == SETTINGS.keys()
    for single, lists in PAIRS.items():
        assert get_type_hints(single).keys() == get_type_hints(lists).keys()
        assert not single.__required_keys__
        assert not lists.__required_keys__


@pytest.mark.parametrize("name", SETTINGS)
def test_a_type_is_that_of_the_setting(name: str) -> None:
    setting, hint = SETTINGS[name], get_type_hints(setting_types.AnySettings)[name]
    parts = set(get_args(hint)) or {hint}
    assert (type(None) in parts) == setting.optional
    if setting.kind in PLAIN:
        assert parts - {type(None)} == {PLAIN[setting.kind]}
    if setting.kind == "choice":
        assert get_args(hint) == setting.choices
    lists = get_args(get_type_hints(setting_types.AnySettingsLists)[name])
    assert any(getattr(part, "__origin__", None) is list for part in lists)
    if setting.kind in PLAIN:
        assert per_request(name, [TASK_DEFAULTS[Task.EDIT].get(name, getattr(GenerationSettings, name))]) is not None


RIGHT = """
from pathlib import Path
from PIL import Image
from bagel_mot import Bagel
from bagel_mot.inference.result import Result

with Bagel.from_pretrained("mini", threads=2) as bagel:
    image: Image.Image = bagel.generate("a", seed=1, size=(64, 64), cfg_renorm_type="global", cfg_interval=(0.4, 1.0))
    images: list[Image.Image] = bagel.generate(["a"], n=2, seed=[1], cfg_text_scale=4)
    result: Result = bagel.generate("a", think=True, return_result=True)
    results: list[Result] = bagel.generate(["a"], return_result=True, size=[(64, 64)])
    four: list[Image.Image] = bagel.generate("a", n=4)
    seeds: list[Image.Image] = bagel.generate("a", seed=[1, 2])
    image = bagel.edit(Path("x"), "a", num_timesteps=25)
    image = bagel.edit([Path("x"), image], "a")
    images = bagel.edit([Path("x"), [image, "y"]], ["a", "b"])
    answer: str = bagel.ask(None, "a", max_new_tokens=3, stop=".")
    answers: list[str] = bagel.ask(image, ["a"], stop=["."])
    pieces: list[str] = list(bagel.ask(image, "a", stream=True))
    image = bagel.interleave(["a", image])
    answer = bagel.interleave(["a", image], output="text", max_new_tokens=3)
    chat = bagel.session()
    image = chat.generate_image("a", seed=0)
    answer = chat.ask("a", max_new_tokens=2)
    result = chat.generate_text("a", return_result=True)
    pieces = list(chat.generate_text(stream=True))
"""
WRONG = (
    'bagel.generate("a", width=64)',
    'bagel.generate("a", seed="1")',
    'bagel.generate("a", max_new_tokens=3)',
    'bagel.generate(["a"], cfg_renorm_type="none")',
    'bagel.edit(image, "a", sede=3)',
    'bagel.ask(image, "a", num_timesteps=3)',
    'bagel.submit(["a"], steps=3)',
    'chat.generate_image("a", temprature=1.0)',
    'chat.ask("a", cfg_text_scale=1.0)',
    'answer = bagel.generate("a")',
    'answer = bagel.generate("a", return_result=True)',
    'image = bagel.generate(["a"])',
    "image = bagel.ask(image, 'a')",
)


@pytest.mark.slow
def test_a_type_checker_takes_what_is_right_and_refuses_what_is_not(tmp_path: Path) -> None:
    file = tmp_path / "use.py"
    file.write_text(RIGHT + "".join(f"    {line}\n" for line in WRONG))
    root = Path(bagel_mot.__file__).parents[1]
    command = [sys.executable, "-m", "mypy", "--config-file", str(root / "pyproject.toml"), str(file)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=root)
    errors = {int(line.split(":")[1]) for line in found.stdout.splitlines() if ": error:" in line}
    first = RIGHT.count("\n") + 1
    assert errors == set(range(first, first + len(WRONG))), found.stdout


def test_settings_of_other_libraries_are_refused_with_our_name(bagel: Any) -> None:
    for name in ("width", "height"):
        with pytest.raises(bagel_mot.SettingError) as caught:
            bagel.generate("a", **{name: 64})
        assert str(caught.value) == f"there is no setting {name!r}: did you mean size, such as size=(64, 64)?"
    with pytest.raises(bagel_mot.SettingError, match=r"'num_inference_steps': did you mean num_timesteps\?"):
        bagel.generate("a", num_inference_steps=30)
    with pytest.raises(bagel_mot.SettingError, match=r"'guidance_scale': did you mean cfg_text_scale\?"):
        bagel.generate("a", guidance_scale=3)
