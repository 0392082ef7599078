"""Compiled passes that dequantise INT4 and NF4 on the CPU (`rounding.cpp`).

Before many rows are multiplied a piece of the matrix at a time is dequantised. By PyTorch's operations that took longer
than the product with some hundred rows. A pass makes the same bits, in float32 or bfloat16. Each function raises
RuntimeError where there are no compiled passes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bagel_mot.model.kernels import INT4_ROWS
from bagel_mot.model.passes import TYPES, call_compiled
from bagel_mot.model.quant.products import nf4_scales


def restored_int4(parts: Mapping[str, Tensor], dtype: torch.dtype, start: int, stop: int) -> Tensor:
    """Rows start..stop of the parts of an `Int4Matrix`, both multiples of 64: (stop − start, in)."""
    values, numbers = parts["values"][start // INT4_ROWS : stop // INT4_ROWS], parts["scale_and_middle"]
    inner, group = values.shape[1], values.shape[1] // numbers.shape[0]
    out = torch.empty(stop - start, inner, dtype=dtype)
    sizes = stop - start, inner, group, numbers.shape[1]
    call_compiled(f"from_int4_{TYPES[dtype]}", values, numbers[:, start:], out, *sizes)
    return out


def restored_nf4(
    parts: Mapping[str, Tensor], dtype: torch.dtype, levels: Tensor, shape: tuple[int, int], block: int, start: int
) -> Tensor:
    """Rows of the parts of an `Nf4Matrix`.

    Args:
        parts: its parts.
        dtype: the type of the rows.
        levels: float32 (16,).
        shape: the number of rows that are wanted, and their width, a multiple of `block`.
        block: weights that share a scale.
        start: the first of the rows.

    Returns: (rows, in)
    """
    (rows, inner), first = shape, start * shape[1] // block
    values, out = parts["values"].flatten()[start * inner // 2 :], torch.empty(rows, inner, dtype=dtype)
    sizes = rows * inner // block, block, first
    call_compiled(f"from_nf4_{TYPES[dtype]}", values, *nf4_scales(parts, first), levels, out, *sizes)
    return out
