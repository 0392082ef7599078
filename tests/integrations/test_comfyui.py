"""The ComfyUI nodes, loaded, validated and run as ComfyUI does, without ComfyUI."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from bagel_mot.errors import CheckpointError, PromptError, SettingError
from bagel_mot.inference.loading import find_checkpoint
from bagel_mot.inference.settings import SETTINGS, TASKS, resolve, task_settings


def _comfy() -> ModuleType:
    """The stand-in for ComfyUI that lies beside this file."""
    spec = importlib.util.spec_from_file_location("comfy_stand_in", Path(__file__).with_name("comfy.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


comfy = _comfy()
package = comfy.load_nodes()
NODES: dict[str, Any] = package.NODE_CLASS_MAPPINGS
ALL = {**comfy.CORE, **NODES}
SETTINGS_NODES = {"generate": "BagelDrawingSettings", "edit": "BagelEditingSettings", "ask": "BagelAnswerSettings"}


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """On a model this small, threads wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> Any:
    return NODES["BagelLoad"]().load("mini", "cpu", "float32")[0]


def defaults(node: str, **changed: Any) -> dict[str, Any]:
    """The values of a node's widgets as they stand when it is new."""
    known = comfy.inputs_of(NODES[node])
    return {name: options["default"] for name, (kind, options) in known.items() if comfy.is_widget(kind)} | changed


def collected(node: str, **changed: Any) -> dict[str, Any]:
    return NODES[node]().collect(**defaults(node, **changed))[0]


def call(node: str, **values: Any) -> Any:
    cls = NODES[node]
    with torch.inference_mode():
        return getattr(cls(), cls.FUNCTION)(**values)


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
            assert not comfy.is_widget(kind) or options["tooltip"]


@pytest.mark.parametrize("task", TASKS)
def test_a_new_settings_node_holds_the_official_defaults(task: Any) -> None:
    values = collected(SETTINGS_NODES[task])
    assert values.keys() == {setting.name for setting in task_settings(task)} - {"seed", "think"}
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
        assert options["control_after_generate"] is True
        assert options["min"] == SETTINGS["seed"].low
        assert int(float(options["max"])) == options["max"]


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


@pytest.mark.parametrize("path", comfy.WORKFLOWS, ids=lambda path: path.stem)
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
    assert {path.stem for path in comfy.WORKFLOWS} == {"text_to_image", "edit", "ask", "session"}


def test_a_wrong_link_is_refused() -> None:
    prompt = comfy.read_workflow(comfy.FOLDER / "workflows" / "ask.json", ALL)
    prompt["4"]["inputs"]["images"] = ["1", 0]
    assert comfy.errors_of(prompt, ALL) == ["4: images is IMAGE, but gets BAGEL_MODEL"]


# --------------------------------------------------------------------------------------------------------- the nodes


QUICK = {"num_timesteps": 3}


def test_text_to_image_draws_what_the_python_api_draws(model: Any) -> None:
    settings = collected("BagelDrawingSettings", num_timesteps=4, width=48, height=64)
    (images,) = call("BagelGenerate", model=model, prompt="a red sun", seed=5, count=2, settings=settings)
    comfy.check_type(images, "IMAGE")
    assert images.shape == (2, 64, 48, 3)
    official = {
        name: SETTINGS[name].default("generate") for name in ("cfg_text_scale", "eta")
    }  # the checkpoint's differ
    alone = model.generate("a red sun", seed=6, num_timesteps=4, size=(48, 64), **official)
    (array,) = package.bridge.to_arrays(images[1:])
    assert abs(array.astype(int) - package.bridge.to_arrays(package.bridge.to_images([alone]))[0]).max() <= 1


def test_a_batch_reads_its_prompt_once(model: Any) -> None:
    stats, read = model.engine.stats, []
    for count, prompt in ((1, "a red sun"), (4, "a red car")):
        before = stats.prefill_tokens
        call("BagelGenerate", model=model, prompt=prompt, seed=0, count=count, settings=QUICK)
        read.append(stats.prefill_tokens - before)
    assert len(set(map(len, map(model.tokenizer.encode, ("a red sun", "a red car"))))) == 1
    assert read[0] == read[1]


