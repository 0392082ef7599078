"""The pages of docs/: their commands run, their tables and signatures are those of the code, the site builds."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import inspect
import io
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from PIL import Image

import bagel_mot.errors
from bagel_mot import Bagel, BagelError, Session
from bagel_mot.inference.result import Result
from bagel_mot.inference.settings import SETTINGS
from bagel_mot.worlds.mini.draw import draw
from bagel_mot.worlds.mini.sampling import sample_scene

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = ("index", "getting-started", "settings", "official", "precision", "python", "faq", "adapters")
LESSONS = ("teach-a-thing", "teach-an-edit", "teach-a-question")
SERVERS = ("http", "serving")
LANGUAGES = {"sh", "bash", "powershell", "python", "yaml", "json", "text", "ini", "nginx"}
# A lesson's commands are run as they stand but for these values, which make its training a miniature.
MINIATURE = " compile=false steps=2 pack.latents=16 save_every=2 sample_every=2 schedule.warmup=1 schedule.decay=1"
# What a block that is not run may hold: nothing but these needs more than this package and its embedded model.
NEEDS_MORE = (
    "ByteDance-Seed/BAGEL-7B-MoT",
    "--config 7b-mot",
    "pip install",
    "-m venv",
    ".venv/bin/activate",
    ".venv\\Scripts\\bagel",
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    run: bool
    code: str


def text_of(page: str) -> str:
    return (DOCS / f"{page}.md").read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page: ```LANGUAGE, or ```{ .LANGUAGE .no-run }."""
    found = []
    for head, code in re.findall(r"^```([^\n]*)\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL):
        words = head.strip("{} ").replace(".", "").split()
        assert len(words) == 1 or words[1:] == ["no-run"], f"{page}.md: ```{head}"
        found.append(Block(words[0], len(words) == 1, code))
    return found


# ---------------------------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize("page", PAGES)
def test_only_what_needs_more_is_not_run(page: str) -> None:
    for block in blocks(page):
        if block.run:
            assert block.language in ("sh", "python")
            assert not any(word in block.code for word in NEEDS_MORE)
        else:
            for line in block.code.splitlines():
                assert any(word in line for word in NEEDS_MORE), f"{page}.md: {line}"


@pytest.mark.parametrize("page", [*PAGES, *LESSONS, *SERVERS])
def test_every_fence_is_of_a_block(page: str) -> None:
    """The slow tests run the blocks that are found: none may be overlooked."""
    found = blocks(page)
    fences = [line for line in text_of(page).splitlines() if line.lstrip().startswith("```")]
    assert len(fences) == 2 * len(found) > 0
    assert {block.language for block in found} <= LANGUAGES


@pytest.mark.parametrize("page", LESSONS)
def test_a_lesson_trains_once_and_uses_what_came_out(page: str) -> None:
    commands = [block.code for block in blocks(page) if block.language == "sh"]
    assert sum("train finetune/" in command for command in commands) == 1
    (folder,) = set(re.findall(r"output=(runs/[\w-]+)", " ".join(commands)))
    assert sum(f"--adapter {folder}" in command for command in commands) > 0


def test_no_page_is_without_its_commands() -> None:
    assert {page: sum(block.run for block in blocks(page)) > 0 for page in PAGES} == dict.fromkeys(PAGES, True)
    unmarked = {path.stem for path in DOCS.glob("*.md")} - {*PAGES}
    assert not any(".no-run" in text_of(page) for page in unmarked)


@pytest.mark.slow
@pytest.mark.parametrize("page", [*PAGES, *SERVERS])
def test_the_commands_of_a_page_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, in one folder; Python blocks share their names."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "golden").symlink_to(ROOT / "tests" / "golden")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # a block that would download is to fail at once
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if not block.run or block.language not in ("python", "sh"):
            continue
        if block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(block.code, f"{page}.md", "exec"), names)
        else:
            done = subprocess.run(["bash", "-euo", "pipefail", "-c", block.code], capture_output=True, text=True)
            assert done.returncode == 0, f"{page}.md:\n{block.code}\n{done.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("page", LESSONS)
