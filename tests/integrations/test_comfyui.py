"""The ComfyUI nodes, loaded, validated and run as ComfyUI does, without ComfyUI."""

from __future__ import annotations

import gc
import importlib.util
import json
import shutil
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bagel_mot import Bagel
from bagel_mot.errors import CheckpointError, PromptError, SettingError, SizeError
from bagel_mot.inference.loading import find_checkpoint
from bagel_mot.inference.settings import SETTINGS, TASKS, resolve, task_settings
from bagel_mot.version import __version__


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


def handle(checkpoint: str = "mini", precision: str = "float32") -> Any:
    """What travels on the socket of a model."""
    return NODES["BagelLoad"]().load(checkpoint, "cpu", precision)[0]


@pytest.fixture(scope="module")
def model() -> Any:
    return handle().load()


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
            assert options["tooltip"]
        assert len(cls.OUTPUT_TOOLTIPS) == len(cls.RETURN_TYPES)


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
        assert options["control_after_generate"] in (True, "fixed")
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


def test_the_workflow_of_the_official_weights_is_valid() -> None:
    prompt = comfy.read_workflow(comfy.FOLDER / "example_workflows" / "official_int8.json", ALL)
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
    assert {path.stem for path in (comfy.FOLDER / "example_workflows").glob("*.jpg")} == drawn


def test_a_wrong_link_is_refused() -> None:
    prompt = comfy.read_workflow(comfy.FOLDER / "example_workflows" / "ask.json", ALL)
    prompt["4"]["inputs"]["images"] = ["1", 0]
    assert comfy.errors_of(prompt, ALL) == ["4: images is IMAGE, but gets BAGEL_MOT_MODEL"]


# --------------------------------------------------------------------------------------------------------- the nodes


QUICK = {"num_timesteps": 3}


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


# --------------------------------------------------------------------------------------------- loading, errors, stops


@pytest.mark.parametrize("file", ["", "ema.safetensors"])
def test_a_checkpoint_is_loaded_once_and_again_when_its_files_change(tmp_path: Path, file: str) -> None:
    node, folder = NODES["BagelLoad"], tmp_path / "copy"
    shutil.copytree(find_checkpoint("mini"), folder)
    name = str(folder / file)
    first, state = handle(name).load(), node.IS_CHANGED(checkpoint="mini", other=name)
    assert handle(name).load() is first
    assert node.IS_CHANGED(checkpoint=name, device="cpu") == state != ""
    (folder / "bagel_defaults.json").write_text('{"generate": {"num_timesteps": 7}}')
    assert node.IS_CHANGED(checkpoint=name) != state
    again = handle(name).load()
    assert again is not first
    assert again.defaults.of("generate")["num_timesteps"] == 7
    assert node.IS_CHANGED(checkpoint="mini") == ""
    assert node.IS_CHANGED(checkpoint=name, other=" ") == node.IS_CHANGED(checkpoint=name)


def alive() -> int:
    """The number of models in memory."""
    gc.collect()
    return sum(type(found) is Bagel for found in gc.get_objects())


