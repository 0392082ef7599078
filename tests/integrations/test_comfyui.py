"""The ComfyUI nodes, loaded, validated and run as ComfyUI does, without ComfyUI."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bagel_mot.errors import CheckpointError, PromptError, SettingError, SizeError
from bagel_mot.inference.settings import SETTINGS, TASKS, resolve, task_settings
from tests.integrations import comfy
from tests.integrations.comfy_modules import Inside, Stopped
from tests.integrations.pack import ALL, NODES, QUICK, call, collected, defaults, handle, package, workflow

SETTINGS_NODES = {"generate": "BagelDrawingSettings", "edit": "BagelEditingSettings", "ask": "BagelAnswerSettings"}


# ------------------------------------------------------------------------------------------------------- the classes


def test_every_node_has_a_name_and_what_comfyui_asks_for() -> None:
    assert NODES.keys() == package.NODE_DISPLAY_NAME_MAPPINGS.keys()
    assert len(set(package.NODE_DISPLAY_NAME_MAPPINGS.values())) == len(NODES)
    for cls in NODES.values():
        assert cls.CATEGORY.startswith("BAGEL")
        assert callable(getattr(cls, cls.FUNCTION))
        assert len(cls.RETURN_TYPES) == len(cls.RETURN_NAMES) > 0
        assert cls.DESCRIPTION.endswith(".")
        for kind, options in comfy.inputs_of(cls).values():
            assert not comfy.is_widget(kind) or "default" in options
            assert options["tooltip"]
        assert len(cls.OUTPUT_TOOLTIPS) == len(cls.RETURN_TYPES)


@pytest.mark.parametrize("task", TASKS)
def test_a_new_settings_node_holds_the_official_defaults(task: Any) -> None:
    values = collected(SETTINGS_NODES[task])
    useful = {setting.name for setting in task_settings(task) if not setting.evaluation}
    assert values.keys() == useful - {"seed", "think"}
    assert resolve(task, values) == resolve(task, {})


@pytest.mark.parametrize("task", TASKS)
def test_widgets_allow_what_the_setting_allows(task: Any) -> None:
    node = SETTINGS_NODES[task]
    known = comfy.inputs_of(NODES[node])
    for name, (_, options) in known.items():
        for end in ("min", "max"):
            if end in options and name not in ("width", "height", "cfg_interval_low", "cfg_interval_high"):
                collected(node, **{name: options[end]})  # raises if it is refused
    for setting in task_settings(task):
        if setting.name in known and setting.kind in ("int", "float"):
            options = known[setting.name][1]
            assert setting.high is None or options["max"] == setting.high
            assert options["min"] == (0.01 if setting.above else setting.low)
        if setting.kind == "choice":
            assert known[setting.name][0] == list(setting.choices)
    assert {"cfg_interval_low", "width", "num_timesteps"} <= known.keys() or task == "ask"


def test_seeds_have_their_control_and_survive_javascript() -> None:
    seeds = [comfy.inputs_of(cls)["seed"] for cls in NODES.values() if "seed" in comfy.inputs_of(cls)]
    assert len(seeds) == 7
    for kind, options in seeds:
        assert kind == "INT"
        assert options["control_after_generate"] in (True, "fixed")
        assert options["min"] == SETTINGS["seed"].low
        assert int(float(options["max"])) == options["max"]


def test_the_texts_of_widgets_are_in_comfyui_s_words() -> None:
    """Nothing of the command line, whose options and reports are not there."""
    for name, cls in NODES.items():
        for widget, (_, options) in comfy.inputs_of(cls).items():
            assert not re.search(r"--|command|reported|leave it|`bagel", options["tooltip"]), (name, widget)


def test_settings_of_two_widgets_become_one_value() -> None:
    changed = {"width": 48, "height": 32, "cfg_interval_low": 0.25, "cfg_interval_high": 0.5}
    values = collected("BagelDrawingSettings", **changed)
    assert (values["size"], values["cfg_interval"]) == ((48, 32), (0.25, 0.5))
    assert collected("BagelAnswerSettings", stop="\\n\n\nUser:")["stop"] == ("\n", "User:")


def test_an_interval_is_checked_before_anything_runs() -> None:
    inputs = defaults("BagelDrawingSettings", cfg_interval_low=0.5, cfg_interval_high=0.5)
    prompt = {"1": {"class_type": "BagelDrawingSettings", "inputs": inputs}}
    (error,) = comfy.errors_of(prompt, ALL)
    assert "cfg_interval is (0.5, 0.5): it must be two numbers, low < high" in error
    inputs["cfg_interval_high"] = 0.6
    assert comfy.errors_of(prompt, ALL) == []
    inputs["cfg_interval_low"] = 1.6
    assert len(comfy.errors_of(prompt, ALL)) == 1
    inputs |= {"cfg_interval_low": 0.1, "cfg_text_scale": 20.5}
    assert comfy.errors_of(prompt, ALL) == ["1: cfg_text_scale is bigger than 20"]


# ----------------------------------------------------------------------------------------------------- the workflows


def test_the_workflow_of_the_official_weights_is_valid() -> None:
    prompt = workflow("official_int8")
    assert comfy.errors_of(prompt, ALL) == []
    assert prompt["1"]["inputs"]["precision"] == "int8"


@pytest.mark.parametrize("path", [p for p in comfy.WORKFLOWS if p.stem != "official_int8"], ids=lambda path: path.stem)
def test_workflows_run(path: Path) -> None:
    executor = comfy.Executor(ALL)
    prompt = comfy.read_workflow(path, ALL)
    shown = executor.run(prompt)
    assert shown.keys() == {n for n, node in prompt.items() if node["class_type"] in comfy.CORE}
    for outcome in shown.values():
        if "images" in outcome:
            assert outcome["images"].std() > 0.05  # neither black nor of one colour
        else:
            assert outcome["source"].strip()
    assert len(executor.ran) == len(prompt)
    executor.run(prompt)
    assert executor.ran == []


def test_the_workflows_cover_the_tasks() -> None:
    drawn = {"text_to_image", "edit", "two_references", "ask", "think", "session"}
    assert {path.stem for path in comfy.WORKFLOWS} == {*drawn, "official_int8"}
    assert {path.stem for path in (comfy.PACK / "example_workflows").glob("*.jpg")} == {*drawn, "official_int8"}


def test_a_wrong_link_is_refused() -> None:
    prompt = workflow("ask")
    prompt["4"]["inputs"]["images"] = ["1", 0]
    assert comfy.errors_of(prompt, ALL) == ["4: images is IMAGE, but gets BAGEL_MOT_MODEL"]


# --------------------------------------------------------------------------------------------------------- the nodes


def test_text_to_image_draws_what_the_python_api_draws(model: Any) -> None:
    settings = collected("BagelDrawingSettings", num_timesteps=4, width=48, height=64)
    (images,) = call("BagelGenerate", model=handle(), prompt="a red sun", seed=5, count=2, settings=settings)
    comfy.check_type(images, "IMAGE")
    assert images.shape == (2, 64, 48, 3)
    official = {
        name: SETTINGS[name].default("generate") for name in ("cfg_text_scale", "eta")
    }  # the checkpoint's differ
    alone = model.generate("a red sun", seed=6, num_timesteps=4, size=(48, 64), **official)
    (array,) = package.bridge.to_arrays(images[1:])
    assert abs(array.astype(int) - package.bridge.to_arrays(package.bridge.to_images([alone]))[0]).max() <= 1


def test_one_image_is_that_of_the_python_api_bit_for_bit(model: Any) -> None:
    (images,) = call("BagelGenerate", model=handle(), prompt="a red sun", seed=5, count=1, settings=QUICK)
    assert torch.equal(images, package.bridge.to_images([model.generate("a red sun", seed=5, **QUICK)]))


def test_a_batch_reads_its_prompt_once(model: Any) -> None:
    stats, read = model.engine.stats, []
    for count, prompt in ((1, "a red sun"), (4, "a red car")):
        before = stats.prefill_tokens
        call("BagelGenerate", model=handle(), prompt=prompt, seed=0, count=count, settings=QUICK)
        read.append(stats.prefill_tokens - before)
    assert len(set(map(len, map(model.tokenizer.encode, ("a red sun", "a red car"))))) == 1
    assert read[0] == read[1]


def test_without_settings_the_checkpoint_s_own_apply(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    submit = model.submit

    def noting(inputs: Any, **values: Any) -> Any:
        seen.update(values)
        return submit(inputs, num_timesteps=2, **values)

    monkeypatch.setattr(model, "submit", noting)
    call("BagelGenerate", model=handle(), prompt="a red sun", seed=5, count=1)
    assert seen.keys() == {"seed", "on_step", "on_preview", "on_text"}


def test_images_go_in_and_out_unchanged() -> None:
    images = torch.arange(256).reshape(1, 16, 16, 1).expand(2, 16, 16, 3) / 255
    arrays = package.bridge.to_arrays(images)
    again = package.bridge.to_images([package.bridge.Image.fromarray(array) for array in arrays])
    assert torch.equal(again, images)
    assert package.bridge.to_arrays(torch.tensor([[[[1.5, -0.5, 0.5]]]]))[0].tolist() == [[[255, 0, 128]]]
    assert package.bridge.to_arrays(None) == []


def test_edit_takes_a_batch_together_or_each_by_itself(model: Any) -> None:
    (images,) = call("BagelGenerate", model=handle(), prompt="a red sun", seed=1, count=2, settings=QUICK)
    common = {"model": handle(), "instruction": "make the sun blue", "seed": 3, "settings": QUICK}
    (each,) = call("BagelEdit", images=images, batch="each picture by itself", **common)
    (together,) = call("BagelEdit", images=images, batch="one picture from all", **common)
    (second,) = call("BagelEdit", images=images[1:], batch="one picture from all", **common)
    assert each.shape == images.shape
    assert together.shape == second.shape == images[1:].shape
    assert (each[1:] - second).abs().max() < 2 / 255
    assert (together - second).abs().max() > 2 / 255  # the first picture was seen, too


def test_ask_answers_about_images_and_without(model: Any) -> None:
    (images,) = call("BagelGenerate", model=handle(), prompt="a red sun", seed=1, count=2, settings=QUICK)
    common = {"model": handle(), "question": "What is the background?", "seed": 0, "settings": {"max_new_tokens": 8}}
    (answer,) = call("BagelAsk", images=images[:1], **common)
    image = package.bridge.to_arrays(images)[0]
    assert answer == model.ask(image, "What is the background?", max_new_tokens=8) != ""
    assert isinstance(call("BagelAsk", **common)[0], str)
    assert isinstance(call("BagelAsk", images=images, **common)[0], str)


def test_thinking_comes_out(model: Any) -> None:
    riddle = "draw as many white stars as a car has wheels"
    limited = {**QUICK, "max_think_tokens": 48}
    images, thinking = call("BagelThinkAndDraw", model=handle(), prompt=riddle, seed=0, settings=limited)
    comfy.check_type(images, "IMAGE")
    assert thinking == model.generate(riddle, seed=0, think=True, return_result=True, **limited).thinking != ""
    edited, _ = call("BagelThinkAndDraw", model=handle(), prompt="add a sun", seed=0, images=images, settings=limited)
    assert edited.shape == images.shape
    answer, thinking = call(
        "BagelThinkAndAnswer", model=handle(), question=riddle, seed=0, images=images, settings={"max_new_tokens": 48}
    )
    assert thinking
    assert isinstance(answer, str)


def test_a_session_can_be_continued_in_two_ways(model: Any) -> None:
    (empty,) = call("BagelSessionNew", model=handle(), think=False, understanding=False)
    (asked,) = call("BagelSessionAddText", session=empty, text="a red sun")
    drawn, images, thinking = call("BagelSessionDraw", session=asked, seed=1, settings=QUICK)
    assert (len(empty.items), len(asked.items), len(drawn.items)) == (0, 1, 2)
    assert thinking == ""
    other, again, _ = call("BagelSessionDraw", session=asked, seed=1, settings=QUICK)
    assert len(asked.items) == 1
    # The same but for a rounding: where a process's first work stands in memory changes the order of sums.
    assert torch.allclose(images, again, rtol=0, atol=1.01 / 255)
    assert (images != again).float().mean() < 1e-3
    (seen,) = call("BagelSessionAddImage", session=other, images=torch.cat([images, again]))
    assert len(seen.items) == 4
    (question,) = call("BagelSessionAddText", session=seen, text="What is the background?")
    answered, answer, _ = call("BagelSessionAnswer", session=question, seed=0, settings={"max_new_tokens": 8})
    assert answered.items[-1][1].startswith(answer)
    assert (len(question.items), len(answered.items)) == (5, 6)


def test_results_of_several_sizes_are_refused_in_a_sentence() -> None:
    sizes = {"images": torch.rand(1, 32, 64, 3), "images_2": torch.rand(1, 64, 32, 3)}
    common = {"model": handle(), "instruction": "add a sun", "batch": "each picture by itself", "seed": 3}
    with pytest.raises(SizeError, match="a batch of ComfyUI has one size: set width and height"):
        call("BagelEdit", **sizes, **common, settings=QUICK)


def test_what_can_be_told_is_told_before_anything_runs() -> None:
    prompt = workflow("text_to_image")
    number = next(n for n, node in prompt.items() if node["class_type"] == "BagelGenerate")
    prompt[number]["inputs"]["prompt"] = " "
    assert comfy.errors_of(prompt, ALL) == [f"{number}: the prompt is empty: write something that the model can go by."]
    prompt[number]["inputs"] |= {"prompt": "a car", "seed": "12"}
    assert comfy.errors_of(prompt, ALL) == []
    assert prompt[number]["inputs"]["seed"] == 12
    loader = prompt["1"]["inputs"]
    for precision in ("int8-dynamic", "int8,head=int8"):
        loader["precision"] = precision
        assert comfy.errors_of(prompt, ALL) == []
    loader["precision"] = "int9"
    assert len(comfy.errors_of(prompt, ALL)) == 1
    loader |= {"precision": "auto", "checkpoint": "any/path"}
    assert comfy.errors_of(prompt, ALL) == []
    loader["checkpoint"] = ""
    assert len(comfy.errors_of(prompt, ALL)) == 1
    loader |= {"other": "any/path", "memory": " 12GB "}
    assert comfy.errors_of(prompt, ALL) == []
    loader["memory"] = "a lot"
    (error,) = comfy.errors_of(prompt, ALL)
    assert "'a lot'" in error
    loader |= {"memory": "", "tasks": "everything"}
    assert len(comfy.errors_of(prompt, ALL)) == 1
    inputs = defaults("BagelDrawingSettings", width=64)
    (error,) = comfy.errors_of({"1": {"class_type": "BagelDrawingSettings", "inputs": inputs}}, ALL)
    assert error == "1: width is 64 and height is 0: give both, or 0 for both."


def test_references_may_have_different_sizes(model: Any) -> None:
    wide, tall = torch.rand(1, 40, 90, 3), torch.rand(2, 70, 30, 3)
    common = {"instruction": "add a sun", "batch": "one picture from all", "seed": 3, "settings": QUICK}
    (images,) = call("BagelEdit", model=handle(), images=wide, images_3=tall, **common)
    first, second, third = package.bridge.to_arrays(wide, None, tall)
    alone = model.edit([first, second, third], "add a sun", seed=3, **QUICK)
    assert abs(package.bridge.to_arrays(images)[0].astype(int) - np.asarray(alone)).max() <= 1


def test_errors_are_the_sentences_of_bagel(model: Any) -> None:
    with pytest.raises(CheckpointError, match="'nowhere' is not a checkpoint: give 'mini', a checkpoint folder"):
        handle("nowhere").load()
    with pytest.raises(PromptError, match="write something that the model can go by"):
        call("BagelGenerate", model=handle(), prompt=" ", seed=0, count=1)
    with pytest.raises(SettingError, match="cfg_interval is .*: it must be two numbers, low < high"):
        collected("BagelEditingSettings", cfg_interval_low=0.5, cfg_interval_high=0.5)
    (session,) = call("BagelSessionNew", model=handle(), think=False, understanding=True)
    with pytest.raises(SettingError, match="this session is for understanding"):
        call("BagelSessionDraw", session=session, seed=0)


# ------------------------------------------------------------------------------------------------ progress and stops


def test_progress_is_shown(model: Any, inside: Inside) -> None:
    call("BagelGenerate", model=handle(), prompt="a red sun", seed=0, count=2, settings=QUICK)
    (bar,) = inside.bars
    assert bar.total == 4
    assert bar.seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert inside.previews > 0


def test_text_is_shown_while_it_is_written(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package.bridge, "_EVERY", 0.0)
    riddle, settings = "draw as many white stars as a car has wheels", {**QUICK, "max_think_tokens": 12}
    _, thinking = call("BagelThinkAndDraw", model=handle(), prompt=riddle, seed=0, settings=settings, unique_id="7")
    assert {node for _, node in inside.texts} == {"7"}
    assert [len(text) for text, _ in inside.texts] == sorted(len(text) for text, _ in inside.texts)
    assert len(inside.texts) > 3
    assert thinking.strip()[:10] in inside.texts[-1][0]


def test_stopping_ends_all_images_of_a_batch(model: Any, inside: Inside) -> None:
    inside.stop_after = 2
    before = model.engine.stats.decoded
    with pytest.raises(Stopped):
        call("BagelGenerate", model=handle(), prompt="a red sun", seed=0, count=3, settings={"num_timesteps": 30})
    assert model.engine.stats.decoded == before
    assert model.engine.idle
    inside.stop_after = inside.checks + 1
    with pytest.raises(Stopped):
        call("BagelAsk", model=handle(), question="What is the background?", seed=0)
    assert model.engine.idle
