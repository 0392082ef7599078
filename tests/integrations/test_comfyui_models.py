"""Models in ComfyUI: one in memory at a time, beside ComfyUI's own, found in its folders and downloaded into them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from bagel_mot import Bagel
from bagel_mot.checkpoint.hub.download import download
from bagel_mot.errors import CheckpointError, SettingError
from bagel_mot.inference.loading import find_checkpoint
from tests.checkpoint.fake_hub import FakeHub, be_the_hub, running
from tests.integrations import comfy
from tests.integrations.comfy_modules import Inside, LoadedModel, Stopped
from tests.integrations.pack import ALL, NODES, QUICK, alive, call, defaults, handle, package

pytestmark = pytest.mark.slow

OWNER = package.models.OWNER
REPOSITORY = "owner/name"
GOLDEN = Path(__file__).parent.parent / "golden" / "checkpoint"  # a few megabytes, at once in memory
CPU = torch.device("cpu")
EMPTY: comfy.Prompt = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8}},
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}


def short() -> comfy.Prompt:
    """A prompt of a few tokens: a session with a question, its answer, and the answer shown."""
    nodes = [
        ("BagelLoad", {"device": "cpu", "other": str(GOLDEN)}),
        ("BagelAnswerSettings", {"max_new_tokens": 2}),
        ("BagelSessionNew", {"model": ["1", 0]}),
        ("BagelSessionAddText", {"session": ["3", 0], "text": "What colour is the sea?"}),
        ("BagelSessionAnswer", {"session": ["4", 0], "settings": ["2", 0]}),
    ]
    prompt = {
        str(number): {"class_type": name, "inputs": defaults(name, **values)}
        for number, (name, values) in enumerate(nodes, 1)
    }
    return prompt | {"6": {"class_type": "PreviewAny", "inputs": {"source": ["5", 1]}}}


@pytest.fixture
def before() -> int:
    """The models in memory that are none of the nodes'."""
    OWNER.unload()
    return alive()


# ------------------------------------------------------------------------------------------------------ one in memory


@pytest.mark.parametrize("file", ["", "ema.safetensors"])
def test_a_checkpoint_is_loaded_once_and_again_when_its_files_change(tmp_path: Path, file: str) -> None:
    node, folder = NODES["BagelLoad"], tmp_path / "copy"
    shutil.copytree(find_checkpoint("mini"), folder)
    name = str(folder / file)
    kept = handle(name)
    first, state = kept.load(), node.IS_CHANGED(checkpoint="mini", other=name)
    assert handle(name).load() is first
    assert node.IS_CHANGED(checkpoint=name, device="cpu") == state != ""
    (folder / "bagel_defaults.json").write_text('{"generate": {"num_timesteps": 7}}')
    assert node.IS_CHANGED(checkpoint=name) != state
    again = handle(name).load()
    assert again is not first
    assert again.defaults.of("generate")["num_timesteps"] == 7
    assert node.IS_CHANGED(checkpoint="mini") == ""
    assert node.IS_CHANGED(checkpoint=name, other=" ") == node.IS_CHANGED(checkpoint=name)


