"""A unified model changed for a run by its `parallel` section, from outside: the model itself knows nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from bagel_mot.model.bagel import BagelModel
from bagel_mot.parallel.activations import checkpoint_activations
from bagel_mot.parallel.config import ParallelConfig
from bagel_mot.parallel.float8 import check_float8, convert_layers
from bagel_mot.parallel.fsdp import ReadPart, ShardValues, quantised_apart, shard, take_values
from bagel_mot.parallel.ranks import Ranks
from bagel_mot.parallel.tensor import divide_experts
from bagel_mot.parallel.ulysses import SequenceShare


def parallelise(
    model: BagelModel,
    ranks: Ranks,
    config: ParallelConfig,
    *,
    precision: str,
    device: torch.device,
    compiled: Callable[[Any], Any] | None = None,
    draws: bool = False,
    read: ReadPart | None = None,
) -> None:
    """Divides a model among the processes of a run, and moves it to the device.

    Args:
        model: the model, changed in place. Its values are needed in the first process alone, and with `read` in none;
            elsewhere it may be on the meta device.
        ranks: the processes.
        config: the recipe's section.
        precision: the recipe's precision.
        device: the device that computes.
        compiled: compiles the pass of each layer; None for none.
        draws: whether layers draw random numbers, such as those of dropout.
        read: reads the parts of its values that this process keeps, where there are several.

    Raises:
        RecipeError: the model cannot be divided in this way.
        DeviceError: float8 is asked for where there is none.
    """
    layers = cast("list[nn.Module]", list(model.decoder.layers))
    if config.enable_float8:
        check_float8(device)
        convert_layers(layers)
    values: ShardValues | None = read
    if ranks.tensor_mesh is not None:
        values = take_values(model, ranks) if values is None else values
        divide_experts(layers, ranks)
    if ranks.context_mesh is not None:
        SequenceShare(ranks).divide(model.decoder)
    checkpoint_activations(layers, config.activation_checkpoint, draws=draws)
    if compiled is not None:
        for layer in layers:
            # The pass alone, so that what FSDP does before and after it stays outside.
            layer.forward = compiled(layer.forward)
    if ranks.mesh is None:
        model.to(device)
        return
    with quantised_apart(model, device):
        units = [*layers, model.vit]
        shard(model, units, ("logits", "velocity"), ranks, config, precision, device, values)
