"""The tensors that a model of some configuration has, with their shapes: no weights are made."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

import torch

from bagel_mot.config import BagelConfig, VaeConfig
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.vae import Autoencoder
from bagel_mot.model.without_values import without_values


@cache
def model_shapes(config: BagelConfig, *, reads: bool = True, draws: bool = True) -> Mapping[str, torch.Size]:
    """The shapes of a `BagelModel`'s tensors by our names, in the model's order.

    Args:
        config: the model's configuration.
        reads: whether the parts that read images are among them.
        draws: whether the parts that draw images are among them.
    """
    with without_values():
        model = BagelModel(config)
    model.drop(image_input=not reads, image_output=not draws)
    return MappingProxyType({name: tensor.shape for name, tensor in model.state_dict().items()})


@cache
def autoencoder_shapes(config: VaeConfig) -> Mapping[str, torch.Size]:
    """The shapes of an `Autoencoder`'s tensors by name."""
    with without_values():
        autoencoder = Autoencoder(config)
    return MappingProxyType({name: tensor.shape for name, tensor in autoencoder.state_dict().items()})


def weight_count(config: BagelConfig) -> int:
    """The number of weights of a whole `BagelModel`."""
    return sum(shape.numel() for shape in model_shapes(config).values())
