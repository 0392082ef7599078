"""Plain folders as data, and mixtures."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image
from pydantic import TypeAdapter

from bagel_mot.data.documents import ImagePart, TextPart
from bagel_mot.data.draws import RandomDraws
from bagel_mot.data.readers.base import Row
from bagel_mot.data.rows import SkipRow
from bagel_mot.data.sources import MixedConfig, read_source_config
from bagel_mot.data.sources.folder import FolderConfig, found_task
from bagel_mot.data.supply import RowSupply
from bagel_mot.errors import DataError


def _image(path: Path, colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48), colour).save(path)


def _text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _rows(config: FolderConfig) -> list[tuple[Row, list[TextPart | ImagePart] | SkipRow]]:
    (group,) = config.open(0).groups()
    assert isinstance(group.supply, RowSupply)
    (dataset,) = group.supply.datasets
    found: list[tuple[Row, list[TextPart | ImagePart] | SkipRow]] = []
    for _, row in dataset.rows(0):
        try:
            found.append((row, list(dataset.document(row, RandomDraws(random.Random(0))))))  # type: ignore[arg-type]
        except SkipRow as skip:
            found.append((row, skip))
    return found


def test_images_with_captions(tmp_path: Path) -> None:
    for name, text in (("b", "a red car\n\n a car \n"), ("sub/a", "\ufeffa boat"), ("c", " \n")):
        _image(tmp_path / f"{name}.png")
        _text(tmp_path / f"{name}.txt", text)
    _image(tmp_path / "d.JPG")
    _image(tmp_path / ".hidden" / "e.png")
    rows = _rows(FolderConfig(path=tmp_path, target_copies=3))
    assert [row.get("captions") for row, _ in rows] == [["a red car", "a car"], None, None, ["a boat"]]
    caption, image = rows[3][1]  # type: ignore[misc]
    assert caption == TextPart("a boat", droppable=True)
    assert isinstance(image, ImagePart)
    assert (image.target, image.copies) == (True, 3)
    assert [str(skip) for _, skip in rows[1:3]] == [
        "c.txt holds no text",
        "there is no d.txt, which should hold the text",
    ]


@pytest.mark.parametrize("layout", ["side by side", "folders", "instructions"])
def test_pairs(tmp_path: Path, layout: str) -> None:
    for name in ("1", "2"):
        if layout == "side by side":
            names = (f"{name}.before.png", f"{name}.after.jpg", f"{name}.txt")
        else:
            where = f"instructions/{name}.txt" if layout == "instructions" else f"{name}.txt"
            names = (f"before/{name}.png", f"after/{name}.jpg", where)
        _image(tmp_path / names[0])
        _image(tmp_path / names[1], "blue")
        _text(tmp_path / names[2], f"make it {name}\n")
    assert found_task(tmp_path) == "edit"
    for row, document in _rows(FolderConfig(path=tmp_path)):
        assert isinstance(document, list)
        before, text, after = document
        assert isinstance(before, ImagePart)
        assert (before.vae, before.vit, before.target) == (True, True, False)
        assert text == TextPart(row["instruction"][0], droppable=True)
        assert isinstance(after, ImagePart)
        assert after.target
        assert (before.image, after.image) == (row["before"], row["after"])
        assert row["after"].suffix == ".jpg"
    (next(tmp_path.rglob("1.after.jpg"), tmp_path / "after" / "1.jpg")).unlink()
    assert isinstance(_rows(FolderConfig(path=tmp_path))[0][1], SkipRow)


def test_conversations(tmp_path: Path) -> None:
    _image(tmp_path / "a.png")
    turns = [{"from": "human", "value": "<image>\nhow many?"}, {"from": "gpt", "value": "two"}]
    _text(tmp_path / "data.jsonl", json.dumps({"image": "a.png", "conversations": turns}) + "\n")
    for path in (tmp_path, tmp_path / "data.jsonl"):
        ((_, document),) = _rows(FolderConfig(path=path))
        assert document == [ImagePart(tmp_path / "a.png", vit=True), TextPart("how many?"), TextPart("two", loss=True)]


def _answers(folder: Path, row: dict[str, object], task: Literal["chat", "think"] = "chat") -> list[object] | SkipRow:
    _text(folder / "data.jsonl", json.dumps(row) + "\n")
    ((_, document),) = _rows(FolderConfig(path=folder, task=task))
    return document  # type: ignore[return-value]


TURNS = [{"from": "human", "value": "<image>how many?"}, {"from": "gpt", "value": "two"}]


@pytest.mark.parametrize("where", ["a.png", "../elsewhere/a.png", "absolute"])
@pytest.mark.parametrize("names", [("image", "conversations"), ("images", "messages")])
def test_conversations_with_either_pair_of_names_and_images_anywhere(
    tmp_path: Path, where: str, names: tuple[str, str]
) -> None:
    folder = tmp_path / "chats"
    path = Path(where if where != "absolute" else str(tmp_path / "a.png"))
    _image(folder / path)
    turns = TURNS if names[1] == "conversations" else [
        {"role": "user", "content": "<image>how many?"}, {"role": "assistant", "content": "two"}
    ]  # fmt: skip
    document = _answers(folder, {names[0]: str(path), names[1]: turns})
    assert document == [ImagePart(folder / path, vit=True), TextPart("how many?"), TextPart("two", loss=True)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"pictures": ["a.png"], "conversations": TURNS}, "the marks <image> in the turns are 1, and the images 0"),
        ({"image": ["a.png", "a.png"], "conversations": TURNS}, "are 1, and the images 2"),
        (
            {"conversations": [{"from": "person", "value": "hm?"}, *TURNS]},
            "a turn is by 'person'; there are human",
        ),
    ],
)
def test_a_conversation_of_which_something_would_be_passed_over_is_left_out(
    tmp_path: Path, row: dict[str, object], message: str
) -> None:
    _image(tmp_path / "a.png")
    found = _answers(tmp_path, row)
    assert isinstance(found, SkipRow)
    assert message in str(found)


def test_what_the_system_says_is_given(tmp_path: Path) -> None:
    turns = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "hm?"}, {"from": "gpt", "value": "m"}]
    assert _answers(tmp_path, {"conversations": turns}) == [
        TextPart("Be brief."), TextPart("hm?"), TextPart("m", loss=True)
    ]  # fmt: skip


def test_thoughts(tmp_path: Path) -> None:
    _image(tmp_path / "7.png")
    row = {"prompt": "a lucky number of cups", "thought": "Seven is lucky.", "image": "7.png"}
    system, *document = _answers(tmp_path, row, "think")  # type: ignore[misc]
    assert isinstance(system, TextPart)
    assert document == [
        TextPart("a lucky number of cups"),
        TextPart("<think>Seven is lucky.</think>", loss=True),
        ImagePart(tmp_path / "7.png", target=True),
    ]
    for folder in (tmp_path / "none", tmp_path):
        (tmp_path / "data.jsonl").unlink(missing_ok=True)
        with pytest.raises(DataError, match=r"has no \*\.jsonl with thoughts|cannot be read"):
            FolderConfig(path=folder, task="think").open(0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "has no image: it must hold images"),
        (lambda folder: _image(folder / "a.png"), "has 1 images but no text"),
        (lambda folder: folder.rmdir(), "does not exist; a folder with images is expected"),
    ],
)
def test_what_a_folder_must_hold(tmp_path: Path, make: object, message: str) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    make(folder)  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        FolderConfig(path=folder).open(0)


def test_a_folder_without_pairs_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    _image(tmp_path / "a.before.jpg.png")
    with pytest.raises(DataError, match=r"has no pair of images: NAME\.before\.png, NAME\.after\.png"):
        FolderConfig(path=tmp_path, task="edit").open(0)


def test_a_folder_of_two_kinds_asks_for_the_task(tmp_path: Path) -> None:
    _image(tmp_path / "a.png")
    _text(tmp_path / "a.txt", "a car")
    _text(tmp_path / "a.jsonl", "{}")
    with pytest.raises(DataError, match="say which with task, one of chat, t2i"):
        FolderConfig(path=tmp_path).open(0)
    assert len(_rows(FolderConfig(path=tmp_path, task="t2i"))) == 1


def test_a_list_is_a_mixture_by_weight(tmp_path: Path) -> None:
    _image(tmp_path / "a.png")
    _text(tmp_path / "a.txt", "a car")
    entries = [{"kind": "folder", "path": str(tmp_path)}, {"kind": "mini", "side": 64, "weight": 3}]
    config = read_source_config(entries)
    assert isinstance(config, MixedConfig)
    stored = TypeAdapter(MixedConfig).dump_python(config, mode="json")
    assert read_source_config(json.loads(json.dumps(stored))) == config
    source = config.open(0)
    assert [group.weight for group in source.groups()] == [1.0, 3.0]
    mixture = source.mixture("seed")
    drawn = Counter(mixture.draw() for _ in range(2000))
    assert 0.2 < drawn[0] / 2000 < 0.3
    doubled = read_source_config([entries[0], entries[0]]).open(0)
    assert len({group.name for group in doubled.groups()}) == 2
    for wrong in ([], [{"weight": 1}], [{"kind": "folder", "path": "x", "weight": 0}]):
        with pytest.raises(ValueError, match=r"kind|list|weight"):
            read_source_config(wrong)
