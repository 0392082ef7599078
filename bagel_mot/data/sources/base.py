"""The protocol of sources of training data: a recipe's `data` section opens one."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bagel_mot.config import Section
from bagel_mot.data.documents import Document
from bagel_mot.errors import DataError
from bagel_mot.scope import Scope


class Source(ABC):
    """An endless supply of documents by index: the same index always gives the same document.

    All but the documents are optional hooks. A recipe that needs one which a source lacks is refused; what would merely
    profit from it is left out.
    """

    def _lacks(self, what: str) -> DataError:
        return DataError(f"{type(self).__name__}, the source that data.kind selects, has no {what}: take another one")

    @abstractmethod
    def __call__(self, index: int) -> Document:
        """The document of an index."""

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


class SourceConfig(Section):
    """The base of a source's configuration, one type for each `kind`."""

    kind: str

    def open(self, seed: int) -> Source:
        """The source.

        Args:
            seed: the seed of all its randomness.
        """
        raise NotImplementedError
