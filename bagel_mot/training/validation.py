"""Losses on data that nothing learns from: always the same packs with the same noise, so that they can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import PlainValidator, SerializeAsAny
from pydantic.dataclasses import dataclass

from bagel_mot.config import Count, Section
from bagel_mot.data.documents import Dropout, SampleBuilder
from bagel_mot.data.feed import SampleFeed, SampleMaker
from bagel_mot.data.layout import TrainingPack
from bagel_mot.data.packer import AnyPackConfig
from bagel_mot.data.sources import read_source_config
from bagel_mot.data.sources.base import SourceConfig
from bagel_mot.data.streams import PackStream
from bagel_mot.data.supply import check_groups
from bagel_mot.data.workers import Workers
from bagel_mot.sequence import PackSpec

DataSection = Annotated[SerializeAsAny[SourceConfig], PlainValidator(read_source_config)]
"""A recipe's section of data, of the type that its `kind` selects."""


@dataclass(frozen=True, kw_only=True)
class ValidationConfig(Section):
    """The `validation` section of a recipe.

    Attributes:
        data: the data, as in a recipe's `data`.
        every: steps between two validations.
        packs: packs of each validation, shared among the processes.
    """

    data: DataSection
    every: Count = 500
    packs: Count = 4


def validation_packs(
    config: ValidationConfig, builder: SampleBuilder, spec: PackSpec, pack: AnyPackConfig, numbers: Sequence[int]
) -> list[TrainingPack]:
    """The packs of some numbers, of `config.packs`; what a pack holds depends on its number alone. Nothing is dropped.

    Args:
        config: the recipe's section.
        builder: makes the samples of the training.
        spec: the model's packing facts.
        pack: the size of a pack.
        numbers: the numbers of the packs.

    Raises:
        DataError: there are no data, or a file cannot be used.
    """
    whole = replace(builder, dropout=Dropout(text=0.0, vit=0.0, vae=0.0, images=0.0))
    source = config.data.open(0)
    groups = source.groups()
    check_groups(groups)
    for group in groups:
        group.supply.check_sizes(whole, spec)
    workers = Workers(SampleMaker(tuple(group.supply for group in groups), whole, spec, 0), 0)
    try:
        feeds = [
            SampleFeed(groups, source.mixture(f"validation {number}"), workers, 0, number, config.packs)
            for number in numbers
        ]
        return [PackStream(feed, spec, pack).next_batch() for feed in feeds]
    finally:
        workers.close()
