"""Other file systems: what is read from them is what the same files give on this machine."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bagel_mot.data import remote
from bagel_mot.data.dataset import DataGroup
from bagel_mot.data.documents import OPENERS, Document, FramesPart, ImagePart, TextPart, opened
from bagel_mot.data.draws import RandomDraws
from bagel_mot.data.published import read_published
from bagel_mot.data.remote import RemotePath, found_places, is_remote, place_of
from bagel_mot.data.rows import SkipRow
from bagel_mot.data.sources import read_source_config
from bagel_mot.data.sources.rows import RowsConfig
from bagel_mot.errors import DataError
from tests.data.miniatures import image_file, jsonl
from tests.data.test_presets import documents, levels

pyarrow = pytest.importorskip("pyarrow")
fsspec = pytest.importorskip("fsspec")
GOLDEN = Path(__file__).parents[1] / "golden-data"
INFO = json.loads((GOLDEN / "data" / "dataset_info.json").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """File systems of this test alone."""
    remote._file_system.cache_clear()
    yield
    remote._file_system.cache_clear()
    fsspec.filesystem("memory").rm("/", recursive=True)


@pytest.fixture(params=["memory", "hdfs"])
def elsewhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A function that puts a folder into another file system and returns its address. A folder of this machine stands
    in for Hadoop's file system, behind PyArrow's interface of it.
    """
    import pyarrow.fs

    disk = tmp_path / "hadoop"
    disk.mkdir()

    class StandIn:
        @staticmethod
        def from_uri(uri: str) -> Any:
            assert uri == "hdfs://cluster:9000/"
            return pyarrow.fs.SubTreeFileSystem(str(disk), pyarrow.fs.LocalFileSystem())

    monkeypatch.setattr(pyarrow.fs, "HadoopFileSystem", StandIn)

    def put(folder: Path, name: str) -> str:
        if request.param == "memory":
            fsspec.filesystem("memory").put(f"{folder}/", f"/{name}/", recursive=True)
            return f"memory://{name}"
        shutil.copytree(folder, disk / "user" / name)
        return f"hdfs://cluster:9000/user/{name}"

    return put


def plain(document: Document) -> list[Any]:
    """A document with its images opened."""
    found: list[Any] = []
    for part in document:
        assert not isinstance(part, FramesPart)
        if isinstance(part, TextPart):
            found.append(part)
        else:
            image = opened(part.image, OPENERS["upright"])
            found.append((part.target, part.vae, part.vit, image.size, image.tobytes()))
    return found


def everything(groups: list[DataGroup]) -> list[Any]:
    """All documents of all groups, by the same draws; of rows without one the reason."""
    found: list[Any] = []
    for dataset in (dataset for group in groups for dataset in pickle.loads(pickle.dumps(group)).datasets):
        for unit in range(len(dataset.reader.units())):
            for number, (_, row) in enumerate(dataset.rows(unit)):
                try:
                    found.append(plain(dataset.document(row, RandomDraws(random.Random(number)))))
                except SkipRow as error:
                    found.append(type(error))
    return found


