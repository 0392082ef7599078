"""`--from`, `--out` and `--naming`: results as of single requests, going on where a run was broken off, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from bagel_mot import Bagel
from bagel_mot.cli import app
from bagel_mot.inference.engine.engine import Engine

CHECKPOINT = str(Path(__file__).parents[1] / "golden" / "checkpoint")
FEW = ("--size", "32x32", "--num-timesteps", "2")


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def bagel() -> Bagel:
    return Bagel.from_pretrained(CHECKPOINT, device="cpu")


def run(*arguments: object, input: str | None = None) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments), "-c", CHECKPOINT], input=input)


def good(*arguments: object, input: str | None = None) -> str:
    result = run(*arguments, input=input)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object, input: str | None = None) -> str:
    result = run(*arguments, input=input)
    assert result.exit_code == 2, result.output
    [line] = result.stderr.splitlines()
    return line


def write(name: str, *rows: Any) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def entries(folder: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, "results.jsonl").read_text().splitlines()]


def difference(path: str | Path, image: Image.Image) -> int:
    """The largest difference of two images in levels of 255."""
    pixels = (np.asarray(one.convert("RGB"), dtype=int) for one in (Image.open(path), image))
    return int(np.abs(np.subtract(*pixels)).max())


def same(path: str | Path, image: Image.Image) -> bool:
    return difference(path, image) == 0


def test_results_are_those_of_single_requests(bagel: Bagel) -> None:
    source = write("list.jsonl", {"prompt": "x", "seed": 5, "n": 2, "num_timesteps": 3}, {"prompt": "y"})
    shown = good("generate", "--from", source, "--out", "o", "--seed", 1, *FEW, "--batch", 2, "--json", "all.json")
    assert [Path(line.split()[0]).name for line in shown.splitlines()].count("00002.png") == 1
    few: dict[str, Any] = {"size": (32, 32)}
    for name, prompt, seed, steps in (("00001-1", "x", 5, 3), ("00001-2", "x", 6, 3), ("00002", "y", 1, 2)):
        assert same(f"o/{name}.png", bagel.generate(prompt, seed=seed, num_timesteps=steps, **few))
    listing = json.loads(Path("all.json").read_text())
    assert [(one["id"], one["line"], one["seed"]) for one in listing] == [
        ("00001-1.png", 1, 5),
        ("00001-2.png", 1, 6),
        ("00002.png", 2, 1),
    ]
    assert Image.open("o/00002.png").info["prompt"] == "y"


def test_a_list_that_was_broken_off_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    source = write("list.jsonl", *({"prompt": f"x {i}", "seed": i} for i in range(3)))
    options = ("generate", "--from", source, "--out", "o", *FEW)
    good(*options)
    first = {path.name: path.read_bytes() for path in Path("o").glob("*.png")}
    stamps = {name: Path("o", name).stat().st_mtime_ns for name in first}
    lines = Path("o/results.jsonl").read_text().splitlines(keepends=True)
    # As a kill leaves it: an image is missing, another was being drawn, and the last line is half-written.
    Path("o/00002.png").unlink()
    Path("o/results.jsonl").write_text("".join(lines[:2]) + lines[2][:40])
    Path("o/00003.png").unlink()
    shown = good(*options, "--json", "-")
    assert [one["id"] for one in json.loads(shown)] == sorted(first)
    assert {path.name: path.read_bytes() for path in Path("o").glob("*.png")} == first
    assert Path("o/00001.png").stat().st_mtime_ns == stamps["00001.png"]
    # With everything there, no model is loaded.
    monkeypatch.setattr("bagel_mot.cli.lists.load", None)
    assert "3 of 3 are in o already" in run(*options).stderr


@pytest.mark.parametrize("change", [("--seed", 9), ("--precision", "bfloat16"), ("--cfg-text-scale", 2)])
def test_images_of_other_requests_are_not_taken_nor_lost(change: tuple[object, ...]) -> None:
    source = write("list.jsonl", {"prompt": "x"}, {"prompt": "y", "seed": 4, "cfg_text_scale": 1})
    options = ("generate", "--from", source, "--out", "o", *FEW)
    good(*options, "--seed", 3)
    before = Path("o/00001.png").read_bytes()
    said = refused(*options, *(() if change[0] == "--seed" else ("--seed", 3)), *change)
    assert said.startswith("bagel: line 1: o/00001.png")
    assert "--redraw" in said
    assert Path("o/00001.png").read_bytes() == before


def test_redrawing_replaces_what_differs_alone() -> None:
    source = write("list.jsonl", {"prompt": "x"}, {"prompt": "y", "seed": 4})
    options = ("generate", "--from", source, "--out", "o", *FEW)
    good(*options, "--seed", 3)
    before = {name: Path("o", name).read_bytes() for name in ("00001.png", "00002.png")}
    shown = good(*options, "--seed", 5, "--redraw")
    assert [line.split()[0] for line in shown.splitlines()] == [str(Path("o/00001.png"))]
    assert Path("o/00001.png").read_bytes() != before["00001.png"]
    assert Path("o/00002.png").read_bytes() == before["00002.png"]


def test_edits_take_images_of_the_line_or_of_the_command(bagel: Bagel) -> None:
    for name, color in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (32, 32), color).save(name)
    text = '{"instruction": "x", "seed": 1, "image": "b.png"}\n{"prompt": "y", "seed": 1}\n'
    good("edit", "a.png", "--from", "-", "--out", "o", "--num-timesteps", 2, input=text)
    for name, image, instruction in (("00001", "b.png", "x"), ("00002", "a.png", "y")):
        # Edits that run together may differ by a level from those that run alone.
        assert difference(f"o/{name}.png", bagel.edit(image, instruction, seed=1, num_timesteps=2)) <= 1
        assert difference(f"o/{name}.png", bagel.edit(image, instruction, seed=2, num_timesteps=2)) > 1
    # Another image under the same name is another request.
    Image.new("RGB", (32, 32), "green").save("a.png")
    said = refused("edit", "a.png", "--from", "-", "--out", "o", "--num-timesteps", 2, input=text)
    assert "line 2" in said


def test_the_layout_of_geneval() -> None:
    rows = [
        {"tag": "single_object", "include": [{"class": word, "count": 1}], "prompt": word} for word in ("cup", "car")
    ]
    source = write("evaluation_metadata.jsonl", *rows)
    good("generate", "--from", source, "--out", "o", "--naming", "geneval", "-n", 2, *FEW)
    files = sorted(str(path.relative_to("o")) for path in Path("o").rglob("*") if path.is_file())
    assert files == [
        "00000/metadata.jsonl",
        "00000/samples/00000.png",
        "00000/samples/00001.png",
        "00001/metadata.jsonl",
        "00001/samples/00000.png",
        "00001/samples/00001.png",
        "results.jsonl",
    ]
    assert json.loads(Path("o/00001/metadata.jsonl").read_text()) == rows[1]


def test_the_layout_of_gedit() -> None:
    Image.new("RGB", (40, 32), "red").save("a.png")
    row = {"key": "k", "task_type": "style_change", "instruction_language": "en", "instruction": "x"}
    source = write("list.jsonl", {**row, "input_image": "a.png"})
    good("edit", "--from", source, "--out", "o", "--naming", "gedit", "--num-timesteps", 2)
    assert same("o/fullset/style_change/en/k_SRCIMG.png", Image.open("a.png"))
    assert Path("o/fullset/style_change/en/k.png").is_file()


def test_questions(bagel: Bagel) -> None:
    Image.new("RGB", (32, 32), "red").save("a.png")
    row = {"question": "What?", "image": "a.png", "max_new_tokens": 3}
    source = write("list.jsonl", row, {"prompt": "Why?"}, row)
    good("ask", "--from", source, "--out", "o", "--max-new-tokens", 4)
    by_line = {one["line"]: one["text"] for one in entries("o")}
    assert by_line[1] == by_line[3] == bagel.ask("a.png", "What?", max_new_tokens=3)
    assert by_line[2] == bagel.ask(None, "Why?", max_new_tokens=4)
    shown = good("ask", "--from", source, "--out", "o", "--max-new-tokens", 4, "--json", "-")
    assert [one["line"] for one in json.loads(shown)] == [1, 2, 3]
    assert len(entries("o")) == 3


def test_nothing_runs_if_a_line_cannot() -> None:
    Path("bad.png").write_bytes(b"no image at all, but long enough to be one")
    source = write("list.jsonl", {"prompt": "x", "size": "32x32"}, {"prompt": "y", "size": "33x32"})
    assert "line 2: " in refused("generate", "--from", source, "--out", "o", "--num-timesteps", 2)
    source = write("list.jsonl", {"prompt": "x", "image": "bad.png"})
    assert "line 1: " in refused("edit", "--from", source, "--out", "o", "--num-timesteps", 2)
    assert not list(Path("o").rglob("*.png"))


def test_what_was_made_before_an_error_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    source = write("list.jsonl", *({"prompt": f"x {i}", "seed": i} for i in range(2)))
    options = ("generate", "--from", source, "--out", "o", *FEW, "--batch", 1)
    step, steps = Engine.step, iter(range(1000))

    def break_off(engine: Engine) -> None:
        if Path("o/00001.png").exists() and next(steps) > 0:
            raise KeyboardInterrupt
        step(engine)

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "step", break_off)
        assert run(*options).exit_code == 130
    assert [path.name for path in Path("o").iterdir() if path.suffix == ".png"] == ["00001.png"]
    assert [line.split()[0] for line in good(*options).splitlines()] == [str(Path("o/00002.png"))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate",), "a prompt is missing"),
        (("edit",), "the instruction is missing"),
        (("ask",), "the question is missing"),
        (("generate", "x", "--from", "list.jsonl", "--out", "o"), "leave one of them"),
        (("ask", "x", "--from", "list.jsonl", "--out", "o"), "leave one of them"),
        (("generate", "--from", "list.jsonl"), "--from needs a folder"),
        (("generate", "x", "--out", "o"), "--out is the folder for the results of a file"),
        (("generate", "x", "--naming", "geneval"), "--naming and --redraw are for the pictures of a file"),
        (("generate", "--from", "list.jsonl", "--out", "o", "-o", "x.png"), "--output is the file of one picture"),
        (("generate", "--from", "list.jsonl", "--out", "o", "--naming", "x"), "there is no naming 'x'"),
        (("generate", "--from", "list.jsonl", "--out", "list.jsonl"), "give another output folder"),
        (("generate", "--from", "-", "--out", "o"), "standard input, which is empty"),
    ],
)
def test_options_that_do_not_fit(arguments: tuple[str, ...], message: str) -> None:
    write("list.jsonl", {"prompt": "x"})
    assert message in refused(*arguments, input="")


def test_a_folder_with_another_file_of_that_name_is_refused() -> None:
    Path("o").mkdir()
    Path("o/results.jsonl").write_text('{"accuracy": 1}\n')
    source = write("list.jsonl", {"prompt": "x"})
    assert "line 1 is no result of a list" in refused("generate", "--from", source, "--out", "o", *FEW)
