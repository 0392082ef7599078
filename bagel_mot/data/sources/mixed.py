"""Several sources as one, mixed by their weights."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bagel_mot.data.mixing import Mixture
from bagel_mot.data.sources.base import Source, WeightBy, mixture_of
from bagel_mot.data.supply import SampleGroup
from bagel_mot.scope import Scope


class MixedSource(Source):
    """The groups of several sources. All optional hooks are those of the first source, the one that is trained on.

    Attributes:
        sources: the sources.
        weights: the share of each in the samples, or tokens, relative to the others; the groups of a source divide its
            share by their own weights.
        weight_by: the unit of the shares.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float], weight_by: WeightBy = "samples") -> None:
        self.sources, self.weights, self.weight_by = tuple(sources), tuple(weights), weight_by

    def groups(self) -> Sequence[SampleGroup]:
        mixed: list[SampleGroup] = []
        for source, weight in zip(self.sources, self.weights, strict=True):
            groups = source.groups()
            total = sum(group.weight for group in groups) or 1.0
            mixed += [replace(group, weight=weight * group.weight / total) for group in groups]
        names = [group.name for group in mixed]
        return [
            replace(group, name=f"{group.name} ({names[: number + 1].count(group.name)})")
            if names.count(group.name) > 1
            else group
            for number, group in enumerate(mixed)
        ]

    def mixture(self, seed: str) -> Mixture:
        return mixture_of(self.groups(), self.weight_by, seed)

    def texts(self) -> Iterator[str]:
        return self.sources[0].texts()

    def images(self, rng: random.Random, count: int) -> np.ndarray:
        return self.sources[0].images(rng, count)

    def masked_images(self, rng: random.Random, count: int) -> tuple[np.ndarray, np.ndarray]:
        return self.sources[0].masked_images(rng, count)

    def preview_images(self, side: int) -> Image.Image | None:
        return self.sources[0].preview_images(side)

    def scope(self) -> Scope | None:
        return self.sources[0].scope()

    def write_samples(self, bagel: Any, path: Path) -> None:
        self.sources[0].write_samples(bagel, path)
