"""Matmuls in float8 by torchao: the seven matrices of each expert, with a scale for each row."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from bagel_mot.errors import DeviceError
from bagel_mot.installation import install_command
from bagel_mot.model.kernels import has_float8_matmul

_NAMES = frozenset({"q", "k", "v", "o", "gate", "up", "down"})
_MULTIPLE = 16  # the kernels take sides of multiples of this


def check_float8(device: torch.device) -> None:
    """Checks that a device multiplies in float8, and that torchao is installed.

    Raises:
        DeviceError: it does not.
    """
    if not has_float8_matmul(device):
        what = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        raise DeviceError(
            f"parallel.enable_float8 is true, but {what} does not multiply in float8: an NVIDIA GPU of the generations "
            "Ada, Hopper or newer does, and some of AMD's; set it to false"
        )
    try:
        import torchao.float8  # noqa: F401
    except ImportError as error:
        raise DeviceError(
            f"parallel.enable_float8 is true, but torchao is missing: {install_command('float8')}"
        ) from error


def convert_layers(layers: Iterable[nn.Module]) -> None:
    """Lets the big matrices of decoder layers multiply in float8. The names and types of the weights stay."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config = Float8LinearConfig.from_recipe_name("rowwise")
    for layer in layers:
        convert_to_float8_training(layer, config=config, module_filter_fn=is_converted)


def is_converted(module: nn.Module, name: str) -> bool:
    """Whether a module of a decoder layer multiplies in float8: its seven matrices do, if their sides allow it."""
    return (
        name.rpartition(".")[2] in _NAMES
        and type(module) is nn.Linear
        and module.in_features % _MULTIPLE == 0
        and module.out_features % _MULTIPLE == 0
    )
