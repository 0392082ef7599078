"""Rows of any layout: readers, columns, places of images, the own schema, messages, and bad input in sentences."""

from __future__ import annotations

import base64
import http.server
import json
import pickle
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from bagel_mot.data.columns import values_of
from bagel_mot.data.documents import OPENERS, Document, FramesPart, ImagePart, TextPart, opened
from bagel_mot.data.draws import RandomDraws, all_outcomes
from bagel_mot.data.image_places import ImagePlace, image_place
from bagel_mot.data.readers.base import BrokenRow
from bagel_mot.data.readers.hub import HubReader
from bagel_mot.data.readers.json_file import JsonReader
from bagel_mot.data.readers.tars import open_tar, tar_index
from bagel_mot.data.readers.webdataset import WebDatasetReader
from bagel_mot.data.rows import SkipRow
from bagel_mot.data.sources import read_source_config
from bagel_mot.data.sources.rows import RowsConfig
from bagel_mot.data.tasks.parts import Parts
from bagel_mot.errors import DataError
from tests.data.miniatures import image_bytes, image_file, json_list, jsonl, parquet, split_tar, tar, zipped
from tests.data.test_presets import documents, levels, shape

DRAWS = RandomDraws(random.Random(0))


def config(**section: Any) -> RowsConfig:
    read = read_source_config(section)
    assert isinstance(read, RowsConfig)
    return read


def words(document: Document) -> list[str]:
    return [part.text for part in document if isinstance(part, TextPart)]


# Tars


def test_a_tar_is_read_from_any_row_as_the_webdataset_rules_say(tmp_path: Path) -> None:
    picture = image_bytes(7)
    file = tar(
        tmp_path / "a.tar",
        {
            "./x/1.a.png": picture,  # everything behind the first dot is the ending
            "x/1.json": b'{"prompt": "one", "image": "not this"}',
            "x/2.jpg": picture,
            "x/2.txt": b" two\n",
            "y/2.txt": b"another folder, another row",
            "y/3.json": b"{broken",
        },
    )
    reader = pickle.loads(pickle.dumps(WebDatasetReader([file])))
    assert reader.units()[0].rows == 4
    rows = list(reader.read(0))
    assert rows[0]["a.png"] == picture
    assert rows[0]["prompt"] == "one"
    assert rows[1] == {"__key__": "x/2", "jpg": picture, "image": picture, "txt": "two"}
    assert rows[2] == {"__key__": "y/2", "txt": "another folder, another row"}
    assert isinstance(rows[3], BrokenRow)
    assert rows[3].reason == "a json file is no JSON"
    for start in range(5):
        assert list(reader.read(0, start)) == rows[start:]
    assert reader.place(0, 1) == f"{file}, x/2 (row 1)"


def test_parts_of_a_split_tar_are_read_as_one(tmp_path: Path) -> None:
    content = {f"{n}.bin": random.Random(n).randbytes(3000) for n in range(20)}
    parts = tuple(split_tar(tmp_path / "a.tar", content, 7))
    index = tar_index(parts)
    with open_tar(parts) as file:
        read = {name: index.read(file, number) for number, name in enumerate(index.names)}
    assert read == content


def test_the_index_of_a_large_tar_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("bagel_mot.data.readers.tars._WORTH_KEEPING", 1)
    file = tar(tmp_path / "a.tar", {"a.txt": b"one", "b.txt": b"two"})
    first = tar_index((file,))
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 1
    tar_index.cache_clear()
    monkeypatch.setattr("bagel_mot.data.readers.tars._indexed", lambda parts: pytest.fail("it was read through again"))
    again = tar_index((file,))
    assert (again.names, again.offsets.tolist()) == (first.names, first.offsets.tolist())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\x1f\x8b rest", "is compressed by gzip"),
        (b"no tar at all" * 100, "is no tar, or damaged"),
        (None, "cannot be read"),
    ],
)
def test_unusable_tars_are_one_sentence(content: bytes | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=said):
        WebDatasetReader([file]).units()


