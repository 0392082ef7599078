"""What a forward pass of training keeps for the backward pass, and how its attention is computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from bagel_mot.errors import DeviceError
from bagel_mot.model.attention import Attention, MaskedAttention
from bagel_mot.model.bagel import BagelModel
from bagel_mot.sequence import TrainingLayout


def checkpoint_activations(model: BagelModel) -> None:
    """Lets every decoder layer keep its input alone, and compute what is in it again in the backward pass: about a
    third more work for a small part of the memory. Names and values of the weights stay as they are.
    """
    for layer in model.decoder.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def attention_of(name: str, device: torch.device) -> Callable[[TrainingLayout], Attention]:
    """
    Raises:
        DeviceError: FlexAttention is asked for where it has no gradients.
    """
    if name == "sdpa":
        return MaskedAttention
    if device.type != "cuda":
        raise DeviceError(f"attention is 'flex', which trains on CUDA devices only, and this is {device}: use 'sdpa'.")
    from bagel_mot.model.flex import FlexMaskedAttention

    return FlexMaskedAttention
