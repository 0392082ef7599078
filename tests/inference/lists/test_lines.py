"""Reading lists of requests: what lines mean, how images are named, and what is refused by the number of its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bagel_mot.errors import BagelError, DataError, SettingError
from bagel_mot.inference.lists.lines import ListLine, read_lines
from bagel_mot.inference.lists.naming import NAMINGS, naming_of
from bagel_mot.task import Task


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (32, 32)).save(tmp_path / name)
    return tmp_path


def write(folder: Path, *rows: Any, name: str = "list.jsonl") -> Path:
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read(source: Path | str, task: Task = Task.GENERATE, naming: str = "lines", **more: Any) -> list[ListLine]:
    return read_lines(source, task, naming_of(naming, task), **more)


def test_lines_of_text_are_prompts(folder: Path) -> None:
    lines = read(write(folder, "a car", "", "  a {cup}  ", name="list.txt"), n=2)
    assert [(line.number, line.prompt, line.n) for line in lines] == [(1, "a car", 2), (3, "a {cup}", 2)]
    assert [line.names for line in lines] == [("00001-1.png", "00001-2.png"), ("00002-1.png", "00002-2.png")]


def test_lines_of_objects_say_more(folder: Path) -> None:
    path = write(folder, {"prompt": "x", "seed": 7, "n": 3, "size": "64x32", "cfg_interval": [0, 1]}, {"prompt": "y"})
    first, second = read(path)
    assert first.settings == {"seed": 7, "size": (64, 32), "cfg_interval": (0.0, 1.0)}
    assert (first.n, second.n, second.settings) == (3, 1, {})


def test_images_are_relative_to_the_list_and_stand_in_for_lines_without(folder: Path) -> None:
    path = write(folder, {"prompt": "x", "images": ["a.png", "b.png"]}, {"instruction": "y", "image": "b.png"}, "\n")
    lines = read(path, Task.EDIT)
    assert [line.images for line in lines] == [(folder / "a.png", folder / "b.png"), (folder / "b.png",)]
    plain = write(folder, "make it night", name="list.txt")
    assert read(plain, Task.EDIT, images=[folder / "a.png"])[0].images == (folder / "a.png",)


def test_text_without_a_suffix_is_told_by_its_beginning() -> None:
    assert read("a car\na cup\n")[1].prompt == "a cup"
    assert read('{"prompt": "a car"}\n')[0].prompt == "a car"


def test_arrays_and_objects_of_objects(folder: Path) -> None:
    path = folder / "list.json"
    path.write_text(json.dumps([{"prompt": "x"}, "y"]))
    assert [line.prompt for line in read(path)] == ["x", "y"]
    path.write_text(json.dumps({"17": {"id": "a.png", "prompt": "x", "edit_type": "add"}}))
    [line] = read(path, Task.EDIT, "imgedit")
    assert (line.names, line.images) == (("17.png",), (folder / "a.png",))


def test_the_layouts_of_benchmarks(folder: Path) -> None:
    rows = [{"tag": "counting", "include": [{"class": "cup", "count": 2}], "prompt": word} for word in ("x", "y")]
    assert [line.names for line in read(write(folder, *rows), naming="geneval", n=2)] == [
        ("00000/samples/00000.png", "00000/samples/00001.png"),
        ("00001/samples/00000.png", "00001/samples/00001.png"),
    ]
    wise = write(folder, {"Prompt": "x", "prompt_id": 12, "Hint": "h", "Category": "c", "Subcategory": "s"})
    assert read(wise, naming="wise")[0].names == ("12.png",)
    row = {"key": "k", "task_type": "ps_human", "instruction_language": "cn", "instruction": "x"}
    gedit = write(folder, {**row, "input_image": "a.png", "Intersection_exist": True})
    assert read(gedit, Task.EDIT, "gedit")[0].names == ("fullset/ps_human/cn/k.png",)


@pytest.mark.parametrize("name", sorted(NAMINGS))
def test_names_are_the_ones_that_the_recorded_benchmarks_have(name: str) -> None:
    """The layouts are judged by the recorded ones, where there are such."""
    records = Path(__file__).parents[2] / "golden-eval" / name / "prompts.json"
    if not records.exists():
        assert name == "lines"
        return
    content = json.loads(records.read_text())
    for key, item in content["items"].items():
        if name == "gedit":
            row = {"task_type": item["task"], "instruction_language": item["language"], "key": key}
            pattern = content["output"].split(" and ")[0]
            wanted = pattern.replace("<task_type>", row["task_type"]).replace("<key>", key)
            wanted = wanted.replace("<language>", row["instruction_language"])
        else:
            row = {"prompt_id": int(key), "key": key} if name != "geneval" else {}
            wanted = item.get("output", f"{key}/samples/00000.png" if name == "geneval" else f"{key}.png")
        index = int(key) if name == "geneval" else 0
        assert NAMINGS[name].folder(row, index, 1) == [wanted]


BAD_LINES: list[tuple[Any, str]] = [
    ({"prompt": "x", "sead": 1}, r"no key 'sead': did you mean seed\?"),
    ({"prompt": "x", "seed": -1}, "seed is -1"),
    ({"prompt": "x", "n": 0}, "n is 0"),
    ({"prompt": "x", "n": 2, "seed": 2**63 - 1}, "seed is 9223372036854775808"),
    ({"prompt": " "}, "prompt is ' '"),
    ({"seed": 1}, "there is no prompt"),
    ({"prompt": "x", "images": ["a.png"]}, "draws from texts alone"),
    ({"prompt": "x", "max_new_tokens": 5}, "max_new_tokens is no setting of 'generate'"),
    ({"prompt": "x", "output": "../x.png"}, "below the output folder"),
    ({"prompt": "x", "output": "/x.png"}, "below the output folder"),
    ({"prompt": "x", "output": "x.gif"}, "must end in"),
    ({"prompt": "x", "output": 5}, "output is 5"),
    ([1], r"it holds \[1\]"),
    ("{", "it is no JSON"),
]


@pytest.mark.parametrize(("row", "message"), BAD_LINES, ids=[message for _, message in BAD_LINES])
def test_bad_lines_are_named(folder: Path, row: Any, message: str) -> None:
    path = write(folder, {"prompt": "good"}, "", row)
    with pytest.raises(BagelError, match=f"^line 3: .*{message}"):
        read(path)


BAD_EDITS: list[tuple[Any, str, str]] = [
    ({"prompt": "x"}, "lines", "there is no image to change"),
    ({"prompt": "x", "images": ["no.png"]}, "lines", "no.png is missing"),
    ({"prompt": "x", "images": [5]}, "lines", "a file, or a list of files"),
    ({"prompt": "x", "instruction": "y", "image": "a.png"}, "lines", "both prompt and instruction"),
    ({"prompt": "x", "images": "a.png", "image": "a.png"}, "lines", "both images and image"),
    ({"prompt": "x", "image": "a.png"}, "imgedit", "there is no key"),
    ({"prompt": "x", "image": "a.png", "key": "../k"}, "imgedit", "becomes part of a file's name"),
    ({"prompt": "x", "image": "a.png", "key": "k", "n": 2}, "imgedit", "one image for each line"),
    ({"prompt": "x", "image": "a.png", "key": "k", "output": "o.png"}, "imgedit", "names the file already"),
]


@pytest.mark.parametrize(("row", "naming", "message"), BAD_EDITS, ids=[message for *_, message in BAD_EDITS])
def test_bad_lines_of_edits_are_named(folder: Path, row: Any, naming: str, message: str) -> None:
    with pytest.raises(BagelError, match=f"^line 1: .*{message}"):
        read(write(folder, row), Task.EDIT, naming)


def test_two_lines_cannot_have_one_file(folder: Path) -> None:
    rows = [{"prompt": "x", "output": "A.png"}, {"prompt": "y", "output": "a.png"}]
    with pytest.raises(DataError, match=r"^line 2: its image would be a.png, which line 1 writes too"):
        read(write(folder, *rows))


def test_bad_files_are_named(folder: Path) -> None:
    with pytest.raises(DataError, match="no-list.txt cannot be read"):
        read(folder / "no-list.txt")
    with pytest.raises(DataError, match="no line with anything on it"):
        read(write(folder, "  ", name="blank.txt"))
    (folder / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match="not text in UTF-8"):
        read(folder / "latin.txt")
    (folder / "list.json").write_text("5")
    with pytest.raises(DataError, match="an array of objects is expected"):
        read(folder / "list.json")


def test_namings_belong_to_tasks() -> None:
    with pytest.raises(SettingError, match="the naming gedit is not for generate: for that there is lines, geneval"):
        naming_of("gedit", Task.GENERATE)
    with pytest.raises(SettingError, match="no naming 'genevall': did you mean geneval"):
        naming_of("genevall", Task.GENERATE)
