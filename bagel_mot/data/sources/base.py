"""The protocol of sources of training data: a recipe's `data` section opens one."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic.dataclasses import dataclass

from bagel_mot.config import Section, Whole
from bagel_mot.data.dataset import DataGroup
from bagel_mot.data.documents import Document
from bagel_mot.data.mixing import BySamples, ByTokens, Mixture
from bagel_mot.data.samples import prompts_of, write_prompt_samples
from bagel_mot.data.supply import DrawnSupply, RowSupply, SampleGroup, Supply
from bagel_mot.errors import DataError
from bagel_mot.scope import Scope

_SAMPLES = 8  # rows that samples are made of
WeightBy = Literal["samples", "tokens"]
"""The unit of which the weights of groups are shares."""


class Source(ABC):
    """Training data.

    All but the groups are optional hooks. A recipe that needs one which a source lacks is refused; what would merely
    profit from it is left out.
    """

    rotation: int = 1
    """The number of streams of packs that take turns in each logical stream."""

    @abstractmethod
    def groups(self) -> Sequence[SampleGroup]:
        """The groups of samples, which are mixed by their weights.

        Raises:
            DataError: there are no data, or a file cannot be used.
        """

    def mixture(self, seed: str) -> Mixture:
        """The way in which the groups are mixed, with the randomness of a seed."""
        return BySamples([group.weight for group in self.groups()], seed)

    def _lacks(self, what: str) -> DataError:
        return DataError(f"{type(self).__name__}, the source that data.kind selects, has no {what}: take another one")

    def texts(self) -> Iterator[str]:
        """Texts to train a new model's tokenizer on, the same ones whenever asked."""
        raise self._lacks("texts to train a tokenizer on")

    def images(self, rng: random.Random, count: int) -> np.ndarray:
        """Typical images, uint8 (count, H, W, 3): latents are scaled by them, and reconstructions of them are shown."""
        raise self._lacks("images to train an autoencoder on")

    def masked_images(self, rng: random.Random, count: int) -> tuple[np.ndarray, np.ndarray]:
        """A batch for training an autoencoder: images, uint8 (count, H, W, 3), and the pixels whose errors weigh more,
        bool (count, H, W).
        """
        raise self._lacks("images to train an autoencoder on")

    def preview_images(self, side: int) -> Image.Image | None:
        """A sheet of 8 × 8 typical images, of `side` pixels a side each, that previews of a new model are fitted to."""
        return None

    def scope(self) -> Scope | None:
        """The scope of a model that is trained on these documents; None where that is not known."""
        return None

    def write_samples(self, bagel: Any, path: Path) -> None:  # noqa: B027
        """Writes a sheet of what a model draws, edits and answers, always for the same prompts.

        Args:
            bagel: the model, as `Bagel.from_pretrained` gives it.
            path: the sheet's PNG file; others may be put beside it.
        """


class IndexedSource(Source):
    """An endless supply of documents by index: the same index always gives the same document."""

    name: str = "documents"
    """The name of its one group."""

    @abstractmethod
    def __call__(self, index: int) -> Document:
        """The document of an index."""

    def groups(self) -> Sequence[SampleGroup]:
        return [SampleGroup(self.name, DrawnSupply(self))]


class FileSource(Source):
    """Groups of data sets on disk or the hub, each row once an epoch."""

    def __init__(self, groups: Sequence[DataGroup], weight_by: WeightBy = "samples") -> None:
        self._groups, self.weight_by = tuple(groups), weight_by

    def groups(self) -> Sequence[SampleGroup]:
        return [
            SampleGroup(group.name, self.supply(group), group.weight, group.mandatory, group.resumes)
            for group in self._groups
        ]

    def supply(self, group: DataGroup) -> Supply:
        """The rows of a group, in the order in which they are read."""
        return RowSupply(group.name, tuple(group.datasets))

    def mixture(self, seed: str) -> Mixture:
        return mixture_of(self.groups(), self.weight_by, seed)

    def write_samples(self, bagel: Any, path: Path) -> None:
        """Writes what the model makes of the first rows of each data set: a PNG sheet of images, and answers beside it
        as JSON.
        """
        datasets = [dataset for group in self._groups for dataset in group.datasets]
        write_prompt_samples(bagel, prompts_of(datasets, _SAMPLES), path)


def mixture_of(groups: Sequence[SampleGroup], weight_by: WeightBy, seed: str) -> Mixture:
    """The way in which groups are mixed, their weights being shares of the samples or of the tokens."""
    weights = [group.weight for group in groups]
    return ByTokens(weights) if weight_by == "tokens" else BySamples(weights, seed)


@dataclass(frozen=True, kw_only=True)
class SourceConfig(Section):
    """The base of a source's configuration, one type for each `kind`.

    Attributes:
        kind: the kind of source.
        workers: worker processes that decode and resize images and tokenize texts; with 0 a thread of the trainer does.
    """

    kind: str
    workers: Whole = 0

    def open(self, seed: int) -> Source:
        """The source.

        Args:
            seed: the seed of all its randomness.
        """
        raise NotImplementedError