@pytest.mark.parametrize("cache", ["classic", "all"])
def test_one_model_is_in_memory_whatever_comfyui_keeps(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package.models.OWNER.unload()
    before, seen = alive(), []
    load = Bagel.from_pretrained
    monkeypatch.setattr(Bagel, "from_pretrained", lambda *args, **more: (seen.append(alive()), load(*args, **more))[1])
    executor = comfy.Executor(ALL, cache)
    prompt = comfy.read_workflow(comfy.FOLDER / "example_workflows" / "session.json", ALL)
    for precision in ("float32", "bfloat16", "int8"):
        prompt["1"]["inputs"]["precision"] = precision
        executor.run(prompt)
        assert alive() == before + 1
    assert seen == [before] * 3, "the old one goes before the new one comes"


def test_unloading_lets_the_model_go_and_sessions_go_on(inside: SimpleNamespace) -> None:
    package.models.OWNER.unload()
    before = alive()
    (session,) = call("BagelSessionNew", model=handle(), think=True, understanding=False)
    (session,) = call("BagelSessionAddText", session=session, text="a red sun")
    session, _, _ = call("BagelSessionDraw", session=session, seed=1, settings={**QUICK, "max_think_tokens": 8})
    (session,) = call("BagelSessionAddText", session=session, text="What is the background?")
    _, answer, _ = call("BagelSessionAnswer", session=session, seed=0, settings={"max_new_tokens": 8})
    assert alive() == before + 1
    sys.modules["comfy.model_management"].unload_all_models()  # as the buttons and /free do
    assert alive() == before
    _, again, _ = call("BagelSessionAnswer", session=session, seed=0, settings={"max_new_tokens": 8})
    assert again == answer
    assert alive() == before + 1
    assert inside.unloaded == 1


def test_comfyui_s_models_make_room_on_an_accelerator(inside: SimpleNamespace) -> None:
    package.models._make_room("cpu")
    assert inside.unloaded == 0
    package.models._make_room("auto")
    assert inside.unloaded == 1


def test_checkpoints_in_the_folder_of_models_are_listed(inside: SimpleNamespace, tmp_path: Path) -> None:
    inside.folders["bagel"] = [str(tmp_path / "other")]
    folder = tmp_path / "other" / "mine"
    shutil.copytree(find_checkpoint("mini"), folder)
    (tmp_path / "other" / "notes.txt").touch()
    assert "mine" in comfy.inputs_of(NODES["BagelLoad"])["checkpoint"][0]
    assert "notes.txt" not in comfy.inputs_of(NODES["BagelLoad"])["checkpoint"][0]
    found = handle(" mine ")
    assert found.checkpoint == str(folder)
    assert found.state
    assert handle("mini").checkpoint == "mini"


def test_what_can_be_told_is_told_before_anything_runs() -> None:
    prompt = comfy.read_workflow(comfy.FOLDER / "example_workflows" / "text_to_image.json", ALL)
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
    loader["other"] = "any/path"
    assert comfy.errors_of(prompt, ALL) == []
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


class Stopped(Exception):
    """As ComfyUI's InterruptProcessingException."""


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """ComfyUI's modules for progress and stopping, which note what they are told."""
    state = SimpleNamespace(bars=[], stop_after=None, checks=0, unloaded=0, folders={}, texts=[], previews=0)

    class ProgressBar:
        def __init__(self, total: int) -> None:
            self.total, self.seen = total, []
            state.bars.append(self)

        def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
            self.seen.append((value, total))
            if preview is not None:
                kind, image, side = preview
                assert (kind, image.mode) == ("JPEG", "RGB")
                assert max(image.size) <= side
                state.previews += 1

    def throw() -> None:
        state.checks += 1
        if state.checks == state.stop_after:  # once: ComfyUI forgets the wish as soon as it has raised
            raise Stopped

    utils, management, root = ModuleType("comfy.utils"), ModuleType("comfy.model_management"), ModuleType("comfy")
    utils.ProgressBar = ProgressBar  # type: ignore[attr-defined]
    management.throw_exception_if_processing_interrupted = throw  # type: ignore[attr-defined]
    root.utils, root.model_management = utils, management  # type: ignore[attr-defined]

    def unload_all() -> None:
        state.unloaded += 1

    management.unload_all_models = unload_all  # type: ignore[attr-defined]
    management.soft_empty_cache = lambda: None  # type: ignore[attr-defined]
    folders, server = ModuleType("folder_paths"), ModuleType("server")
    folders.models_dir = "models"  # type: ignore[attr-defined]
    folders.add_model_folder_path = lambda name, path: state.folders.setdefault(name, [path])  # type: ignore[attr-defined]
    folders.get_folder_paths = lambda name: state.folders[name]  # type: ignore[attr-defined]
    prompts = SimpleNamespace(instance=SimpleNamespace(send_progress_text=lambda *told: state.texts.append(told)))
    server.PromptServer = prompts  # type: ignore[attr-defined]
    for module in (root, utils, management, folders, server):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    package.models.follow_comfyui()
    return state


def test_progress_is_shown(model: Any, inside: SimpleNamespace) -> None:
    call("BagelGenerate", model=handle(), prompt="a red sun", seed=0, count=2, settings=QUICK)
    (bar,) = inside.bars
    assert bar.total == 4
    assert bar.seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert inside.previews > 0


def test_text_is_shown_while_it_is_written(inside: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package.bridge, "_TEXT_EVERY", 0.0)
    riddle, settings = "draw as many white stars as a car has wheels", {**QUICK, "max_think_tokens": 12}
    _, thinking = call("BagelThinkAndDraw", model=handle(), prompt=riddle, seed=0, settings=settings, unique_id="7")
    assert {node for _, node in inside.texts} == {"7"}
    assert [len(text) for text, _ in inside.texts] == sorted(len(text) for text, _ in inside.texts)
    assert len(inside.texts) > 3
    assert thinking.strip()[:10] in inside.texts[-1][0]


def test_stopping_ends_all_images_of_a_batch(model: Any, inside: SimpleNamespace) -> None:
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


def test_the_pack_describes_itself_to_comfyui() -> None:
    project = tomllib.loads((comfy.FOLDER / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["comfy"]["PublisherId"]
    assert project["project"]["version"] == __version__
    wanted = [line for line in (comfy.FOLDER / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert wanted == project["project"]["dependencies"]
    assert not any("torch" in line for line in wanted)
    chinese = json.loads((comfy.FOLDER / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    assert chinese.keys() == NODES.keys()
    for name, texts in chinese.items():
        assert texts["inputs"].keys() <= comfy.inputs_of(NODES[name]).keys()


@pytest.mark.parametrize(("version", "match"), [(None, "need the package bagel-mot"), ("0.1.9", "need bagel-mot 0.2")])
def test_a_missing_or_old_package_is_named(version: str | None, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = None if version is None else SimpleNamespace(__version__=version)
    monkeypatch.setitem(sys.modules, "bagel_mot.version", found)
    with pytest.raises(ImportError, match=match):
        comfy.load_nodes()
    sys.modules["custom_nodes_bagel"] = package