def test_a_tar_that_ends_too_early_is_refused(tmp_path: Path) -> None:
    file = tar(tmp_path / "a.tar", {"a.jpg": bytes(20_000)})
    file.write_bytes(file.read_bytes()[:9_000])
    with pytest.raises(DataError, match="ends in the middle of a.jpg|damaged"):
        WebDatasetReader([file]).units()


# JSON and the hub's package


def test_a_json_file_is_a_list_of_objects(tmp_path: Path) -> None:
    reader = pickle.loads(pickle.dumps(JsonReader([json_list(tmp_path / "a.json", [{"a": 1}, 5, {"a": 2}])])))
    rows = list(reader.read(0))
    assert (rows[0], rows[2], reader.row(0, 2)) == ({"a": 1}, {"a": 2}, {"a": 2})
    assert isinstance(rows[1], BrokenRow)
    (tmp_path / "b.json").write_text(json.dumps({"about": "x", "rows": [{"a": 3}]}))
    assert list(JsonReader([tmp_path / "b.json"]).read(0)) == [{"a": 3}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "could not be read as JSON"),
        ("[]", "an empty list"),
        ('{"a": 1}\n{"a": 2}', "kind: jsonl"),
        ("3", "a int"),
    ],
)
def test_unusable_json_is_one_sentence(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=said):
        JsonReader([tmp_path / "a.json"]).units()


def test_folders_of_the_datasets_package_are_read_with_images_encoded(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"image": [{"bytes": image_bytes(n), "path": None} for n in range(3)], "text": ["a", "b", "c"]}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    data = datasets.Dataset.from_dict(rows, features=features)
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": data}).save_to_disk(str(tmp_path / "several"))
    for name in ("one", "several"):
        reader = pickle.loads(pickle.dumps(HubReader(str(tmp_path / name))))
        assert [unit.rows for unit in reader.units()] == [3]
        assert [row["text"] for row in reader.read(0, 1)] == ["b", "c"]
        assert reader.row(0, 2)["image"]["bytes"] == image_bytes(2)
    found = documents(config(kind="hf", path=str(tmp_path / "one"), task="t2i"))
    assert [shape(document) for document in found] == ["(T) N"] * 3
    with pytest.raises(DataError, match="has no split test; there are train"):
        HubReader(str(tmp_path / "several"), split="test").units()


def test_a_data_set_of_the_hub_is_streamed_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    files = [parquet(tmp_path / f"{n}.parquet", [{"n": 10 * n + m} for m in range(4)]) for n in range(3)]
    asked: list[Any] = []

    def load(name: str, config: str | None, **more: Any) -> Any:
        asked.append((name, config, more))
        return real("parquet", data_files=[str(file) for file in files], split="train", streaming=more["streaming"])

    real = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", load)
    reader = HubReader("owner/name", "part", "train", "v1", streaming=True)
    assert [unit.rows for unit in reader.units()] == [None] * 3
    assert [[row["n"] for row in reader.read(unit)] for unit in range(3)] == [
        [0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]
    ]  # fmt: skip
    assert [row["n"] for row in reader.read(1, 2)] == [12, 13]
    assert asked == [("owner/name", "part", {"split": "train", "revision": "v1", "streaming": True})]


def test_a_name_that_the_hub_does_not_give_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def load(*given: Any, **more: Any) -> Any:
        raise ConnectionError("Couldn't reach\nthe Hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(
        DataError, match="owner/name could not be read from the hub \\(Couldn't reach the Hub\\): check"
    ):
        HubReader("owner/name").units()
    with pytest.raises(DataError, match="no folder, and no name on the hub"):
        HubReader("https://example.org/data").units()


