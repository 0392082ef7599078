"""The lists of data sets of lmms-engine as a recipe's `data` section.

Its format `yaml` is a list `datasets` of `path`, `data_folder` and `data_type`, in a file of its own or in the section
`dataset_config` of its configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from bagel_mot.config import Section, must_be, parse
from bagel_mot.data.dataset import DataGroup
from bagel_mot.data.remote import is_remote
from bagel_mot.data.sources.base import FileSource, SourceConfig
from bagel_mot.data.sources.rows import RowsConfig
from bagel_mot.errors import DataError
from bagel_mot.files import read_text, user_path

_KINDS = {"json": "json", "jsonl": "jsonl", "parquet": "parquet", "arrow": "hf", "hf_dataset": "hf"}
_DataType = Literal["json", "jsonl", "parquet", "arrow", "hf_dataset"]
_ListFile = Annotated[
    Path, must_be("the name of a file or folder"), AfterValidator(lambda path: user_path(path, DataError))
]


@dataclass(frozen=True, kw_only=True)
class ListedData(Section):
    """An entry of the list, by the names of lmms-engine.

    Attributes:
        path: the file, the folder, or the name on the hub.
        data_folder: the folder that paths of images and videos are relative to; none if it is empty.
        data_type: the form of the rows.
    """

    path: Annotated[str, Field(min_length=1)]
    data_folder: str | None = None
    data_type: _DataType


@dataclass(frozen=True, kw_only=True)
class LmmsConfig(SourceConfig):
    """Data sets as lmms-engine lists them, drawn from as one: each row once an epoch.

    Attributes:
        config: the YAML file: the list, or a configuration of lmms-engine that holds it or names its file.
        root: the folder that the paths in the list are relative to.
        task: the kind of document that is made of a row: `chat` takes both of its forms of conversations.
        name: the name of the group in reports.
    """

    kind: Literal["lmms"] = "lmms"
    config: _ListFile
    root: _ListFile = Path()
    task: Literal["chat", "messages"] = "chat"
    name: str = "lmms"

    def open(self, seed: int) -> FileSource:
        return FileSource(self.groups())

    def groups(self) -> list[DataGroup]:
        """The one group of all data sets in the list.

        Raises:
            DataError: a file is missing, a key is unknown or unusable, or columns are missing.
        """
        datasets, names = [], set[str]()
        for number, entry in enumerate(self._listed()):
            where = f"{self.config}: datasets[{number}]"
            if not isinstance(entry, Mapping):
                raise DataError(f"{where} is {entry!r:.80}; path, data_folder and data_type are expected")
            listed = parse(ListedData, dict(entry), where, DataError)
            name = stem = Path(listed.path).stem
            while name in names:
                name = f"{stem}#{int(name.rpartition('#')[2]) + 1 if '#' in name else 2}"
            names.add(name)
            datasets.append(self._rows(listed, name).dataset())
        return [DataGroup(self.name, tuple(datasets))]

    def _rows(self, listed: ListedData, name: str) -> RowsConfig:
        kind: Any = _KINDS[listed.data_type]
        return RowsConfig(
            kind=kind,
            name=name,
            path=(self._place(listed.path, may_be_elsewhere=kind == "hf"),),
            images=(self._place(listed.data_folder),) if listed.data_folder else (),
            task=self.task,
        )

    def _place(self, name: str, *, may_be_elsewhere: bool = False) -> str:
        """A path of the list as this process has it."""
        if is_remote(name):
            return name
        path = self.root / Path(name).expanduser()
        return name if may_be_elsewhere and not path.exists() else str(path)

    def _listed(self) -> Sequence[Any]:
        """The entries of the list.

        Raises:
            DataError: there is no list, or an empty one.
        """
        content = _configuration(self.config)
        if "datasets" not in content and isinstance(content.get("dataset_path"), str):
            form = content.get("dataset_format", "yaml")
            if form != "yaml":
                entry = {"path": content["dataset_path"], "data_type": form}
                return [entry | {key: content[key] for key in ("data_folder",) if content.get(key)}]
            content = _configuration(self.root / content["dataset_path"])
        listed = content.get("datasets")
        if not isinstance(listed, Sequence) or isinstance(listed, str) or not listed:
            raise DataError(
                f"{self.config} has no list datasets; it must hold one whose entries have path, data_folder and "
                "data_type, as the format yaml of lmms-engine has it"
            )
        return listed


def _configuration(file: Path) -> Mapping[str, Any]:
    """The part of a YAML file of lmms-engine that is about data: the file itself, its section `dataset_config`, or that
    of its trainer.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    try:
        content = yaml.safe_load(read_text(file, DataError))
    except DataError:
        raise
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(f"{file} could not be read as YAML: {' '.join(str(error).split())}") from error
    if isinstance(content, list):
        trainers = [part for part in content if isinstance(part, Mapping) and isinstance(part.get("config"), Mapping)]
        content = trainers[0]["config"] if trainers else {"datasets": content}
    if isinstance(content, Mapping) and isinstance(content.get("dataset_config"), Mapping):
        content = content["dataset_config"]
    if not isinstance(content, Mapping):
        raise DataError(f"{file} holds a {type(content).__name__}; a list datasets is expected")
    return content
