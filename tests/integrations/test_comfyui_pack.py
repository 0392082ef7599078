"""The repository as a node pack of ComfyUI: what is found in its root, and what it needs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from bagel_mot.version import __version__
from tests.integrations import comfy
from tests.integrations.pack import NODES, clone, package
from tools import comfyui_texts as texts

PROJECT = tomllib.loads((comfy.PACK / "pyproject.toml").read_text(encoding="utf-8"))


def test_a_clone_of_the_repository_is_a_pack(tmp_path: Path) -> None:
    """ComfyUI finds in its root what it looks for there, in a process that knows of no other bagel_mot."""
    (tmp_path / "bagel.mot").mkdir()
    for name in ("__init__.py", "requirements.txt", "pyproject.toml", "bagel_mot", "integrations"):
        (tmp_path / "bagel.mot" / name).symlink_to(comfy.PACK / name)
    script = (
        "import importlib.util, pathlib, sys\n"
        "stand_in, pack = map(pathlib.Path, sys.argv[1:])\n"
        "spec = importlib.util.spec_from_file_location('stand_in', stand_in)\n"
        "comfy = sys.modules['stand_in'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(comfy)\n"
        "before = sys.path[:]\n"
        "clone = comfy.load_pack(pack, '/custom_nodes/bagel_x_mot')\n"
        "print(len(clone.NODE_CLASS_MAPPINGS), sys.modules['bagel_mot'].__file__)\n"
        "assert sys.path == before\n"
    )
    command = [sys.executable, "-I", "-c", script, comfy.__file__, str(tmp_path / "bagel.mot")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, file = done.stdout.split()
    assert int(count) == len(NODES) == 14
    assert Path(file).parent == tmp_path / "bagel.mot" / "bagel_mot", "the package of the clone, and no other one"


def test_to_all_others_the_root_is_empty() -> None:
    spec = importlib.util.spec_from_file_location("root_of_the_repository", comfy.PACK / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    assert "folder_paths" not in sys.modules
    spec.loader.exec_module(module)
    assert not hasattr(module, "NODE_CLASS_MAPPINGS")


def test_the_requirements_are_those_of_the_package_but_pytorch() -> None:
    lines = (comfy.PACK / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if not line.startswith("#")]
    assert wanted == [line for line in PROJECT["project"]["dependencies"] if not line.startswith("torch")]
    assert len(wanted) == len(PROJECT["project"]["dependencies"]) - 1


def test_the_pack_describes_itself_to_comfyui_s_registry() -> None:
    described = PROJECT["tool"]["comfy"]
    assert described["PublisherId"]
    # The registry's tool reads the version there by this pattern.
    text = (comfy.PACK / described["version"]["path"]).read_text(encoding="utf-8")
    assert re.findall(r"^__version__ = \"([^\"]*)\"", text, re.MULTILINE) == [__version__]


# ---------------------------------------------------------------------------------------------- what is wrong is said


def load_again() -> ModuleType:
    """Loads the pack anew, under another name."""
    return comfy.load_pack(name="custom_nodes_again")


def test_what_is_missing_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def found(name: str) -> str:
        if name == "rich":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.19.2" if name == "tokenizers" else version(name)

    monkeypatch.setattr(importlib.metadata, "version", found)
    needs = "need tokenizers 0.21 or later, rich 13.9 or later in ComfyUI's Python: run `.* -m pip install -r .*txt`"
    with pytest.raises(ImportError, match=needs):
        load_again()


def test_an_old_pytorch_is_named_and_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.8.0+cu128")
    needs = r"need PyTorch 2\.9\.1 or later, and ComfyUI's Python has 2\.8\.0\+cu128: update ComfyUI's own"
    with pytest.raises(ImportError, match=needs):
        load_again()


def test_another_version_of_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    other: Any = ModuleType("bagel_mot")
    other.__version__, other.__file__ = "0.1.9", "/else/where.py"
    monkeypatch.setitem(sys.modules, "bagel_mot", other)
    with pytest.raises(
        ImportError, match=f"of version {__version__}, but bagel_mot 0.1.9 was imported already from /else"
    ):
        load_again()


def test_nodes_without_their_repository_say_so(tmp_path: Path) -> None:
    shutil.copytree(comfy.PACK / "integrations" / "comfyui", tmp_path / "a" / "b" / "nodes")
    with pytest.raises(ImportError, match="need the folder bagel_mot of their repository, and .* has none: clone"):
        comfy.load_pack(tmp_path / "a" / "b" / "nodes", "custom_nodes_alone")


# ------------------------------------------------------------------------------------------------- languages and help


def chinese(text: str) -> bool:
    return re.search("[\u4e00-\u9fff]", text) is not None


def test_every_node_input_and_output_has_a_chinese_name() -> None:
    found = json.loads(texts.LOCALES.read_text(encoding="utf-8"))
    assert found == texts.locale(NODES), "run tools/comfyui_texts.py"
    for name, node in found.items():
        known = comfy.inputs_of(NODES[name])
        assert node["inputs"].keys() == known.keys()
        assert list(node["outputs"]) == [str(number) for number in range(len(NODES[name].RETURN_TYPES))]
        named = [node["display_name"], node["description"]]
        for each in (*node["inputs"].values(), *node["outputs"].values()):
            named += [each["name"], each["tooltip"]]
        assert {text for text in named if not chinese(text)} <= {"Top k", "Top p"}


def test_every_node_has_its_pages_of_help() -> None:
    """Where the front end looks: docs/NODE/LANGUAGE.md, then docs/NODE.md."""
    docs = comfy.PACK / clone.WEB_DIRECTORY / "docs"
    written = {path.relative_to(docs).as_posix(): path.read_text(encoding="utf-8") for path in docs.rglob("*.md")}
    assert written == texts.pages(NODES, package.NODE_DISPLAY_NAME_MAPPINGS), "run tools/comfyui_texts.py"
    assert written.keys() == {f"{node}{end}" for node in NODES for end in (".md", "/zh.md")}
    for node in NODES:
        english, translated = written[f"{node}.md"], written[f"{node}/zh.md"]
        assert not chinese(english)
        assert chinese(translated)
        for name in comfy.inputs_of(NODES[node]):
            assert f"`{name}`" in english
            assert f"`{name}`" in translated