def test_the_licence_is_the_cards_own_or_the_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = parquet(tmp_path / "train-0.parquet", [{"src_img": 1, "edited_img": 2, "edited_prompt_list": ["a"]}])
    section = {"source": "omniedit", "path": str(tmp_path)}
    assert config(**section).dataset().licence == "MIT"
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# A card\n")
    assert config(**section).dataset().licence == "cc-by-4.0"
    config(**section).open(0)
    assert capsys.readouterr().err == "bagel: omniedit is under the licence: cc-by-4.0\n"
    assert config(kind="parquet", task="self_edit", path=str(file), image="src_img").dataset().licence == "cc-by-4.0"
    (tmp_path / "README.md").write_text("no head")
    assert config(kind="parquet", task="self_edit", path=str(file), image="src_img").dataset().licence is None


# Columns


def test_names_of_columns_lead_into_rows() -> None:
    row = {
        "a.b": 1, "meta": {"caption": "x"}, "turns": [{"text": "p"}, {"text": "q"}, {}], "step_1": "s", "step_2": "t",
        "step_4": "no", "qas": '{"q": "why"}', "data": [{"in": ["i"]}, {"in": ["j"]}], "null": None,
    }  # fmt: skip
    wanted = {
        "a.b": [1], "meta.caption": ["x"], "turns[].text": ["p", "q"], "turns[1].text": ["q"], "step_{}": ["s", "t"],
        "qas.q": ["why"], "data[].in[0]": ["i", "j"], "data[5].in": [], "null": [], "none": [], "turns.text": [],
    }  # fmt: skip
    assert {name: values_of(row, name) for name in wanted} == wanted


def test_captions_are_those_of_all_columns_and_of_json_objects(tmp_path: Path) -> None:
    image_file(tmp_path / "a.png")
    row = {"image": "a.png", "short": "s", "all": json.dumps({"x": "l1", "y": "l2"}), "list": ["m"], "odd": "{not json"}
    jsonl(tmp_path / "rows.jsonl", [row])
    columns = ["short", "all", "list", "odd"]
    dataset = config(kind="jsonl", path=str(tmp_path), task="t2i", caption=columns).dataset()
    outcomes = all_outcomes(lambda draws: words(dataset.document(row, draws))[0])
    assert outcomes == [(Fraction(1, 5), text) for text in ("s", "l1", "l2", "m", "{not json")]


# Images


