"""Rows of any layout as a recipe's `data` section: files and data sets of the hub, and public data sets by name."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator
from pydantic.dataclasses import dataclass

from bagel_mot.config import Flag, must_be
from bagel_mot.data.columns import missing_columns
from bagel_mot.data.dataset import DataGroup, Dataset
from bagel_mot.data.image_places import image_place
from bagel_mot.data.mapping import TASKS, Names, RowMapper
from bagel_mot.data.public import PUBLIC_DATA, PublicData
from bagel_mot.data.readers.base import BrokenRow, Reader
from bagel_mot.data.readers.hub import HubReader, card_licence
from bagel_mot.data.readers.json_file import JsonReader
from bagel_mot.data.readers.jsonl import JsonlReader
from bagel_mot.data.readers.parquet import ParquetReader
from bagel_mot.data.readers.turns import TurnsReader
from bagel_mot.data.readers.webdataset import WebDatasetReader
from bagel_mot.data.remote import AnyPath, found_places, is_on_the_web, is_remote
from bagel_mot.data.sources.base import FileSource, Source, SourceConfig
from bagel_mot.errors import DataError, did_you_mean
from bagel_mot.files import user_path

ROW_KINDS = ("parquet", "jsonl", "json", "webdataset", "hf")
_ENDINGS = {"parquet": "parquet", "jsonl": "jsonl", "json": "json", "webdataset": "tar"}
_LOOKED_AT = 8  # rows whose columns are looked at before training

_Words = Annotated[
    tuple[str, ...],
    must_be("a text or a list of texts"),
    BeforeValidator(lambda given: (given,) if isinstance(given, str) else given),
]
_RowKind = Literal["parquet", "jsonl", "json", "webdataset", "hf"]


@dataclass(frozen=True, kw_only=True)
class RowsConfig(SourceConfig):
    """Rows of files or of the hub.

    Attributes:
        kind: the form of the files.
        source: the public data set that gives all keys that are left out.
        name: the name of the data set in reports; by default `source` or the last part of `path`.
        path: a file, a folder or a pattern, or several; or the name of a data set of the hub.
        files: the patterns of the files within the folder `path`; by default those of the kind's ending, at any depth.
        config, split, revision: the part and the version of a data set of the hub.
        streaming: whether rows of the hub are fetched as they are needed.
        images: the places that relative paths of images lead to: folders, .zip and .tar files, parts of split tars, or
            patterns; by default the folder of the files.
        urls: whether images at http and https addresses are fetched.
        task: the kind of document that is made of a row.
        options: further arguments of the task, such as copies or starts_image.
        session_id, turn: the columns, where rows are turns of sessions, of the id that those of a session share and of
            the number of a turn; the columns of a session hold lists, with one value for each turn.
        human, gpt, image_mark: the roles in conversations, and the mark of an image.
    The other keys name the columns of each role.
    """

    kind: _RowKind
    source: str | None = None
    name: str | None = None
    path: _Words | None = None
    files: _Words = ()
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    streaming: Flag = False
    images: _Words = ()
    options: dict[str, Any] = field(default_factory=dict)
    urls: Flag = False
    task: str
    session_id: str | None = None
    turn: str | None = None
    human: _Words = ("human", "user")
    gpt: _Words = ("gpt", "assistant")
    image_mark: str = "<image>"
    image: _Words = ()
    caption: _Words = ()
    before: _Words = ()
    after: _Words = ()
    instruction: _Words = ()
    states: _Words = ()
    steps: _Words = ()
    inverse: _Words = ()
    messages: _Words = ()
    thought: _Words = ()
    answer: _Words = ()
    question: _Words = ()
    trace: _Words = ()
    text: _Words = ()
    video: _Words = ()
    parts: _Words = ()

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task is {self.task!r}; {did_you_mean(self.task, TASKS)}")
        known = TASKS[self.task].columns
        for role in dict.fromkeys(role for task in TASKS.values() for role in task.columns):
            if getattr(self, role) and role not in known:
                raise ValueError(f"{role} is no column of the task {self.task}, which has {', '.join(known)}")
        if (self.session_id is None) != (self.turn is None):
            raise ValueError("session_id and turn are the two columns of turns of sessions: give both or neither")
        if self.source is not None and self.source not in PUBLIC_DATA:
            raise ValueError(f"source is {self.source!r}; {did_you_mean(self.source, PUBLIC_DATA)}")

    @property
    def preset(self) -> PublicData | None:
        """The public data set, if it is one."""
        return None if self.source is None else PUBLIC_DATA[self.source]

    @property
    def columns(self) -> dict[str, Names]:
        """The columns of each role of the task."""
        return {role: getattr(self, role) or names for role, names in TASKS[self.task].columns.items()}

    def dataset(self) -> Dataset:
        """The data set. Its first rows are read, to see whether the columns are there.

        Raises:
            DataError: there are no files, one cannot be used, or columns are missing.
        """
        paths = self._paths()
        rows = reader = self._reader(paths)
        if self.session_id is not None and self.turn is not None:
            reader = TurnsReader(reader, self.session_id, self.turn)
        if not paths or self.kind == "hf":
            places = image_place(self._images(paths), self.urls, "data.images") if self.images else None
        else:
            places = image_place(self._images(paths) or self._beside(paths), self.urls, "data.images")
        mapper = RowMapper(
            self.task,
            self.columns,
            places or image_place([], self.urls, "data.images"),
            TASKS[self.task].with_options(self.options, "data.options"),
            self.human,
            self.gpt,
            self.image_mark,
        )
        self._check_columns(reader)
        name = self.name or self.source or self._short_name()
        return Dataset(name, reader, mapper, licence=self._licence(rows, paths))

    def _licence(self, reader: Reader, paths: Sequence[AnyPath]) -> str | None:
        """The licence that the hub's card has, the downloaded one, or the list of public data sets."""
        found = reader.licence() if isinstance(reader, HubReader) else None
        cards = [folder / "README.md" for path in paths for folder in ([path] if path.is_dir() else [path.parent])]
        found = found or next(filter(None, map(card_licence, cards)), None)
        if found is None and self.preset is not None and self.preset.licence != "?":
            return self.preset.licence
        return found

    def groups(self) -> list[DataGroup]:
        """The one group of this data set."""
        dataset = self.dataset()
        return [DataGroup(dataset.name, (dataset,))]

    def open(self, seed: int) -> Source:
        groups = self.groups()
        if self.kind == "hf" and os.environ.get("RANK", "0") == "0":
            dataset = groups[0].datasets[0]
            licence = dataset.licence or "not said"
            print(f"bagel: {dataset.name} is under the licence: {licence}", file=sys.stderr)
        return FileSource(groups)

    def _short_name(self) -> str:
        return Path((self.path or (self.kind,))[0]).stem

    def _paths(self) -> list[AnyPath]:
        """The files and folders that are named; none if the data set is on the hub."""
        if self.path is None:
            if self.preset is None:
                raise DataError(
                    "data.path is missing; a file, a folder or the name of a data set of the hub is expected"
                )
            if self.kind == "hf":
                return []
            raise DataError(
                f"data.path is missing; give the folder of {self.source}, which `{self.preset.download}` downloads"
            )
        found = [place for path in self.path for place in _named(path, self.kind)]
        return sorted(dict.fromkeys(found), key=str)

    def _reader(self, paths: Sequence[AnyPath]) -> Reader:
        if self.kind == "hf":
            hub = (self.path or (self.preset.where if self.preset else "",))[0]
            if not paths:
                return HubReader(hub, self.config, self.split, self.revision, self.streaming)
            if not paths[0].is_dir():
                return self._parquet(paths)
            files = self._parquet_of_download(paths[0])
            return self._parquet(files) if files else HubReader(str(paths[0]), None, self.split)
        files = self._files(paths)
        if self.kind == "parquet":
            return self._parquet(files)
        if self.kind == "jsonl":
            return JsonlReader(files)
        return JsonReader(files) if self.kind == "json" else WebDatasetReader(files)

    def _parquet(self, files: Sequence[AnyPath]) -> ParquetReader:
        return ParquetReader(files, by="row group" if self.session_id is None else "file")  # sessions go on in the next

    def _parquet_of_download(self, folder: AnyPath) -> list[AnyPath]:
        """The Parquet files of a data set's folder as the hub has it: those of the config and the split, if any."""
        within = folder / self.config if self.config and (folder / self.config).is_dir() else folder
        files: list[AnyPath] = sorted(within.glob("**/*.parquet"), key=str)
        return [file for file in files if file.name.startswith(f"{self.split}-")] or files

    def _files(self, paths: Sequence[AnyPath]) -> list[AnyPath]:
        patterns = self.files or (f"**/*.{_ENDINGS[self.kind]}",)
        found: list[AnyPath] = []
        for path in paths:
            if path.is_dir():
                inside = [file for pattern in patterns for file in path.glob(pattern) if file.is_file()]
                if not inside:
                    raise DataError(f"data.path is {path}, which has no {' or '.join(patterns)} in it")
                found += inside
            else:
                found.append(path)
        return sorted(dict.fromkeys(found), key=str)

    def _beside(self, paths: Sequence[AnyPath]) -> list[AnyPath]:
        """The folders of the data's files: where images lie if nothing else is said."""
        return list(dict.fromkeys(path if path.is_dir() else path.parent for path in paths))

    def _images(self, paths: Sequence[AnyPath]) -> list[AnyPath]:
        found: list[AnyPath] = []
        for name in self.images:
            if is_remote(name):
                found += found_places(name)
                continue
            inside = [place for folder in self._beside(paths) for place in _inside(folder, name)]
            # Some of several patterns may have no match: archives that were unpacked, or not downloaded.
            elsewhere = glob.has_magic(name) and len(self.images) > 1
            found += inside or (_glob if elsewhere else _needed)(user_path(name, DataError))
        if self.images and not found:
            raise DataError(f"data.images is {', '.join(self.images)}, and there are no such files or folders")
        return list(dict.fromkeys(found))

    def _check_columns(self, reader: Reader) -> None:
        task = TASKS[self.task]
        units = reader.units()
        rows = [row for row in islice(reader.read(0), _LOOKED_AT) if not isinstance(row, BrokenRow)] if units else []
        wanted = {role: names for role, names in self.columns.items() if role not in task.optional}
        if rows and (sentence := missing_columns(rows, wanted)):
            unsure = " (its columns are set from a description)" if self.preset and self.preset.unsure else ""
            raise DataError(f"{self.source or units[0].name}{unsure}: {sentence}")


