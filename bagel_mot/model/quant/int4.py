"""INT4: whole numbers of four bits, a scale and a middle for each group of neighbours in a row."""

from __future__ import annotations

import torch
from torch import Tensor

from bagel_mot.allocator import on_own_pages
from bagel_mot.errors import CheckpointError
from bagel_mot.model.kernels import INT4_ROWS, has_int4_kernel, int4_weight_matmul, join_nibbles, split_nibbles
from bagel_mot.model.quant.base import QuantisedMatrix, bfloat16_scale, pieces, wide_pieces
from bagel_mot.model.quant.products import by_int4
from bagel_mot.model.quant.restoring import restored_int4
from bagel_mot.model.quant.rounding import BLOCK, Rounded, Rounding, rounded

_GROUPS = (64, 32)


class Int4Matrix(QuantisedMatrix):
    """`values` uint8 (out/64, in, 32), `scale_and_middle` bfloat16 (in/group, out, 2).

    A weight is (q − 8)·scale + middle with q in 0..15; the values are in the order of `join_nibbles`.
    """

    format = "int4"
    few_rows = pass_rows = 48

    @classmethod
    def fits(cls, shape: tuple[int, int]) -> bool:
        return shape[0] % INT4_ROWS == 0 and group_of(shape[1]) is not None

    @classmethod
    def stored_bytes(cls, shape: tuple[int, int]) -> int:
        group = group_of(shape[1])
        assert group is not None
        return shape[0] * shape[1] // 2 + 4 * shape[0] * shape[1] // group

    @classmethod
    def quantise(cls, weight: Tensor) -> Int4Matrix:
        """The nearest matrix to a weight (out, in); CheckpointError where its shape does not fit."""
        out, inner = weight.shape
        group = group_of(inner)
        if group is None or not cls.fits((out, inner)):
            raise CheckpointError(
                f"a matrix of {out}×{inner} cannot be INT4: it takes multiples of {INT4_ROWS} and of 32"
            )
        plain = cls._rounded
        values, numbers = rounded(weight, Rounding.int4, plain) if group == BLOCK else plain(weight)
        return cls((out, inner), {"values": values, "scale_and_middle": numbers})

    @classmethod
    def _rounded(cls, weight: Tensor) -> Rounded:
        """A weight (out, in) as values and numbers, by PyTorch's operations."""
        out, inner = weight.shape
        group = group_of(inner)
        assert group is not None
        values = on_own_pages((out // INT4_ROWS, inner, INT4_ROWS // 2), torch.uint8, weight.device)
        numbers = on_own_pages((inner // group, out, 2), torch.bfloat16, weight.device)
        for start, stop, wide in wide_pieces(weight, INT4_ROWS):
            grouped = wide.view(stop - start, -1, group)
            low, high, mean = grouped.amin(-1), grouped.amax(-1), grouped.mean(-1)
            scale = bfloat16_scale((high - low) / 15)
            # Where a group has both signs one level is 0 (as nearly as bfloat16 holds the middle): the many weights
            # near 0 beside a few large ones would otherwise all be rounded half a step away.
            below = -low / scale
            below = torch.where((low < 0) & (high > 0), below.round(), below)
            # A group of one value is its middle.
            middle = torch.where(high == low, low, (8 - below) * scale).to(torch.bfloat16).float()
            grouped.sub_(middle[..., None]).div_(scale[..., None]).round_().add_(8).clamp_(0, 15)
            # Then moved so that the group keeps its sum: what neighbours' activations have in common multiplies the sum
            # of their errors, and costs a model far more than errors that cancel.
            middle = mean - (grouped.mean(-1) - 8) * scale
            values[start // INT4_ROWS : stop // INT4_ROWS] = join_nibbles(wide.to(torch.uint8))
            numbers[:, start:stop] = torch.stack([scale, middle], -1).to(torch.bfloat16).transpose(0, 1)
        return values, numbers

    def dequantise_by_pass(self, dtype: torch.dtype, start: int, stop: int) -> Tensor:
        """Rows start..stop, (stop − start, in)."""
        first, last = start // INT4_ROWS * INT4_ROWS, -(-stop // INT4_ROWS) * INT4_ROWS
        return restored_int4(self.tensors, dtype, first, last)[start - first : stop - first]

    def dequantise_plainly(self, dtype: torch.dtype, start: int, stop: int) -> Tensor:
        """Rows start..stop, (stop − start, in)."""
        first, last = start // INT4_ROWS * INT4_ROWS, -(-stop // INT4_ROWS) * INT4_ROWS
        result = torch.empty(last - first, self.shape[1], dtype=dtype, device=self.device)
        numbers = self.tensors["scale_and_middle"]
        for i, j in pieces((last - first, self.shape[1]), self.device, INT4_ROWS):
            values = self.tensors["values"][(first + i) // INT4_ROWS : (first + j) // INT4_ROWS]
            q = split_nibbles(values).float().view(j - i, numbers.shape[0], -1)
            scale, middle = numbers[:, first + i : first + j].float().transpose(0, 1).unbind(-1)
            result[i:j] = q.sub_(8).mul_(scale[..., None]).add_(middle[..., None]).flatten(1)
        return result[start - first : stop - first]

    def multiply_few(self, x: Tensor) -> Tensor | None:
        """(T, in) -> (T, out), or None where there is no kernel."""
        if not has_int4_kernel(x.device.type, x.dtype):
            return None
        return int4_weight_matmul(x, self.tensors["values"], self.tensors["scale_and_middle"])

    def multiply_by_pass(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out)"""
        return by_int4(x, self.tensors["values"], self.tensors["scale_and_middle"])


def group_of(inner: int) -> int | None:
    """Neighbours in a row of so many weights that share a scale and a middle; None where no number of them fits."""
    return next((group for group in _GROUPS if inner % group == 0), None)
