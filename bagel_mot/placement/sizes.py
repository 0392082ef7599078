"""Bytes of a model's weights by part, in any precision, from its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from bagel_mot.checkpoint.official import needed
from bagel_mot.checkpoint.precision import Precision, format_of
from bagel_mot.config import BagelConfig
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.quant import FORMATS
from bagel_mot.model.vae import Autoencoder


@dataclass(frozen=True)
class Sizes:
    """Bytes.

    Attributes:
        layer: of one decoder layer, both experts or the one that is loaded.
        layers: how many there are.
        embedding: of the token embedding.
        rest: of everything else in the model.
        autoencoder: of the autoencoder.
        largest: of the largest tensor as it is read.
        parameters: of one expert in all layers; no bytes, but how many.
    """

    layer: int
    layers: int
    embedding: int
    rest: int
    autoencoder: int
    largest: int
    parameters: int

    @property
    def outside(self) -> int:
        """Everything but the layers."""
        return self.embedding + self.rest + self.autoencoder

    @property
    def total(self) -> int:
        return self.layer * self.layers + self.outside


@cache
def _shapes(config: BagelConfig, reads: bool, draws: bool) -> tuple[dict[str, tuple[int, ...]], int]:
    with torch.device("meta"):
        model, autoencoder = BagelModel(config), Autoencoder(config.vae)
    model.drop(pictures_in=not reads, pictures_out=not draws)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return shapes, sum(p.numel() for p in autoencoder.parameters()) if draws else 0


def sizes(config: BagelConfig, precision: Precision, tasks: tuple[str, ...]) -> Sizes:
    """What the parts take that some tasks need."""
    shapes, images = _shapes(config, *needed(tasks))
    layer = embedding = rest = largest = expert = 0
    for name, shape in shapes.items():
        plain = torch.Size(shape).numel() * precision.activations.itemsize
        stored = precision.stored_as(name)
        kind = None if stored is None else FORMATS[format_of(stored)]
        small = kind is not None and kind.fits((shape[0], shape[1]))
        size = kind.stored_bytes((shape[0], shape[1])) if kind is not None and small else plain
        largest = max(largest, plain)
        if name.startswith("decoder.layers.0."):
            layer += size
            expert += torch.Size(shape).numel() if ".und." in name else 0
        elif name == "decoder.embed_tokens.weight":
            embedding = size
        elif not name.startswith("decoder.layers."):
            rest += size
    layers = config.decoder.num_layers
    images *= precision.autoencoder.itemsize
    return Sizes(layer, layers, embedding, rest, images, largest, expert * layers)
