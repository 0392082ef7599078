"""The published configuration of data as a recipe's `data` section."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from bagel_mot.config import Whole, must_be
from bagel_mot.data.dataset import DataGroup
from bagel_mot.data.documents import OPENERS
from bagel_mot.data.published import read_published
from bagel_mot.data.published_order import PublishedSupply, read_data_status
from bagel_mot.data.sources.base import FileSource, SourceConfig, WeightBy
from bagel_mot.data.supply import Supply
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
        weight_by: the unit of which the groups' weights are shares: samples, as in the published scripts, or tokens.
        sharding: the order of rows: "ours", shuffled anew in every epoch and exact for any number of processes; or
            "published", which is needed to go on from a published run alone.
        data_seed, rank_workers: the seed of the published order, 42 by default, and the workers of each rank, 4 by
            default: their packs take turns. They and the ranks, which are `packs_per_step`, must be those of that run.
        data_status: the `data_status.pt` of the published run that is gone on from.
    """

    kind: Literal["published"] = "published"
    config: _Path
    dataset_info: _Path | None = None
    root: _Path = Path()
    images: Literal["upright", "published"] = "upright"
    weight_by: WeightBy = "samples"
    sharding: Literal["ours", "published"] = "ours"
    data_seed: Whole | None = None
    rank_workers: Whole | None = None
    data_status: _Path | None = None

    def __post_init__(self) -> None:
        if self.sharding == "ours":
            for name in ("data_seed", "rank_workers", "data_status"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is {getattr(self, name)!r}, which is for sharding: published alone")

    def open(self, seed: int) -> FileSource:
        return PublishedSource(self) if self.sharding == "published" else FileSource(self.groups(), self.weight_by)

    def groups(self) -> list[DataGroup]:
        """The groups of data sets, in the order of the YAML file.

        Raises:
            DataError: a file is missing, a key is unknown or unusable, or a group has no data.
        """
        return read_published(self.config, self.dataset_info, self.root, OPENERS[self.images])


class PublishedSource(FileSource):
    """Groups in the published order: each logical stream is a rank, in which the packs of its workers take turns."""

    def __init__(self, config: PublishedConfig) -> None:
        super().__init__(config.groups(), config.weight_by)
        self.data_seed = 42 if config.data_seed is None else config.data_seed
        self.workers = 4 if config.rank_workers is None else config.rank_workers
        self.status = () if config.data_status is None else read_data_status(config.data_status)
        self.rotation = max(self.workers, 1)

    def supply(self, group: DataGroup) -> Supply:
        status = self.status if group.resumes else ()
        return PublishedSupply(group.name, tuple(group.datasets), self.data_seed, self.workers, tuple(status))