def _inside(folder: AnyPath, name: str) -> list[AnyPath]:
    if isinstance(folder, Path):
        return _glob(folder / name)
    return found_places(str(folder / name))


def _glob(path: Path) -> list[AnyPath]:
    if path.exists():
        return [path]
    return sorted(map(Path, glob.glob(str(path), recursive=True)))


def _needed(path: Path) -> list[AnyPath]:
    found = _glob(path)
    if not found:
        raise DataError(f"data.images is {path}, but there is no such file or folder as {path.absolute()}")
    return found


def _named(name: str, kind: str) -> list[AnyPath]:
    """The files and folders that `path` means; none if it may be a name on the hub."""
    if is_remote(name):
        if kind == "webdataset":
            raise DataError(f"data.path is {name}; tars are read on this machine alone: copy them to a folder")
        places = found_places(name)
        if not places:
            raise DataError(f"data.path is {name}, but there is no such file or folder")
        return places
    if is_on_the_web(name):
        raise DataError(
            f"data.path is {name}; files are read from this machine and from stores (s3://, gs://, abfs://, hdfs://), "
            "not from the web: download them"
        )
    path = user_path(name, DataError)
    found = _glob(path)
    if not found and (kind != "hf" or path.is_absolute() or name.startswith(".")):
        raise DataError(f"data.path is {path}, but there is no such file or folder as {path.absolute()}")
    return found


def with_preset(content: Mapping[str, Any]) -> dict[str, Any]:
    """A data section with the keys that its `source` gives.

    Raises:
        ValueError: there is no such source.
    """
    source = content.get("source")
    if source is None:
        return dict(content)
    if not isinstance(source, str) or source not in PUBLIC_DATA:
        raise ValueError(
            f"source is {source!r}, which no public data set has; {did_you_mean(str(source), PUBLIC_DATA)} "
            "(`bagel data list` shows all)"
        )
    own = dict(content)
    if own.get("kind", ROW_KINDS[0]) not in ROW_KINDS:  # a recipe's own data, in whose place the source is named
        own = {key: value for key, value in own.items() if key not in ("kind", "task")}
    return {**PUBLIC_DATA[source].settings, **own}