@pytest.mark.parametrize("cache", ["classic", "lru", "ram", "none"])
def test_one_model_is_in_memory_whatever_comfyui_keeps(
    cache: str, before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    load = Bagel.from_pretrained
    monkeypatch.setattr(Bagel, "from_pretrained", lambda *args, **more: (seen.append(alive()), load(*args, **more))[1])
    executor = comfy.Executor(ALL, cache, most=20)
    prompt = short()
    for precision in ("float32", "bfloat16", "int8"):
        prompt["1"]["inputs"]["precision"] = precision
        executor.run(prompt)
        assert alive() == before + (cache != "none")
    assert seen == [before] * 3, "the old one goes before the new one comes"
    executor.run(EMPTY)
    assert alive() == before + (cache in ("lru", "ram")), "it stays as long as ComfyUI keeps a handle of it"


def test_the_model_goes_when_comfyui_drops_its_handles_for_want_of_memory(before: int) -> None:
    executor = comfy.Executor(ALL, "ram")
    executor.free_ram = lambda: 0 if alive() > before else 1 << 40
    executor.run(short())
    assert alive() == before
    assert "BagelLoad" not in {json.loads(key)[1][0] for key in executor._kept}, "the largest goes first"
    assert "PreviewAny" in {json.loads(key)[1][0] for key in executor._kept}, "what is small stays"
    kept = handle(str(GOLDEN))
    bagel = kept.load()
    weights = sum(each.nbytes for each in bagel.checkpoint.model.parameters())
    assert kept.get_ram_usage() >= weights
    assert handle(str(GOLDEN), precision="bfloat16").get_ram_usage() == 0


@pytest.mark.parametrize("flags", [{"unload_models"}, {"free_memory"}, {"unload_models", "free_memory"}])
def test_free_lets_the_model_go_and_the_next_prompt_goes_on(flags: set[str], before: int, inside: Inside) -> None:
    executor, prompt = comfy.Executor(ALL), short()
    shown = executor.run(prompt)
    assert alive() == before + 1
    executor.free(**dict.fromkeys(flags, True))
    assert alive() == before
    assert inside.unloaded == 1
    again = executor.run(prompt)
    assert len(executor.ran) == (len(prompt) if "free_memory" in flags else 0)
    assert [outcome.get("source") for outcome in again.values()] == [one.get("source") for one in shown.values()]


def test_unloading_lets_the_model_go_and_sessions_go_on(before: int, inside: Inside) -> None:
    (session,) = call("BagelSessionNew", model=handle(str(GOLDEN)), think=True, understanding=False)
    (session,) = call("BagelSessionAddText", session=session, text="a red sun")
    session, _, _ = call("BagelSessionDraw", session=session, seed=1, settings={**QUICK, "max_think_tokens": 8})
    (session,) = call("BagelSessionAddText", session=session, text="What is the background?")
    _, answer, _ = call("BagelSessionAnswer", session=session, seed=0, settings={"max_new_tokens": 8})
    assert alive() == before + 1
    inside.management.unload_all_models()  # as the buttons do
    assert alive() == before
    _, again, _ = call("BagelSessionAnswer", session=session, seed=0, settings={"max_new_tokens": 8})
    assert again == answer
    assert alive() == before + 1


# --------------------------------------------------------------------------------------- beside ComfyUI's own models


def test_comfyui_s_models_make_room_on_an_accelerator(inside: Inside) -> None:
    inside.device = torch.device("cuda:0")
    inside.memory = 24 << 30
    small, large = LoadedModel(2 << 30, inside.device), LoadedModel(20 << 30, inside.device)
    loaded = inside.management.current_loaded_models
    loaded += [small, large]
    package.memory.make_room("cpu", 29 << 30)
    package.memory.make_room("auto", 40 << 20)
    assert loaded == [small, large], "there was room enough"
    inside.memory = 22 << 30
    package.memory.make_room("auto", 40 << 20)
    assert loaded == [small], "as many leave as stand in the way"
    package.memory.make_room("auto", 29 << 30)
    assert loaded == [], "a large checkpoint runs as the free memory allows, and gets all of it"


def test_bagel_leaves_when_another_model_needs_its_room(before: int, inside: Inside) -> None:
    inside.memory = 24 << 30
    inside.others = lambda: (alive() - before) * (16 << 30)
    idle, wanted = LoadedModel(6 << 30, CPU), LoadedModel(7 << 30, CPU)
    kept = handle(str(GOLDEN))
    kept.load()
    inside.management.load_models_gpu([idle])
    assert alive() == before + 1, "there was room for both"
    inside.management.load_models_gpu([wanted])
    assert inside.management.current_loaded_models == [wanted]
    assert alive() == before + 1, "one of ComfyUI's own was enough, which is back sooner"
    inside.management.free_memory(9 << 30, CPU, keep_loaded=[wanted])
    assert alive() == before
    assert inside.management.current_loaded_models == [wanted]
    kept.load()
    inside.management.free_memory(23 << 30, torch.device("cuda:1"))
    assert alive() == before + 1, "another device is short of memory"
    inside.management.free_memory(23 << 30, CPU)
    assert alive() == before
    kept.load()
    wanted.model_loaded_memory = None  # as in no version that is known
    inside.management.free_memory(2 << 30, CPU)
    assert alive() == before + 1, "no other model fails for that"


def test_auto_is_the_device_that_comfyui_runs_on(inside: Inside) -> None:
    assert package.memory.device_in_comfyui("auto") == "cpu"
    assert package.memory.device_in_comfyui("cuda") == "cuda"
    inside.device = torch.device("cuda:0")
    assert package.memory.device_in_comfyui("auto") == "auto"


# ------------------------------------------------------------------------------------------------ folders, downloads


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with running({path.name: path.read_bytes() for path in GOLDEN.iterdir() if path.is_file()}) as server:
        be_the_hub(server, tmp_path / "cache", monkeypatch)
        yield server


@pytest.fixture
def folder(inside: Inside, tmp_path: Path) -> Path:
    """The folder that extra_model_paths.yaml names, which comes before ComfyUI's own."""
    inside.folders["bagel"] = [str(tmp_path / "disk"), str(tmp_path / "models" / "bagel")]
    return tmp_path / "disk"


def test_the_folder_of_models_is_registered_after_those_of_the_user(inside: Inside) -> None:
    assert inside.folders["bagel"] == [str(Path("models") / "bagel")]
    inside.folders["bagel"] = ["disk"]
    package.places.register()
    assert inside.folders["bagel"] == ["disk", str(Path("models") / "bagel")]


def test_checkpoints_in_the_folders_of_models_are_listed(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "models" / "bagel"
    for place in (folder / "mine", own / "owner" / "theirs", own / "half.incomplete"):
        shutil.copytree(find_checkpoint("mini"), place)
    (own / "owner" / "half").mkdir()
    shutil.copy(find_checkpoint("mini") / "llm_config.json", own / "owner" / "half")
    (own / "notes.txt").touch()
    (own / "weights.gguf").touch()
    assert package.places.listed() == ["mine", "owner/theirs", "weights.gguf"]
    names = comfy.inputs_of(NODES["BagelLoad"])["checkpoint"][0]
    assert names == ["mini", "mine", "owner/theirs", "weights.gguf", "ByteDance-Seed/BAGEL-7B-MoT"]
    found = handle(" mine ")
    assert found.checkpoint == str(folder / "mine")
    assert found.state
    assert handle("owner/theirs").checkpoint == str(own / "owner" / "theirs")
    assert handle("mini").checkpoint == "mini"


def test_the_hub_s_checkpoints_come_into_the_folder_of_models(hub: FakeHub, folder: Path, inside: Inside) -> None:
    node = NODES["BagelLoad"]
    kept = handle(REPOSITORY)
    assert (kept.checkpoint, node.IS_CHANGED(checkpoint=REPOSITORY)) == (REPOSITORY, "")
    bagel = kept.load(package.bridge.Watch("5"))
    downloading, loading = inside.bars
    size = sum(path.stat().st_size for path in GOLDEN.iterdir() if path.is_file())
    assert downloading.seen[-1] == (size >> 20, max(1, size >> 20))
    assert loading.seen[-1][0] == loading.seen[-1][1]
    assert inside.texts[-1][1] == "5"
    assert inside.texts[-1][0].startswith("downloading: ")
    assert {path.name: path.read_bytes() for path in (folder / REPOSITORY).iterdir()} == hub.files
    assert not Path(constants.HF_HUB_CACHE).exists()
    assert package.places.listed() == [REPOSITORY]
    assert handle(REPOSITORY).load() is bagel, "nothing is loaded a second time"
    assert node.IS_CHANGED(checkpoint=REPOSITORY) == ""
    hub.requests.clear()
    OWNER.unload()
    package.places._CAME.clear()  # ComfyUI is started again
    assert package.places.listed() == [REPOSITORY]
    assert handle(REPOSITORY).load() is not bagel
    assert hub.requests == []


def test_a_download_that_is_stopped_leaves_nothing_half_and_goes_on(
    hub: FakeHub, folder: Path, inside: Inside, before: int
) -> None:
    weights = "ema.safetensors"
    size = len(hub.files[weights])
    kept = handle(str(GOLDEN))
    kept.load()
    inside.stop_after = inside.checks + 20  # of pieces of 10 kB
    with pytest.raises(Stopped):
        handle(REPOSITORY).load(package.bridge.Watch())
    assert package.places.listed() == []
    assert [path.name for path in (folder / "owner").iterdir()] == ["name.incomplete"]
    assert alive() == before + 1, "the model that was there stays until the other is here"
    handle(REPOSITORY).load(package.bridge.Watch())
    assert [path.name for path in (folder / "owner").iterdir()] == ["name"]
    assert all(first > 0 for first in hub.received(weights)[1:])
    assert hub.sent[weights] < 2 * size
    assert package.places.listed() == [REPOSITORY]


def test_what_the_hub_s_cache_holds_is_not_downloaded_again(hub: FakeHub, folder: Path, inside: Inside) -> None:
    cached = download(REPOSITORY)
    hub.requests.clear()
    assert package.places.fetched(REPOSITORY, lambda done, total: None) == str(cached)
    assert not folder.exists()
    assert not any(method == "GET" and "resolve" in path for method, path, _ in hub.requests)


def test_a_checkpoint_that_cannot_be_had_is_named(hub: FakeHub, folder: Path) -> None:
    hub.down = 503
    with pytest.raises(CheckpointError, match="answered 503 when asked for owner/name"):
        handle(REPOSITORY).load()
    assert not folder.exists()


def test_loading_shows_how_far_it_is_and_can_be_stopped(inside: Inside, before: int) -> None:
    kept = handle(str(GOLDEN))
    kept.load(package.bridge.Watch())
    (bar,) = inside.bars
    assert bar.seen[-1] == (bar.total, bar.total)
    assert [done for done, _ in bar.seen] == sorted(done for done, _ in bar.seen)
    asked = inside.checks
    assert asked > 50, "it is asked after each tensor"
    OWNER.unload()
    inside.stop_after = inside.checks + asked // 2
    with pytest.raises(Stopped):
        kept.load(package.bridge.Watch())
    assert alive() == before
    assert OWNER.handle is None
    (images,) = call("BagelGenerate", model=kept, prompt="a red sun", seed=0, count=1, settings=QUICK)
    assert images.std() > 0.05
    assert [bar.total for bar in inside.bars[-2:]] == [bar.total, QUICK["num_timesteps"] - 1]


def test_a_run_is_stopped_while_its_model_loads_and_the_next_one_goes_on(inside: Inside, before: int) -> None:
    executor, prompt = comfy.Executor(ALL), short()
    inside.stop_after = 3
    with pytest.raises(Stopped):
        executor.run(prompt)
    assert executor.events[-2:] == [("executing", "4"), ("execution_interrupted", "4")], "the first node that reads"
    assert alive() == before
    executor.run(prompt)
    cached = [("execution_cached", number) for number in ("1", "3")]
    ran = [("executing", number) for number in ("4", "2", "5", "6")]
    assert executor.events == [("execution_start", None), *cached, *ran, ("executed", "6"), ("executing", None)]


def test_a_model_can_be_loaded_for_a_part_of_the_tasks(inside: Inside) -> None:
    node = NODES["BagelLoad"]()
    (answers,) = node.load("mini", "cpu", "float32", tasks="answer")
    assert answers != handle()
    bagel: Any = answers.load()
    assert bagel.checkpoint.tasks == ("understand",)
    with pytest.raises(SettingError, match="loaded"):
        call("BagelGenerate", model=answers, prompt="a red sun", seed=0, count=1)
