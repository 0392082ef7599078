"""Weights in the order in which the CPU multiplies them.

oneDNN, which multiplies matrices on the CPU, works on blocks of a weight matrix. Given a plain matrix it first brings
all of it into blocks, in every call: for a decoded token, which uses each weight once, that costs more than the
multiplication. Here it is done once, in place of the plain weights. In bfloat16 a decoded token then takes half the
time, and large matmuls gain 5 to 15%.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bagel_mot.model import kernels
from bagel_mot.model.widened import WidenedLinear, can_be_widened

FEWEST_ROWS = 4
"""oneDNN takes longer for one to three rows than for four: 10 to 15% for one, a third for two."""
# In float32 small weights cost more to hand to oneDNN than to multiply in the plain way: those of `mini`, for example.
_SMALLEST_FLOAT32 = 1 << 18


class PrepackedLinear(nn.Module):
    """A linear map for inference on the CPU. In a state dictionary it is as the `nn.Linear` it was made from."""

    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        # Opaque to all operations but a few, thus neither parameter nor buffer, which would be moved and cast.
        self.weight = kernels.prepack(weight.detach())
        self.register_buffer("bias", None if bias is None else bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """(T, in_features) -> (T, out_features)

        Raises:
            RuntimeError: a gradient is wanted.
        """
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError("prepacked weights are for inference: load the model anew to train it")
        if (tokens := x.shape[0]) >= FEWEST_ROWS:
            return kernels.prepacked_linear(x, self.weight, self.bias)
        x = F.pad(x, (0, 0, 0, FEWEST_ROWS - tokens))
        return kernels.prepacked_linear(x, self.weight, self.bias)[:tokens]

    def added_to(self, other: Tensor, x: Tensor) -> Tensor:
        """other (T, out_features) + the products of x (T, in_features), rounded once: (T, out_features)."""
        if x.shape[0] < FEWEST_ROWS:
            return other + self(x)
        return kernels.prepacked_linear_added(x, self.weight, self.bias, other)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.weight.to_dense()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def prepack_weights(module: nn.Module) -> int:
    """Prepacks every linear map inside a module for inference on the CPU, one after another, so that no more than one
    matrix is held twice.

    Left as they are: weights elsewhere, small ones in float32, and those tied to other modules; and all of them where
    PyTorch comes without oneDNN. Where a processor does not multiply in half precision, products are taken in float32
    instead (`bagel_mot.model.widened`). Afterwards the module cannot be trained, moved or compiled.

    Returns:
        How many linear maps were changed.
    """
    owners: dict[int, int] = {}
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    tied = {
        name for name, child in module.named_modules() if isinstance(child, nn.Linear) and owners[id(child.weight)] > 1
    }
    return sum(prepack_linear(module, name) for name, _ in list(module.named_modules()) if name not in tied)


def prepack_linear(module: nn.Module, name: str) -> bool:
    """Prepacks one linear map inside a module, or takes its products in float32, if it is one and that pays. Its
    weights are not tied to others.
    """
    child = module.get_submodule(name)
    if type(child) is not nn.Linear:
        return False
    if can_be_prepacked(child.weight):
        made: nn.Module = PrepackedLinear(child.weight, child.bias)
    elif can_be_widened(child.weight):
        made = WidenedLinear.of(child.weight, child.bias)
    else:
        return False
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, made)
    return True


def can_be_prepacked(weight: Tensor) -> bool:
    """Whether a weight (out, in) can be prepacked, and that pays."""
    small = weight.dtype == torch.float32 and weight.numel() < _SMALLEST_FLOAT32
    return weight.device.type == "cpu" and not small and kernels.can_prepack(weight.dtype)
