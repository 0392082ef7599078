"""Compiled passes that multiply a few rows with quantised matrices as they are stored (`products.cpp`), on the CPU.

A decoded token uses each weight once. PyTorch takes ten to twenty times as long to dequantise a matrix of INT4 or NF4
for it as the product itself takes, and not all processors have a kernel that multiplies it as it is.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from bagel_mot.model.passes import compiled

LEAST_WEIGHTS = 1 << 18
"""Smaller matrices are not worth a compiler's seconds."""


class Products:
    """The compiled passes. Activations are (T, in) in any floating-point type, products (T, out) in the same; sums are
    float32.

    Raises:
        RuntimeError: there are no compiled passes here.
    """

    def __init__(self) -> None:
        library = compiled()
        if library is None:
            raise RuntimeError("there are no compiled passes here")
        self._library = library

    def by_int8(self, x: Tensor, values: Tensor, scale: Tensor) -> Tensor:
        """Rows (T, in) are multiplied with values int8 (out, in) and a scale float32 (out,): (T, out)."""
        return self._run("by_int8", x, values.shape[0], values, scale)

    def by_fp8(self, x: Tensor, values: Tensor, scale: Tensor) -> Tensor:
        """Rows (T, in) are multiplied with values float8 e4m3 (out, in) and a scale float32 (out,): (T, out)."""
        return self._run("by_fp8", x, values.shape[0], values, scale)

    def by_nf4(self, x: Tensor, rows: int, block: int, levels: Tensor, parts: dict[str, Tensor]) -> Tensor:
        """Rows (T, in) are multiplied with the parts of an `Nf4Matrix`: (T, out).

        Args:
            x: the rows.
            rows: the matrix's rows, out.
            block: weights that share a scale.
            levels: float32 (16,), the levels of weights.
            parts: its parts by name.
        """
        values, scale = parts["values"], parts["scale"]
        if scale.dtype == torch.uint8:
            fine = scale, parts["scale_levels"], parts["scale_scale"], parts["scale_offset"]
            return self._run("by_nf4", x, rows, values, None, *fine, levels, more=(block,))
        return self._run("by_nf4", x, rows, values, scale, *[None] * 4, levels, more=(block,))

    def by_int4(self, x: Tensor, values: Tensor, numbers: Tensor) -> Tensor:
        """Rows (T, in) are multiplied with the parts of an `Int4Matrix`: (T, out)."""
        group = x.shape[1] // numbers.shape[0]
        return self._run("by_int4", x, numbers.shape[1], values, numbers, more=(group,))

    def _run(self, name: str, x: Tensor, out: int, *parts: Tensor | None, more: tuple[int, ...] = ()) -> Tensor:
        wide = x.float().contiguous()
        products = wide.new_empty(x.shape[0], out)
        places = (None if part is None else part.data_ptr() for part in (wide, products, *parts))
        sizes = (*x.shape[:1], out, x.shape[1], *more)
        getattr(self._library, name)(
            *map(ctypes.c_void_p, places), *map(ctypes.c_int64, sizes), ctypes.c_int(torch.get_num_threads())
        )
        return products.to(x.dtype)
