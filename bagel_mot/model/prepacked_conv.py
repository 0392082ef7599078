"""Convolutions in the order in which the CPU computes them: the autoencoder's, for inference.

As `bagel_mot.model.prepacked` does with matrices, weights are brought into oneDNN's order once, at loading. A
prepacked convolution also adds its result to a feature map that is there already, which saves a pass over memory in
each residual block.

Doubling the sides of a feature map by nearest neighbours and then convolving it 3×3 reads each of its pixels up to four
times, with weights that can be added up beforehand: every output pixel is a 2×2 convolution of the smaller map, with
kernels of its own for the four places that a pixel has in its square. That is the same sum with 4/9 of the products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bagel_mot.model import kernels
from bagel_mot.model.vae_parts import Upsample

# Smaller weights stay as they are: those of `mini` in float32, and of the first and the last convolution.
_SMALLEST = {torch.float32: 1 << 18, torch.bfloat16: 1 << 14}


class PrepackedConv2d(nn.Module):
    """A convolution for inference on the CPU. In a state dictionary it is as the `nn.Conv2d` it was made from."""

    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.out_channels, self.in_channels = conv.weight.shape[:2]
        self.stride, self.padding = conv.stride[0], (int(conv.padding[0]), int(conv.padding[1]))
        # Opaque to all operations but a few, thus neither parameter nor buffer, which would be moved and cast.
        self.weight = kernels.prepack_convolution(conv.weight.detach(), self.stride, self.padding[0])
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H', W')"""
        return self.padded(x, self.padding)

    def padded(self, x: Tensor, padding: tuple[int, int]) -> Tensor:
        """The convolution of (B, in_channels, H, W) with another padding of (rows, columns)."""
        return kernels.prepacked_convolution(x, self.weight, self.bias, self.stride, padding)

    def add_to(self, total: Tensor, x: Tensor, padding: tuple[int, int]) -> None:
        """Adds the convolution of x (B, in_channels, H, W), of stride 1, to `total` (B, out_channels, H', W')."""
        kernels.add_prepacked_convolution(total, x, self.weight, self.bias, padding)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.weight.to_dense()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, stride={self.stride}, padding={self.padding}"


def doubling_weight(weight: Tensor) -> Tensor:
    """The kernels of a 3×3 convolution after doubling, for each place of a pixel in its square of 2×2.

    Args:
        weight: (out, in, 3, 3)

    Returns: (4·out, in, 2, 2): the four places row by row, each with all its output channels. Sums are rounded once.
    """
    first, second, third = weight.float().unbind(2)
    rows = torch.stack([first, second + third, first + second, third], 2).unflatten(2, (2, 2))  # (out, in, 2, 2, 3)
    left, middle, right = rows.unbind(4)
    both = torch.stack([left, middle + right, left + middle, right], 4).unflatten(4, (2, 2))
    # (out, in, place's row, kernel's row, place's column, kernel's column)
    return both.permute(2, 4, 0, 1, 3, 5).flatten(0, 2).to(weight.dtype)


def prepack_convolutions(autoencoder: nn.Module) -> int:
    """Prepacks the convolutions of an autoencoder for inference on the CPU, one after another, so that no more than
    one weight is held twice; those after a doubling of sides stay beside what is made of them.

    Left as they are: weights elsewhere, of a precision this processor does not multiply, and small ones. Afterwards the
    autoencoder can be neither trained nor moved.

    Returns:
        How many convolutions were prepacked.
    """
    count = 0
    for name, child in list(autoencoder.named_modules()):
        if not isinstance(child, nn.Conv2d) or not _pays(child.weight):
            continue
        parent_name, _, leaf = name.rpartition(".")
        parent = autoencoder.get_submodule(parent_name)
        if isinstance(parent, Upsample):
            parent.doubling = kernels.prepack_convolution(doubling_weight(child.weight.detach()), 1, 1)
        else:
            setattr(parent, leaf, PrepackedConv2d(child))
        count += 1
    return count


def _pays(weight: Tensor) -> bool:
    on_cpu = weight.device.type == "cpu"
    smallest = _SMALLEST.get(weight.dtype)
    return (
        on_cpu
        and smallest is not None
        and weight.numel() >= smallest
        and kernels.can_prepack_convolutions(weight.dtype)
    )
