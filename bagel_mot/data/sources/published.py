"""The published configuration of data as a recipe's `data` section."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from bagel_mot.config import must_be
from bagel_mot.data.dataset import DataGroup
from bagel_mot.data.documents import OPENERS
from bagel_mot.data.published import read_published
from bagel_mot.data.sources.base import FileSource, SourceConfig, WeightBy
from bagel_mot.errors import DataError
from bagel_mot.files import user_path

_Path = Annotated[
    Path, must_be("the name of a file or folder"), AfterValidator(lambda path: user_path(path, DataError))
]


@dataclass(frozen=True, kw_only=True)
class PublishedConfig(SourceConfig):
    """Data as the published training scripts are configured.

    Attributes:
        config: the YAML file with the groups, laid out as the published data/configs/example.yaml, or a recipe of NeMo
            AutoModel.
        dataset_info: the file with their folders and files: JSON, YAML, or the published dataset_info.py; it may be
            left out where `config` says it.
        root: the folder that the paths in `dataset_info` are relative to.
        images: the way to open images: "upright", turned by their EXIF orientation, over white, whole files alone; or
            "published", as the published scripts do.
        weight_by: the unit of which the weights are shares: "samples", as published, or "tokens".
    """

    kind: Literal["published"] = "published"
    config: _Path
    dataset_info: _Path | None = None
    root: _Path = Path()
    images: Literal["upright", "published"] = "upright"
    weight_by: WeightBy = "samples"

    def open(self, seed: int) -> FileSource:
        return FileSource(self.groups(), self.weight_by)

    def groups(self) -> list[DataGroup]:
        """The groups of data sets, in the order of the YAML file.

        Raises:
            DataError: a file is missing, a key is unknown or unusable, or a group has no data.
        """
        return read_published(self.config, self.dataset_info, self.root, OPENERS[self.images])
