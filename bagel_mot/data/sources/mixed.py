"""Several sources as one, mixed by their weights."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from bagel_mot.data.mixing import Mixture
from bagel_mot.data.sources.base import Source, WeightBy, mixture_of
from bagel_mot.data.supply import SampleGroup
from bagel_mot.errors import DataError
from bagel_mot.scope import Scope


class MixedPart(NamedTuple):
    """A source of a mixture.

    Attributes:
        source: the source.
        weight: its share, relative to those of the others; its groups divide it by their own weights.
        mandatory: whether every pack has a sample of each of its groups.
        name: its name in reports; None takes the names of its groups.
        replayed: whether it is what the model knows already.
    """

    source: Source
    weight: float = 1.0
    mandatory: bool = False
    name: str | None = None
    replayed: bool = False


class MixedSource(Source):
    """The groups of several sources. All optional hooks are those of the first source, the one that is trained on.

    Attributes:
        parts: the sources.
        weight_by: the unit of the weights, samples or tokens.
    """

    def __init__(self, parts: Sequence[MixedPart], weight_by: WeightBy = "samples") -> None:
        self.parts, self.weight_by = tuple(parts), weight_by

    def groups(self) -> Sequence[SampleGroup]:
        mixed: list[SampleGroup] = []
        for source, weight, mandatory, name, replayed in self.parts:
            if source.rotation > 1:
                raise DataError("data of sharding: published cannot be mixed with others; give them alone")
            groups = source.groups()
            total = sum(group.weight for group in groups) or 1.0
            for group in groups:
                named = group.name if name is None else name if len(groups) == 1 else f"{name}/{group.name}"
                share, always = weight * group.weight / total, mandatory or group.mandatory
                mixed.append(replace(group, name=named, weight=share, mandatory=always, replayed=replayed))
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
        return self.parts[0].source.texts()

    def images(self, rng: random.Random, count: int) -> np.ndarray:
        return self.parts[0].source.images(rng, count)

    def masked_images(self, rng: random.Random, count: int) -> tuple[np.ndarray, np.ndarray]:
        return self.parts[0].source.masked_images(rng, count)

    def preview_images(self, side: int) -> Image.Image | None:
        return self.parts[0].source.preview_images(side)

    def scope(self) -> Scope | None:
        return self.parts[0].source.scope()

    def write_samples(self, bagel: Any, path: Path) -> None:
        self.parts[0].source.write_samples(bagel, path)
