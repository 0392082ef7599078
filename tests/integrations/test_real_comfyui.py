"""The nodes in ComfyUI itself, from a clone in its folder of nodes: found, described, run, stopped, and let go."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bagel_mot.inference.loading import find_checkpoint
from tests.integrations import comfy, real_comfyui
from tests.integrations.pack import ALL, NODES, workflow

pytestmark = pytest.mark.slow
DRAWN = [path.stem for path in comfy.WORKFLOWS if path.stem != "official_int8"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("comfyui")
    try:
        comfyui, packages = real_comfyui.install(folder)
    except real_comfyui.NotToBeHadError as error:
        pytest.skip(f"ComfyUI cannot be installed here: {error}")
    real_comfyui.clone_into(comfyui)
    disk = folder / "disk"
    shutil.copytree(find_checkpoint("mini"), disk / "owner" / "mine")
    (comfyui / "extra_model_paths.yaml").write_text(f"mine:\n  bagel: {disk}\n")
    return comfyui, packages


@pytest.fixture(scope="module")
def server(installed: tuple[Path, Path]) -> Iterator[real_comfyui.Server]:
    with real_comfyui.running(*installed) as started:
        yield started


def outcome(server: real_comfyui.Server, ran: dict[str, Any]) -> dict[str, Any]:
    """What a prompt has shown: texts and pixels by the number of the node."""
    assert ran["history"]["status"]["status_str"] == "success", ran
    shown: dict[str, Any] = {}
    for number, output in ran["history"]["outputs"].items():
        if "images" in output:
            paths = [
                server.folder / image["type"] / image["subfolder"] / image["filename"] for image in output["images"]
            ]
            shown[number] = [np.asarray(Image.open(path)) for path in paths]
        else:
            shown[number] = output["text"]
    return shown


def test_the_clone_is_found_and_described(server: real_comfyui.Server) -> None:
    assert server.get("/system_stats")["system"]["comfyui_version"] == real_comfyui.VERSION
    described = server.get("/object_info")
    found = {name: node for name, node in described.items() if node["python_module"] == "custom_nodes.bagel-mot"}
    assert found.keys() == NODES.keys()
    for name, node in found.items():
        known = comfy.inputs_of(NODES[name])
        assert [*node["input"]["required"], *node["input"].get("optional", {})] == list(known)
        assert node["output_tooltips"] == list(NODES[name].OUTPUT_TOOLTIPS)
    names = found["BagelLoad"]["input"]["required"]["checkpoint"][0]
    assert names == ["mini", "owner/mine", "ByteDance-Seed/BAGEL-7B-MoT"]
    log = server.log.read_text(encoding="utf-8")
    assert "IMPORT FAILED: /" not in log
    assert "Unable to parse pyproject.toml" not in log


def test_templates_help_and_chinese_are_served(server: real_comfyui.Server) -> None:
    assert sorted(server.get("/workflow_templates")["bagel-mot"]) == [path.stem for path in comfy.WORKFLOWS]
    for path in comfy.WORKFLOWS:
        assert server.get(f"/api/workflow_templates/bagel-mot/{path.name}") == json.loads(path.read_text())
        assert server.read(f"/api/workflow_templates/bagel-mot/{path.stem}.jpg")[:2] == b"\xff\xd8"
    assert server.get("/i18n")["zh"]["nodeDefs"]["BagelLoad"]["display_name"] == "BAGEL 加载"
    for node in NODES:
        assert server.read(f"/extensions/bagel-mot/docs/{node}.md").startswith(b"# BAGEL")
        assert server.read(f"/extensions/bagel-mot/docs/{node}/zh.md").startswith(b"# BAGEL")


@pytest.mark.parametrize("name", DRAWN)
def test_workflows_run_as_in_the_stand_in(server: real_comfyui.Server, name: str) -> None:
    prompt = workflow(name)
    ran = server.run(prompt)
    shown, expected = outcome(server, ran), comfy.Executor(ALL).run(prompt)
    assert shown.keys() == expected.keys()
    for number, output in expected.items():
        if "images" in output:
            pictures = (output["images"] * 255).round().numpy().astype(int)
            assert np.abs(np.stack(shown[number]).astype(int) - pictures).max() <= 8
            assert np.abs(np.stack(shown[number]).astype(int) - pictures).mean() < 0.05
        else:
            assert list(shown[number]) == [output["source"]]
    kinds = [kind for kind, _ in ran["events"]]
    assert "progress_state" in kinds
    draws = any("images" in output for output in expected.values())
    assert (ran["previews"] > 0) == draws
    if name == "think":
        assert ran["texts"]
    again = server.run(prompt)
    assert [kind for kind, node in again["events"] if kind == "executing" and node is not None] == []


def test_a_checkpoint_of_extra_model_paths_runs(server: real_comfyui.Server) -> None:
    prompt = workflow("text_to_image")
    prompt["1"]["inputs"]["checkpoint"] = "owner/mine"
    assert outcome(server, server.run(prompt))


def test_free_and_other_models_let_the_model_go(server: real_comfyui.Server) -> None:
    prompt = workflow("ask")
    server.run(prompt)
    for flags in ({"unload_models": True}, {"unload_models": True, "free_memory": True}):
        server.run(prompt)
        prompt["4"]["inputs"]["seed"] += 1
        outcome(server, server.run(prompt))
        assert server.models() == 1
        server.post("/free", flags)
        for _ in range(50):
            if server.models() == 0:
                break
        assert server.models() == 0
    prompt["4"]["inputs"]["seed"] += 1
    server.run(prompt)
    assert server.models(free=1e6) == 1, "there is room for both"
    assert server.models(free=1e15) == 0


def test_a_run_is_stopped_and_the_next_one_goes_on(server: real_comfyui.Server) -> None:
    prompt = workflow("text_to_image")
    number = next(n for n, node in prompt.items() if node["class_type"] == "BagelGenerate")
    prompt[number]["inputs"] |= {"seed": 77, "count": 8}
    stopped = server.run(prompt, interrupt_at="progress")
    assert stopped["events"][-1][0] == "execution_interrupted"
    assert stopped["history"]["outputs"] == {}
    prompt[number]["inputs"]["count"] = 1
    assert outcome(server, server.run(prompt))


def test_what_is_wrong_is_said_in_a_sentence(server: real_comfyui.Server) -> None:
    prompt = workflow("text_to_image")
    prompt["1"]["inputs"]["checkpoint"] = "no/where"
    number = next(n for n, node in prompt.items() if node["class_type"] == "BagelGenerate")
    prompt[number]["inputs"]["seed"] = 5
    messages = server.run(prompt)["history"]["status"]["messages"]
    (error,) = [told for kind, told in messages if kind == "execution_error"]
    assert error["exception_message"].startswith("no/where is not in the cache, and HF_HUB_OFFLINE forbids")


@pytest.mark.parametrize("options", [("--cache-lru", "20"), ("--cache-ram", "0.1"), ("--cache-none",)])
def test_one_model_is_in_memory_in_every_mode_of_the_cache(
    installed: tuple[Path, Path], options: tuple[str, ...]
) -> None:
    with real_comfyui.running(*installed, *options) as started:
        prompt = workflow("ask")
        for precision in ("float32", "bfloat16", "float32"):
            prompt["1"]["inputs"]["precision"] = precision
            outcome(started, started.run(prompt))
            assert started.models() == (0 if options == ("--cache-none",) else 1)
