"""Compiled passes that multiply a few rows with quantised matrices as they are stored (`products.cpp`), on the CPU.

A decoded token uses each weight once. PyTorch takes ten to twenty times as long to dequantise a matrix of INT4 or NF4
for it as the product itself takes, and not all processors have a kernel that multiplies it as it is. Activations may be
of any floating-point type, in which the products are; sums are float32. Each function raises RuntimeError where there
are no compiled passes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bagel_mot.model.passes import call_compiled


def by_int8(x: Tensor, values: Tensor, scale: Tensor) -> Tensor:
    """Rows (T, in) are multiplied with values int8 (out, in) and a scale float32 (out,): (T, out)."""
    return _by("by_int8", x, values.shape[0], values, scale)


def by_fp8(x: Tensor, values: Tensor, scale: Tensor) -> Tensor:
    """Rows (T, in) are multiplied with values float8 e4m3 (out, in) and a scale float32 (out,): (T, out)."""
    return _by("by_fp8", x, values.shape[0], values, scale)


def by_nf4(x: Tensor, rows: int, block: int, levels: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
    """Rows (T, in) are multiplied with the parts of an `Nf4Matrix`: (T, out).

    Args:
        x: the rows.
        rows: the matrix's rows, out.
        block: weights that share a scale.
        levels: float32 (16,), the levels of weights.
        parts: its parts by name.
    """
    return _by("by_nf4", x, rows, parts["values"], *nf4_scales(parts), levels, more=(block,))


def by_int4(x: Tensor, values: Tensor, numbers: Tensor) -> Tensor:
    """Rows (T, in) are multiplied with the parts of an `Int4Matrix`: (T, out)."""
    return _by("by_int4", x, numbers.shape[1], values, numbers, more=(x.shape[1] // numbers.shape[0],))


def nf4_scales(parts: Mapping[str, Tensor], first: int = 0) -> tuple[Tensor | None, ...]:
    """The scales of an `Nf4Matrix` from a block on, (blocks,), as passes take them: in float32, or in 8 bits with what
    they are made of; the others are None.
    """
    scale = parts["scale"][first:]
    if scale.dtype == torch.uint8:
        return (None, scale, parts["scale_levels"], parts["scale_scale"], parts["scale_offset"])
    return (scale, None, None, None, None)


def _by(name: str, x: Tensor, out: int, *parts: Tensor | None, more: tuple[int, ...] = ()) -> Tensor:
    wide = x.float().contiguous()
    products = wide.new_empty(x.shape[0], out)
    call_compiled(name, wide, products, *parts, x.shape[0], out, x.shape[1], *more)
    return products.to(x.dtype)