def test_without_settings_the_checkpoint_s_own_apply(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def generate(prompts: Any, **values: Any) -> Any:
        seen.update(values)
        return [package.bridge.Image.new("RGB", (8, 8))]

    monkeypatch.setattr(model, "generate", generate)
    call("BagelGenerate", model=model, prompt="a red sun", seed=5, count=1)
    assert seen.keys() == {"n", "seed", "progress"}


def test_images_go_in_and_out_unchanged() -> None:
    images = torch.arange(256).reshape(1, 16, 16, 1).expand(2, 16, 16, 3) / 255
    arrays = package.bridge.to_arrays(images)
    again = package.bridge.to_images([package.bridge.Image.fromarray(array) for array in arrays])
    assert torch.equal(again, images)
    assert package.bridge.to_arrays(torch.tensor([[[[1.5, -0.5, 0.5]]]]))[0].tolist() == [[[255, 0, 128]]]
    assert package.bridge.to_arrays(None) == []


def test_edit_takes_a_batch_together_or_each_by_itself(model: Any) -> None:
    (images,) = call("BagelGenerate", model=model, prompt="a red sun", seed=1, count=2, settings=QUICK)
    common = {"model": model, "instruction": "make the sun blue", "seed": 3, "settings": QUICK}
    (each,) = call("BagelEdit", images=images, batch="each picture by itself", **common)
    (together,) = call("BagelEdit", images=images, batch="one picture from all", **common)
    (second,) = call("BagelEdit", images=images[1:], batch="one picture from all", **common)
    assert each.shape == images.shape
    assert together.shape == second.shape == images[1:].shape
    assert (each[1:] - second).abs().max() < 2 / 255
    assert (together - second).abs().max() > 2 / 255  # the first picture was seen, too


def test_ask_answers_about_images_and_without(model: Any) -> None:
    (images,) = call("BagelGenerate", model=model, prompt="a red sun", seed=1, count=2, settings=QUICK)
    common = {"model": model, "question": "What is the background?", "seed": 0, "settings": {"max_new_tokens": 8}}
    (answer,) = call("BagelAsk", images=images[:1], **common)
    image = package.bridge.to_arrays(images)[0]
    assert answer == model.ask(image, "What is the background?", max_new_tokens=8) != ""
    assert isinstance(call("BagelAsk", **common)[0], str)
    assert isinstance(call("BagelAsk", images=images, **common)[0], str)


def test_thinking_comes_out(model: Any) -> None:
    riddle = "draw as many white stars as a car has wheels"
    limited = {**QUICK, "max_think_tokens": 48}
    images, thinking = call("BagelThinkAndDraw", model=model, prompt=riddle, seed=0, settings=limited)
    comfy.check_type(images, "IMAGE")
    assert thinking == model.generate(riddle, seed=0, think=True, return_result=True, **limited).thinking != ""
    edited, _ = call("BagelThinkAndDraw", model=model, prompt="add a sun", seed=0, images=images, settings=limited)
    assert edited.shape == images.shape
    answer, thinking = call(
        "BagelThinkAndAnswer", model=model, question=riddle, seed=0, images=images, settings={"max_new_tokens": 48}
    )
    assert thinking
    assert isinstance(answer, str)


def test_a_session_can_be_continued_in_two_ways(model: Any) -> None:
    (empty,) = call("BagelSessionNew", model=model, think=False, understanding=False)
    (asked,) = call("BagelSessionAddText", session=empty, text="a red sun")
    drawn, images, thinking = call("BagelSessionDraw", session=asked, seed=1, settings=QUICK)
    assert (len(empty.history), len(asked.history), len(drawn.history)) == (0, 1, 2)
    assert thinking == ""
    other, again, _ = call("BagelSessionDraw", session=asked, seed=1, settings=QUICK)
    assert len(asked.history) == 1
    # The same but for a rounding: where a process's first work stands in memory changes the order of sums.
    assert torch.allclose(images, again, rtol=0, atol=1.01 / 255)
    assert (images != again).float().mean() < 1e-3
    (seen,) = call("BagelSessionAddImage", session=other, images=torch.cat([images, again]))
    assert len(seen.history) == 4
    (question,) = call("BagelSessionAddText", session=seen, text="What is the background?")
    answered, answer, _ = call("BagelSessionAnswer", session=question, seed=0, settings={"max_new_tokens": 8})
    assert answered.history[-1].content.startswith(answer)
    assert (len(question.history), len(answered.history)) == (5, 6)


# --------------------------------------------------------------------------------------------- loading, errors, stops


def test_a_checkpoint_is_loaded_once_and_again_when_its_files_change(tmp_path: Path) -> None:
    node = NODES["BagelLoad"]
    folder = tmp_path / "copy"
    shutil.copytree(find_checkpoint("mini"), folder)
    first, state = node().load(str(folder), "cpu", "float32")[0], node.IS_CHANGED(checkpoint=str(folder))
    assert node().load(str(folder), "cpu", "float32")[0] is first
    assert node.IS_CHANGED(checkpoint=str(folder), device="cpu") == state != ""
    (folder / "bagel_defaults.json").write_text('{"generate": {"num_timesteps": 7}}')
    assert node.IS_CHANGED(checkpoint=str(folder)) != state
    again = node().load(str(folder), "cpu", "float32")[0]
    assert again is not first
    assert again.defaults.of("generate")["num_timesteps"] == 7
    assert node.IS_CHANGED(checkpoint="mini") == ""


def test_errors_are_the_sentences_of_bagel(model: Any) -> None:
    with pytest.raises(CheckpointError, match="'nowhere' is not a checkpoint: give 'mini', a checkpoint folder"):
        NODES["BagelLoad"]().load("nowhere", "auto", "auto")
    with pytest.raises(PromptError, match="write something that the model can go by"):
        call("BagelGenerate", model=model, prompt=" ", seed=0, count=1)
    with pytest.raises(SettingError, match="cfg_interval is .*: it must be two numbers, low < high"):
        collected("BagelEditingSettings", cfg_interval_low=0.5, cfg_interval_high=0.5)
    (session,) = call("BagelSessionNew", model=model, think=False, understanding=True)
    with pytest.raises(SettingError, match="this session is for understanding"):
        call("BagelSessionDraw", session=session, seed=0)


class Stopped(Exception):
    """As ComfyUI's InterruptProcessingException."""


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """ComfyUI's modules for progress and stopping, which note what they are told."""
    state = SimpleNamespace(bars=[], stop_after=None, checks=0)

    class ProgressBar:
        def __init__(self, total: int) -> None:
            self.total, self.seen = total, []
            state.bars.append(self)

        def update_absolute(self, value: int, total: int | None = None) -> None:
            self.seen.append((value, total))

    def throw() -> None:
        state.checks += 1
        if state.checks == state.stop_after:  # once: ComfyUI forgets the wish as soon as it has raised
            raise Stopped

    utils, management, root = ModuleType("comfy.utils"), ModuleType("comfy.model_management"), ModuleType("comfy")
    utils.ProgressBar = ProgressBar  # type: ignore[attr-defined]
    management.throw_exception_if_processing_interrupted = throw  # type: ignore[attr-defined]
    root.utils, root.model_management = utils, management  # type: ignore[attr-defined]
    for module in (root, utils, management):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return state


def test_progress_is_shown(model: Any, inside: SimpleNamespace) -> None:
    call("BagelGenerate", model=model, prompt="a red sun", seed=0, count=2, settings=QUICK)
    (bar,) = inside.bars
    assert bar.total == 4
    assert bar.seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_stopping_ends_all_images_of_a_batch(model: Any, inside: SimpleNamespace) -> None:
    inside.stop_after = 2
    before = model.engine.stats.decoded
    with pytest.raises(Stopped):
        call("BagelGenerate", model=model, prompt="a red sun", seed=0, count=3, settings={"num_timesteps": 30})
    assert model.engine.stats.decoded == before
    assert model.engine.idle
    inside.stop_after = inside.checks + 1
    with pytest.raises(Stopped):
        call("BagelAsk", model=model, question="What is the background?", seed=0)
    assert model.engine.idle
