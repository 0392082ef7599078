"""Data sets of the Hugging Face hub, or of folders that its `datasets` package wrote."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from bagel_mot.data.readers.base import Reader, Row, Unit
from bagel_mot.data.remote import AnyPath
from bagel_mot.errors import DataError
from bagel_mot.installation import install_command

_HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")


class HubReader(Reader):
    """Rows of a data set as `datasets` reads it; images stay encoded.

    With streaming, a unit is a file of the data set, of which neither the number of rows is known nor any row but the
    next is at hand; else all rows are one unit.

    Attributes:
        path: the name on the hub, or a folder that was written by `save_to_disk` or holds .arrow files.
        config, split, revision: the part of the data set, and its version.
        streaming: whether rows are fetched as they are needed, and not all of them at first.
    """

    def __init__(
        self, path: str, config: str | None = None, split: str = "train", revision: str | None = None,
        streaming: bool = False,
    ) -> None:  # fmt: skip
        self.path, self.config, self.split, self.revision = path, config, split, revision
        self.streaming = streaming and not Path(path).is_dir()
        self.random_access = not self.streaming

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_data"}

    @cached_property
    def _data(self) -> Any:
        datasets = _datasets()
        folder = Path(self.path)
        if not folder.is_dir() and not _HUB_ID.fullmatch(self.path):
            raise DataError(f"{self.path} is no folder, and no name on the hub, which is like OWNER/NAME")
        try:
            if folder.is_dir():
                return _encoded(datasets, self._of_folder(datasets, folder))
            data = datasets.load_dataset(
                self.path, self.config, split=self.split, revision=self.revision, streaming=self.streaming
            )
            return _encoded(datasets, data)
        except DataError:
            raise
        except Exception as error:  # it raises all sorts of them
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            where = "from the folder" if folder.is_dir() else "from the hub"
            raise DataError(
                f"the data set {self.path} could not be read {where} ({reason}): check its name, config and split"
                + ("" if folder.is_dir() else ", or download it and give the folder as path")
            ) from error

    def _of_folder(self, datasets: Any, folder: Path) -> Any:
        if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
            data = datasets.load_from_disk(str(folder))
            if isinstance(data, datasets.DatasetDict):
                if self.split not in data:
                    raise DataError(f"{folder} has no split {self.split}; there are {', '.join(data)}")
                return data[self.split]
            return data
        files = sorted(folder.rglob("*.arrow"))
        if not files:
            raise DataError(
                f"{folder} has neither the files of save_to_disk nor .arrow files; for .parquet files give kind: "
                "parquet"
            )
        return datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in files])

    def licence(self) -> str | None:
        """The licence as the data set's card has it; None where it has none or the hub cannot be reached."""
        own = getattr(getattr(self._data, "info", None), "license", None)
        if own or Path(self.path).is_dir():
            return own or None
        from huggingface_hub import HfApi

        with suppress(Exception):  # which must not keep anyone from training
            card = HfApi().dataset_info(self.path, revision=self.revision, timeout=10).card_data
            return _licence_of(card.to_dict() if card else {})
        return None

    def units(self) -> Sequence[Unit]:
        name = f"{self.path}{f', {self.config}' if self.config else ''}, {self.split}"
        if self.streaming:
            count = max(self._data.num_shards, 1)
            return [Unit(f"{name}, file {number + 1} of {count}") for number in range(count)]
        if not len(self._data):
            raise DataError(f"{name} has no rows, so there is nothing to train on")
        return [Unit(name, len(self._data))]

    def read(self, unit: int, start: int = 0) -> Iterator[Row]:
        if not self.streaming:
            for number in range(start, len(self._data)):
                yield self._data[number]
            return
        count = max(self._data.num_shards, 1)
        data = self._data.shard(num_shards=count, index=unit) if count > 1 else self._data
        try:
            yield from data.skip(start) if start else data
        except (OSError, ValueError) as error:
            raise DataError(f"{self.units()[unit].name} could not be read on ({error})") from error


def card_licence(card: AnyPath) -> str | None:
    """The licence in the head of a data set's README.md; None if there is no such file, or it says nothing."""
    with suppress(OSError, ValueError, yaml.YAMLError):
        with card.open("rb") as file:
            _, head, _ = file.read().decode("utf-8").split("---", 2)
        content = yaml.safe_load(head)
        return _licence_of(content) if isinstance(content, dict) else None
    return None


def _licence_of(card: Mapping[str, Any]) -> str | None:
    found = card.get("license_name") or card.get("license")
    return ", ".join(map(str, found)) if isinstance(found, list) else str(found) if found else None


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"kind is hf, which needs the package datasets: {install_command('data')}") from error
    return datasets


def _encoded(datasets: Any, data: Any) -> Any:
    """The data set with images as bytes and paths: worker processes decode them, by our rules."""

    def of(feature: Any) -> Any:
        if isinstance(feature, datasets.Image):
            return datasets.Image(decode=False)
        if isinstance(feature, dict):
            return type(feature)({name: of(inner) for name, inner in feature.items()})
        if isinstance(feature, list | tuple):
            return [of(inner) for inner in feature]
        inner = getattr(feature, "feature", None)
        return feature if inner is None else type(feature)(of(inner))

    if data.features is None:  # a stream whose columns are not known before it is read
        return data
    features = datasets.Features({name: of(feature) for name, feature in data.features.items()})
    return data if features == data.features else data.cast(features)