def test_images_are_found_in_folders_and_archives(tmp_path: Path) -> None:
    image_file(tmp_path / "folder" / "a.png", 1)
    zipped(tmp_path / "z.zip", {"top/b.png": image_bytes(2)})
    tar(tmp_path / "t.tar", {"c.png": image_bytes(3), "deep/c.png": image_bytes(4)})
    parts = split_tar(tmp_path / "s.tar", {"set/d.png": image_bytes(5)})
    place = image_place([tmp_path / "folder", tmp_path / "z.zip", tmp_path / "t.tar", *parts], False, "images")
    place = pickle.loads(pickle.dumps(place))

    def level(value: Any) -> Any:
        return opened(place.image(value), OPENERS["upright"]).getpixel((0, 0))[0]  # type: ignore[index]

    data_url = "data:image/png;base64," + base64.b64encode(image_bytes(9)).decode()
    assert [level(v) for v in ("a.png", "./a.png", str((tmp_path / "folder" / "a.png").absolute()))] == [1, 1, 1]
    assert [level(v) for v in ("b.png", "top/b.png", "c.png", "deep/c.png", "before/deep/c.png")] == [2, 2, 3, 4, 4]
    assert [level(v) for v in ("set/d.png", {"bytes": image_bytes(6), "path": "x"}, image_bytes(7), data_url)] == [
        5,
        6,
        7,
        9,
    ]
    assert level({"bytes": None, "path": "a.png"}) == 1
    with pytest.raises(SkipRow, match="there is no e.png in any of 3 archives"):
        level("e.png")


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "a/../../x.png", "..", "a\\..\\..\\x.png"])
def test_paths_do_not_leave_their_folder(path: str, tmp_path: Path) -> None:
    with pytest.raises(SkipRow, match="leads out of") as refused:
        ImagePlace((tmp_path / "images",)).image(path)
    assert refused.value.reason == "a path leaves its folder"
    with pytest.raises(SkipRow):
        ImagePlace((tmp_path / "images",)).path(path)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given, directory=str(folder))

        def log_message(self, *words: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_urls_are_fetched_if_that_is_allowed(tmp_path: Path) -> None:
    image_file(tmp_path / "a.png", 8)
    with pytest.raises(SkipRow, match="data.urls: true"):
        ImagePlace().image("https://example.org/a.png")
    with pytest.raises(SkipRow, match="only http and https"):
        ImagePlace(urls=True).image("file:///etc/passwd")
    with served(tmp_path) as address:
        place = ImagePlace(urls=True)
        assert opened(place.image(f"{address}/a.png"), OPENERS["upright"]).getpixel((0, 0)) == (8, 8, 8)
        with pytest.raises(SkipRow, match="could not be fetched"):
            opened(place.image(f"{address}/b.png"), OPENERS["upright"])


# The own schema


def own(*parts: dict[str, Any], **more: Any) -> Document:
    return Parts()({"parts": list(parts), **more}, DRAWS)


@pytest.mark.parametrize(
    ("parts", "wanted"),
    [
        ([{"text": "a", "droppable": True}, {"image": b"", "target": True}], "(T) N"),
        ([{"image": b""}, {"text": "a"}, {"image": b"", "target": True}], "C V T N"),
        ([{"image": b""}, {"text": "q"}, {"text": "a", "loss": True}], "V T *T*"),
        ([{"image": b"", "target": True}, {"text": "a", "loss": True}], "N C V *T*"),
        ([{"image": b"", "target": True, "vit": False, "droppable": True}, {"text": "a"}], "N (C) T"),
        ([{"image": b"", "vae": False}, {"image": b"", "target": True, "vae": None}], "V N"),
    ],
)
def test_parts_become_what_they_say(parts: list[dict[str, Any]], wanted: str) -> None:
    assert shape(own(*parts)) == wanted
    assert shape(
        Parts()({"parts": json.dumps([p for p in parts if "image" not in p] + [{"text": "x", "loss": True}])}, DRAWS)
    )


def test_parts_of_parquet_and_jsonl_are_the_same(tmp_path: Path) -> None:
    image_file(tmp_path / "a.png", 1)
    parts = [
        {"text": "think first", "image": None, "loss": False, "target": None},
        {"text": "a thought", "image": None, "loss": True, "target": None},
        {"text": None, "image": "a.png", "loss": None, "target": True},
    ]
    parquet(tmp_path / "p" / "rows.parquet", [{"parts": parts}])
    jsonl(tmp_path / "rows.jsonl", [{"parts": [{k: v for k, v in part.items() if v is not None} for part in parts]}])
    found = [
        documents(config(kind=kind, path=str(tmp_path), task="parts", images=str(tmp_path)))[0]
        for kind in ("parquet", "jsonl")
    ]
    assert [shape(document) for document in found] == ["T *T* N"] * 2
    assert found[0] == found[1]


def test_an_image_of_parts_may_be_a_number_in_a_list() -> None:
    document = own({"image": 1, "target": True}, images=[b"x", b"y"])
    assert isinstance(document[0], ImagePart)
    assert document[0].image == b"y"


def test_videos_of_parts_are_shown_or_drawn(tmp_path: Path) -> None:
    for number in range(6):
        image_file(tmp_path / "clip" / f"f_{number}.png", number)
    place = ImagePlace((tmp_path,))
    parts = Parts(image=place.image, path=place.path)
    seen = parts({"parts": [{"video": "clip", "frames": 3}, {"text": "dark", "loss": True}]}, DRAWS)
    assert shape(seen) == "V V V *T*"
    row = {"parts": [{"text": "a clip"}, {"video": "clip", "frames": 3, "target": True, "groups": "random"}]}
    outcomes = all_outcomes(lambda draws: parts(row, draws))
    groups = {tuple(len(p.frames) for p in document if isinstance(p, FramesPart)) for _, document in outcomes}
    assert groups == {(3,), (1, 2), (2, 1), (1, 1, 1)}
    for _, document in outcomes:
        frames = [part for part in document if isinstance(part, FramesPart)]
        assert [part.vae for part in frames] == [True] * (len(frames) - 1) + [False]
        assert all(part.target for part in frames)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([], "a list with at least one part"),
        ("{", "which is no JSON"),
        ([3], "an object with text, image or video"),
        ([{"text": "a", "image": b""}], "text and image; it must have exactly one"),
        ([{"loss": True}], "none of text, image and video"),
        ([{"text": "a", "los": True}], "a text has los; did you mean loss?"),
        ([{"image": b"", "loss": True}], "an? image has loss"),
        ([{"text": "a", "loss": "yes"}], "loss of a text is 'yes'"),
        ([{"text": "a"}], "no text of the row has loss"),
        ([{"image": 4, "target": True}], "the row has no images"),
        ([{"video": "x", "frames": 0}], "frames of a video is 0"),
    ],
)
def test_malformed_parts_are_left_out_with_a_sentence(parts: Any, said: str) -> None:
    with pytest.raises(SkipRow, match=said.replace("?", r"\?") if "did you" in said else said):
        Parts()({"parts": parts}, DRAWS)


