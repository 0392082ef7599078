"""Whether numbers are finite: neither infinite nor NaN."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

# The lowest code of an infinity or NaN, without its sign.
_FLOAT8 = {torch.float8_e4m3fn: 127, torch.float8_e5m2: 124}


def is_finite(tensor: Tensor) -> bool:
    """Whether all values of a tensor (any shape) are finite. Takes no memory beside it, but waits for its device."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    if tensor.dtype in _FLOAT8:
        first = _FLOAT8[tensor.dtype]
        highest, lowest = int(tensor.view(torch.int8).amax()), int(tensor.view(torch.uint8).amax())
        return highest < first and lowest < first + 128
    low, high = torch.stack(tensor.aminmax()).tolist()
    return math.isfinite(low) and math.isfinite(high)


def finite_rows(values: Tensor) -> Tensor:
    """Whether all values of each row (R, N) are finite: (R,) on the device, which nothing waits for."""
    return values.float().sum(-1).isfinite()


def first_not_finite(module: nn.Module) -> tuple[str, Tensor] | None:
    """The first weight (any shape) of a module that is not finite, with its name in the state dictionary; None if all
    are. Weights are looked at one by one, as the state dictionary has them; those on the meta device are left out.
    """
    for name, tensor in _weights(module):
        if tensor.device.type != "meta" and not is_finite(tensor):
            return name, tensor
    return None


def _weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, part in module.named_modules():
        own: dict[str, Tensor] = {}
        part._save_to_state_dict(own, f"{path}." if path else "", False)
        yield from own.items()
