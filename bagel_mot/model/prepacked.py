"""Weights in the order in which the CPU multiplies them.

oneDNN, which multiplies matrices on the CPU, works on blocks of a weight matrix. Given a plain matrix it first brings
all of it into blocks, in every call: for a decoded token, which uses each weight once, that costs more than the
multiplication. Here it is done once, in place of the plain weights. In bfloat16 a decoded token then takes half the
time, and large matmuls gain 5 to 15%.
"""

from __future__ import annotations

import platform
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# oneDNN takes longer for one to three rows than for four: 10 to 15% for one, a third for two.
_FEWEST_ROWS = 4
# In float32 small weights cost more to hand to oneDNN than to multiply in the plain way: those of `mini`, for example.
_SMALLEST_FLOAT32 = 1 << 18

_OPERATIONS = "_reorder_linear_weight", "_linear_pointwise"  # PyTorch's own, behind its ahead-of-time compiler


class PackedLinear(nn.Module):
    """A linear map for inference on the CPU. In a state dictionary it is as the `nn.Linear` it was made from."""

    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        # Opaque to all operations but a few, thus neither parameter nor buffer, which would be moved and cast.
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """(T, in_features) -> (T, out_features)

        Raises:
            RuntimeError: a gradient is wanted.
        """
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError("packed weights are for inference: load the model anew to train it")
        tokens = x.shape[0]
        if tokens < _FEWEST_ROWS:
            x = F.pad(x, (0, 0, 0, _FEWEST_ROWS - tokens))
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")[:tokens]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.weight.to_dense()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def pack_weights(module: nn.Module) -> int:
    """Packs every linear map inside a module for inference on the CPU, one after another, so that no more than one
    matrix is held twice.

    Left as they are: weights elsewhere, of a precision this processor does not multiply, small ones in float32, and
    those tied to other modules; and all of them where PyTorch comes without oneDNN. Afterwards the module cannot be
    trained, moved or compiled.

    Returns:
        How many linear maps were packed.
    """
    owners: dict[int, int] = {}
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    tied = {
        name for name, child in module.named_modules() if isinstance(child, nn.Linear) and owners[id(child.weight)] > 1
    }
    return sum(pack_linear(module, name) for name, _ in list(module.named_modules()) if name not in tied)


def pack_linear(module: nn.Module, name: str) -> bool:
    """Packs one linear map inside a module, if it is one and that pays. Its weights are not tied to others."""
    child = module.get_submodule(name)
    if type(child) is not nn.Linear or not _pays(child.weight) or not can_pack(child.weight.dtype):
        return False
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, PackedLinear(child))
    return True


def _pays(weight: Tensor) -> bool:
    small = weight.dtype == torch.float32 and weight.numel() < _SMALLEST_FLOAT32
    return weight.device.type == "cpu" and not small


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this processor and this PyTorch multiply packed weights of a precision, and rightly so."""
    operations = torch.ops.mkldnn
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():
        return False
    if not all(hasattr(operations, name) for name in _OPERATIONS):
        return False
    if dtype == torch.bfloat16 and not operations._is_mkldnn_bf16_supported():
        return False
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    # The operations are not part of PyTorch's public interface, so they are tried before they are trusted.
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(48, 80, dtype=dtype)
    x = torch.randn(3, 48, generator=generator).to(dtype)
    with torch.no_grad():
        try:
            close = torch.allclose(PackedLinear(linear)(x), F.linear(x, linear.weight, linear.bias), 0.02, 0.02)
        except (RuntimeError, TypeError):
            return False
    return close