# Messages


def message(role: str, *content: Any) -> dict[str, Any]:
    items = [
        {"type": "text", "text": c} if isinstance(c, str) else {"type": "image_url", "image_url": {"url": c[0]}}
        for c in content
    ]
    return {"role": role, "content": items}


def test_rows_of_lmms_engine_are_read_as_chat_too(tmp_path: Path) -> None:
    image_file(tmp_path / "images" / "a.png", 3)
    rows = [{"messages": [message("user", "draw a cat"), message("assistant", ("a.png",))]}]
    file = jsonl(tmp_path / "rows.jsonl", rows)
    found = documents(config(kind="jsonl", path=str(file), task="chat", images=str(tmp_path / "images")))
    assert shape(found[0]) == "(T) N"
    assert levels(found[0]) == [3]


def test_tasks_take_options(tmp_path: Path) -> None:
    image_file(tmp_path / "a.png")
    file = str(jsonl(tmp_path / "rows.jsonl", [{"image": "a.png", "caption": "a cat"}]))
    document = documents(config(kind="jsonl", path=file, task="t2i", options={"copies": 3}))[0]
    assert [part.copies for part in document if isinstance(part, ImagePart)] == [3]
    for options, said in [
        ({"copy": 3}, "data.options has copy; did you mean copies"),
        ({"copies": "x"}, "copies is 'x'"),
    ]:
        with pytest.raises(DataError, match=said):
            config(kind="jsonl", path=file, task="t2i", options=options).open(0)


# Bad input


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (
            {"kind": "parquet", "path": "memory://none/rows"},
            "data.path is memory://none/rows, but there is no such file",
        ),
        ({"kind": "jsonl", "path": "{tmp}/none"}, "data.path is .*none, but there is no such file or folder"),
        ({"kind": "jsonl", "path": "{tmp}"}, r"data.path is .*, which has no \*\*/\*.jsonl in it"),
        ({"kind": "parquet"}, "data.path is missing"),
        ({"kind": "hf", "path": "../none"}, "data.path is ../none, but there is no such file"),
        (
            {"kind": "json", "path": "{tmp}/a.json", "images": "{tmp}/none.zip"},
            "data.images is .*none.zip, but there is",
        ),
        ({"kind": "json", "path": "{tmp}/a.json", "images": "{tmp}/a.json"}, "a folder, or .zip or .tar files are exp"),
        (
            {"kind": "json", "path": "{tmp}/a.json"},
            "no column txt or caption.*There are image, captoin|there are image, c",
        ),
    ],
)
def test_bad_sections_are_known_before_training(section: dict[str, Any], said: str, tmp_path: Path) -> None:
    json_list(tmp_path / "a.json", [{"image": "a.png", "captoin": "a cat"}])
    section = {key: value.replace("{tmp}", str(tmp_path)) for key, value in section.items()}
    with pytest.raises(DataError, match=said):
        config(task="t2i", **section).open(0)