def test_the_published_configuration_reads_addresses(elsewhere: Any, tmp_path: Path) -> None:
    content = yaml.safe_load((GOLDEN / "data" / "small.yaml").read_text(encoding="utf-8"))
    config, infos = tmp_path / "config.yaml", tmp_path / "info.json"
    config.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    infos.write_text(json.dumps(INFO), encoding="utf-8")
    here = everything(read_published(config, infos, GOLDEN, OPENERS["upright"]))
    root = elsewhere(GOLDEN / "data", "golden")
    moved = json.loads(json.dumps(INFO).replace('"data/', f'"{root}/'))
    infos.write_text(json.dumps(moved), encoding="utf-8")
    there = everything(read_published(config, infos, tmp_path, OPENERS["upright"]))
    assert sum(isinstance(one, list) for one in here) > 40
    assert there == here


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_rows_and_images_are_read_from_addresses(elsewhere: Any, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "own"
    for level in range(3):
        image_file(folder / "images" / f"{level}.png", level)
    rows = [{"image": f"images/{level}.png", "caption": "a cat"} for level in range(3)]
    rows.append({"image": "../../secret.png", "caption": "a cat"})
    if kind == "jsonl":
        jsonl(folder / "rows.jsonl", rows[:3])
    else:
        (folder / "rows.json").write_text(json.dumps(rows[:3]), encoding="utf-8")
    root = elsewhere(folder, "own")
    for path, images in ((root, {}), (f"{root}/*.{kind}", {}), (f"{root}/rows.{kind}", {"images": root})):
        config = read_source_config({"kind": kind, "path": path, "task": "t2i", **images})
        assert isinstance(config, RowsConfig)
        assert [levels(document) for document in documents(config)] == [[0], [1], [2]]
    mapper = config.dataset().mapper
    with pytest.raises(SkipRow, match="leads out of"):
        mapper(rows[3], RandomDraws(random.Random(0)))


def test_what_is_not_there_is_one_sentence(elsewhere: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "none.txt").write_text("x")
    root = elsewhere(tmp_path / "empty", "empty")
    for section, said in (
        ({"path": f"{root}/rows"}, r"data\.path is .*/rows, but there is no such file or folder"),
        ({"path": root}, r"which has no \*\*/\*\.parquet in it"),
        ({"path": f"{root}/none.txt"}, "none.txt could not be read as Parquet"),
        ({"path": root, "kind": "webdataset"}, "tars are read on this machine alone"),
    ):
        with pytest.raises(DataError, match=said) as caught:
            read_source_config({"kind": "parquet", "task": "t2i", **section}).open(0)
        assert "\n" not in str(caught.value)
    with pytest.raises(SkipRow, match=r"none\.png cannot be read"):
        opened(RemotePath(root) / "none.png", OPENERS["upright"])


def test_hadoop_without_its_library_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.fs

    class Missing:
        @staticmethod
        def from_uri(uri: str) -> Any:
            raise OSError("Unable to load libjvm\nnowhere")

    monkeypatch.setattr(pyarrow.fs, "HadoopFileSystem", Missing)
    with pytest.raises(
        DataError, match=r"Unable to load libjvm nowhere.*JAVA_HOME, HADOOP_HOME and CLASSPATH"
    ) as caught:
        found_places("hdfs://cluster/user")
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="no://where cannot be reached"):
        found_places("no://where/it/is")


def test_a_store_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.fs

    asked, answers = [], threading.Event()

    class Silent(pyarrow.fs.LocalFileSystem):  # type: ignore[misc]
        def get_file_info(self, paths: Any) -> Any:
            answers.wait()
            raise OSError("too late")

    class Stores:
        @staticmethod
        def from_uri(uri: str) -> Any:
            asked.append(uri)
            return Silent(), ""

    monkeypatch.setattr(pyarrow.fs, "FileSystem", Stores)
    monkeypatch.setattr(remote, "_PATIENCE", 0.2)
    with pytest.raises(DataError, match=r"^gs://bucket/rows cannot be reached: there is no answer within 0.2 seconds$"):
        found_places("gs://bucket/rows")
    assert asked == ["gs://bucket?retry_limit_seconds=15"]
    answers.set()
    monkeypatch.setattr(remote, "_PATIENCE", 60.0)
    with pytest.raises(DataError, match="^gs://bucket/rows cannot be reached: too late; Google's store needs its"):
        found_places("gs://bucket/rows")


def test_addresses_are_told_from_names(tmp_path: Path) -> None:
    assert is_remote("s3://bucket/a")
    assert is_remote("HDFS://host/a")
    assert not any(map(is_remote, ("https://host/a.png", "C://windows", "OWNER/NAME", "a/b", "file:///a")))
    assert place_of("a/b", tmp_path) == tmp_path / "a" / "b"
    address = place_of("s3://bucket/a/", tmp_path)
    assert isinstance(address, RemotePath)
    assert str(address / "b/../c.png") == "s3://bucket/a/c.png"
    assert str(address.parent) == "s3://bucket"
    assert (address.name, (address / "c.tar.gz").suffix, (address / "c.png").stem) == ("a", ".gz", "c")
    part = ImagePart(address / "c.png", target=True)
    assert pickle.loads(pickle.dumps(part)) == part
