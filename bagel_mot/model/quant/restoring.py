"""Compiled passes that dequantise INT4 and NF4 on the CPU (`rounding.cpp`).

Before many rows are multiplied a piece of the matrix at a time is dequantised. By PyTorch's operations that took longer
than the product with some hundred rows. A pass makes the same bits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import torch
from torch import Tensor

from bagel_mot.model.kernels import INT4_ROWS
from bagel_mot.model.passes import TYPES, compiled


class Restoring:
    """The compiled passes for weights in one type.

    Args:
        dtype: float32 or bfloat16.

    Raises:
        RuntimeError: there are no compiled passes here.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        library = compiled()
        if library is None:
            raise RuntimeError("there are no compiled passes here")
        self._library, self.dtype = library, dtype

    def int4(self, parts: Mapping[str, Tensor], start: int, stop: int) -> Tensor:
        """Rows start..stop of the parts of an `Int4Matrix`, both multiples of 64: (stop − start, in)."""
        values, numbers = parts["values"][start // INT4_ROWS : stop // INT4_ROWS], parts["scale_and_middle"]
        inner, group = values.shape[1], values.shape[1] // numbers.shape[0]
        out = torch.empty(stop - start, inner, dtype=self.dtype)
        self._run("from_int4", values, numbers[:, start:], out, stop - start, inner, group, numbers.shape[1])
        return out

    def nf4(
        self, parts: Mapping[str, Tensor], levels: Tensor, shape: tuple[int, int], block: int, start: int
    ) -> Tensor:
        """Rows of the parts of an `Nf4Matrix`.

        Args:
            parts: its parts.
            levels: float32 (16,).
            shape: the number of rows that are wanted, and their width, a multiple of `block`.
            block: weights that share a scale.
            start: the first of the rows.

        Returns: (rows, in)
        """
        (rows, inner), first = shape, start * shape[1] // block
        values, scale = parts["values"].flatten()[start * inner // 2 :], parts["scale"][first:]
        out = torch.empty(rows, inner, dtype=self.dtype)
        scales: tuple[Tensor | None, ...] = (scale, None, None, None, None)
        if scale.dtype == torch.uint8:
            scales = (None, scale, parts["scale_levels"], parts["scale_scale"], parts["scale_offset"])
        self._run("from_nf4", values, *scales, levels, out, rows * inner // block, block, first)
        return out

    def _run(self, name: str, *arguments: Tensor | int | None) -> None:
        function = getattr(self._library, f"{name}_{TYPES[self.dtype]}")
        places = [
            ctypes.c_int64(given)
            if isinstance(given, int)
            else ctypes.c_void_p(None if given is None else given.data_ptr())
            for given in arguments
        ]
        function(*places, ctypes.c_int(torch.get_num_threads()))
