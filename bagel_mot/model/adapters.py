"""Low-rank adapters of the model's matrices: LoRA (Hu et al. 2021), rsLoRA (Kalajdzievski 2023) and DoRA (Liu et al.
2024), as numbers without a model.

    LoRA    W + s·B·A                     s = α/r, with rsLoRA α/√r
    DoRA    m ∘ (W + s·B·A) / ‖W + s·B·A‖   m and the norms are those of rows, one for each output

An adapter's strength multiplies what it changes: W + strength · (W′ − W). So 0 is off and 0.5 is halfway, of DoRA, too,
and the changes of several adapters add up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

ExpertMatrix = Literal["q", "k", "v", "o", "gate", "up", "down"]
EXPERT_MATRICES: tuple[ExpertMatrix, ...] = ("q", "k", "v", "o", "gate", "up", "down")
"""The matrices of an expert in one layer, by our names."""


@dataclass(frozen=True)
class MatrixAdapter:
    """The adapter of one matrix (out, in).

    Attributes:
        down: A, (rank, in).
        up: B, (out, rank).
        alpha: α.
        magnitude: m of DoRA, (out,); None for LoRA.
    """

    down: Tensor
    up: Tensor
    alpha: float
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """r"""
        return self.down.shape[0]

    def scale(self, rslora: bool) -> float:
        """s, the factor of B·A."""
        return self.alpha / (math.sqrt(self.rank) if rslora else self.rank)

    def change(self, weight: Tensor, rslora: bool) -> Tensor:
        """W′ − W of a weight (out, in), which it changes, in float32."""
        wide = weight.float()
        low = self.scale(rslora) * (self.up.float() @ self.down.float())
        if self.magnitude is None:
            return low
        adapted = wide + low
        return adapted * (self.magnitude.float() / adapted.norm(dim=1))[:, None] - wide


@dataclass(frozen=True)
class Adapter:
    """Adapters of a model's matrices that belong together.

    Attributes:
        matrices: the adapter of each matrix, by our name of the linear map (`decoder.layers.0.gen.q`).
        rslora: whether the scales are those of rsLoRA.
    """

    matrices: Mapping[str, MatrixAdapter]
    rslora: bool = False

    @property
    def dora(self) -> bool:
        """Whether some of the matrices have magnitudes."""
        return any(matrix.magnitude is not None for matrix in self.matrices.values())

    @property
    def parameters(self) -> int:
        """The number of its parameters."""
        parts = ((matrix.down, matrix.up, matrix.magnitude) for matrix in self.matrices.values())
        return sum(part.numel() for matrix in parts for part in matrix if part is not None)


def merge(weight: Tensor, name: str, adapters: Iterable[tuple[Adapter, float]]) -> Tensor:
    """A weight with adapters merged into it.

    Args:
        weight: (out, in) of any floating-point type.
        name: our name of its linear map.
        adapters: adapters with their strengths; those that do not adapt this matrix change nothing.

    Returns: (out, in) in float32; the weight itself where nothing changes it.
    """
    changes = [
        strength * adapter.matrices[name].change(weight, adapter.rslora)
        for adapter, strength in adapters
        if name in adapter.matrices and strength
    ]
    return torch.stack([weight.float(), *changes]).sum(0) if changes else weight