def test_the_commands_of_a_lesson_run_in_miniature(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, in a folder that has the examples and the images that the page speaks of."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for name in ("car.png", "scene.png"):
        draw(sample_scene(random.Random(name))).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    commands = [block.code.strip() for block in blocks(page) if block.language == "sh"]
    assert sum("train finetune/" in command for command in commands) == 1
    for command in commands:
        small = command + MINIATURE if "train finetune/" in command else command
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", small], capture_output=True, text=True)
        assert done.returncode == 0, f"{page}.md:\n{small}\n{done.stderr}"
    assert list((tmp_path / "runs").glob("*/step-00000002/adapter_model.safetensors"))


# ---------------------------------------------------------------------------------------------------------- settings


def test_every_setting_has_its_section() -> None:
    headings = [line for line in text_of("settings").splitlines() if line.startswith("### ")]
    named = [name for heading in headings for name in re.findall(r"\w*[a-z]\w*", heading) if name != "and"]
    assert sorted(named) == sorted(SETTINGS)


@pytest.fixture(scope="module")
def images() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_pictures", DOCS / "make_pictures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_sheet_is_shown_and_there(images: ModuleType) -> None:
    shown = set(re.findall(r"\(images/settings/(\w+)\.png\)", text_of("settings")))
    there = {path.stem for path in images.FOLDER.iterdir()}
    assert shown == there == images.SHEETS.keys(), "run python docs/make_pictures.py"


def test_a_sheet_is_drawn_anew(images: ModuleType, tmp_path: Path) -> None:
    images.main(["think", "--output", str(tmp_path)])
    with Image.open(tmp_path / "think.png") as new, Image.open(images.FOLDER / "think.png") as old:
        assert new.size == old.size
    with pytest.raises(SystemExit):
        images.main(["nothing", "--output", str(tmp_path)])


def test_a_sheet_has_a_cell_for_each_pair_of_values(images: ModuleType) -> None:
    asked: dict[str, Any] = {}

    def draw(**settings: Any) -> list[Image.Image]:
        asked.update(settings)
        return [Image.new("RGB", (4, 4), (40 * number, 0, 0)) for number in range(6)]

    image = images.grid(draw, ("seed", [0, 1]), ("cfg_interval", [(0, 1), (0.4, 1), (0.7, 1)]), size=(4, 4))
    assert asked == {
        "seed": [0, 0, 0, 1, 1, 1],
        "cfg_interval": [(0, 1), (0.4, 1), (0.7, 1)] * 2,
        "size": (4, 4),
    }
    colours = {colour for _, colour in image.getcolors(10**6)}
    assert {(40 * number, 0, 0) for number in range(6)} <= colours


# ------------------------------------------------------------------------------------------------- Python reference


def sections() -> dict[str, str]:
    """The text of each `### ` section of the reference, by its heading."""
    parts = re.split(r"^### `(.*)`\n", text_of("python"), flags=re.MULTILINE)
    bodies = [re.split(r"^## ", body, flags=re.MULTILINE)[0] for body in parts[2::2]]
    return dict(zip(parts[1::2], bodies, strict=True))


def shown_signature(function: Any) -> str:
    """Names and defaults of the parameters, as the reference shows them."""
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name != "self"
    ]
    return str(inspect.Signature(parameters))


def test_the_reference_shows_the_signatures_as_they_are() -> None:
    shown = sections()
    classes = {"Bagel": Bagel, "Session": Session}
    documented = {head.partition("(")[0] for head in shown}
    for head, body in shown.items():
        owner, _, rest = head.partition(".")
        name = rest.partition("(")[0]
        member = getattr(classes[owner], name)
        if not callable(member):
            assert rest == name
            continue
        assert f"{name}{shown_signature(member)}" == rest
        told = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^- (.*?):", body, re.MULTILINE))))
        assert told == set(inspect.signature(member).parameters) - {"self"}
    wanted = {f"Session.{name}" for name in vars(Session) if not name.startswith("_")}
    wanted |= {f"Bagel.{name}" for name in ("from_pretrained", "generate", "edit", "ask", "interleave", "session")}
    assert wanted <= documented


def test_the_reference_names_every_error_and_attribute() -> None:
    text = text_of("python")
    classes = {name: value for name, value in vars(bagel_mot.errors).items() if inspect.isclass(value)}
    errors = {name for name, value in classes.items() if issubclass(value, BagelError) and value is not BagelError}
    assert set(re.findall(r"^\| `(\w+Error)` \|", text, re.MULTILINE)) == errors
    attributes = re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE)
    assert attributes == [field.name for field in dataclasses.fields(Result)]


# --------------------------------------------------------------------------------------------------------- the tour


def test_the_tour_names_files_that_are_there() -> None:
    named = set(re.findall(r"`([a-z_]+(?:/[a-z0-9_]+)*(?:\.py|/))`", text_of("architecture")))
    package = Path(bagel_mot.errors.__file__).parent
    assert len(named) > 40
    assert not {name for name in named if not (ROOT / name).exists() and not any(package.rglob(name.rstrip("/")))}


# -------------------------------------------------------------------------------------------------------- the site


def test_every_page_is_in_the_navigation() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def pages(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        values = entry.values() if isinstance(entry, dict) else entry
        return [page for value in values for page in pages(value)]

    written = {path.name for path in DOCS.iterdir() if path.suffix in (".md", ".ipynb")}
    internal = set(config["not_in_nav"].split())
    assert internal == {"log.md", "gpu-worklist.md"}
    assert sorted(pages(config["nav"])) == sorted(written - internal)


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    """Every warning, such as a link to nowhere, is an error."""
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in PAGES:
        html = (site / ("index.html" if page == "index" else f"{page}/index.html")).read_text(encoding="utf-8")
        assert "<h1" in html
        assert "```" not in html, f"{page}: a block was not understood"
    for page in site.rglob("*.html"):
        fetched = re.findall(
            r'<(?:script|link|img)[^>]*(?:src|href)="(https?://[^"]+)"', page.read_text(encoding="utf-8")
        )
        assert not fetched, f"{page.name} asks other servers"
    assert 'md-component="source"' not in html  # the theme's own link asks GitHub for its stars
    comfyui = (site / "comfyui" / "index.html").read_text(encoding="utf-8")
    assert "BAGEL Text to Image" in comfyui
    assert 'href="../settings/"' in comfyui
    assert (site / "images" / "settings" / "think.png").is_file()
    assert not list(site.rglob("*.py"))


@pytest.mark.slow
def test_a_link_to_nowhere_breaks_the_build(tmp_path: Path) -> None:
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    shutil.copytree(ROOT / "integrations", tmp_path / "integrations")
    (tmp_path / "docs" / "faq.md").write_text("# Questions\n\n[gone](nowhere.md)\n", encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr


def test_the_field_trial_names_tests_that_are_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text_of("field-trial"))
    assert len(named) > 80
    for path, test in named:
        assert f"def {test}" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{test}"
