"""INT4: whole numbers of four bits, a scale and a middle for each group of neighbours in a row."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from bagel_mot.allocator import on_own_pages
from bagel_mot.errors import CheckpointError
from bagel_mot.model.quant.base import QuantisedMatrix, bfloat16_scale, pieces, wide_pieces

_ROWS = 64  # that stand together
_GROUPS = (64, 32)


class Int4Matrix(QuantisedMatrix):
    """`values` uint8 (out/64, in, 32), `scale_and_middle` bfloat16 (in/group, out, 2).

    A weight is (q − 8)·scale + middle with q in 0..15. Of 64 rows, byte r of a column holds row r in its low half and
    row r + 32 in its high half: the order in which PyTorch's kernel for AVX-512 reads them.
    """

    format = "int4"
    few_rows = 48

    @classmethod
    def fits(cls, shape: tuple[int, int]) -> bool:
        return shape[0] % _ROWS == 0 and group_of(shape[1]) is not None

    @classmethod
    def stored_bytes(cls, shape: tuple[int, int]) -> int:
        group = group_of(shape[1])
        assert group is not None
        return shape[0] * shape[1] // 2 + 4 * shape[0] * shape[1] // group

    @classmethod
    def quantise(cls, weight: Tensor) -> Int4Matrix:
        out, inner = weight.shape
        group = group_of(inner)
        if group is None or not cls.fits((out, inner)):
            raise CheckpointError(f"a matrix of {out}×{inner} cannot be INT4: it takes multiples of {_ROWS} and of 32")
        values = on_own_pages((out // _ROWS, inner, _ROWS // 2), torch.uint8, weight.device)
        numbers = on_own_pages((inner // group, out, 2), torch.bfloat16, weight.device)
        for start, stop, wide in wide_pieces(weight, _ROWS):
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
            values[start // _ROWS : stop // _ROWS] = cls.pack(wide.to(torch.uint8))
            numbers[:, start:stop] = torch.stack([scale, middle], -1).to(torch.bfloat16).transpose(0, 1)
        return cls((out, inner), {"values": values, "scale_and_middle": numbers})

    @staticmethod
    def pack(q: Tensor) -> Tensor:
        """Whole numbers 0..15, uint8 (out, in) -> (out/64, in, 32)."""
        halves = q.view(-1, 2, _ROWS // 2, q.shape[1])
        return (halves[:, 0] | halves[:, 1] << 4).transpose(1, 2).contiguous()

    def unpack(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Whole numbers of rows start..stop, both multiples of 64: uint8 (stop − start, in)."""
        values = self.tensors["values"][start // _ROWS : None if stop is None else stop // _ROWS]
        return torch.stack([values & 15, values >> 4], 1).permute(0, 1, 3, 2).reshape(-1, self.shape[1])

    def dequantise(self, dtype: torch.dtype, start: int = 0, stop: int | None = None) -> Tensor:
        stop = self.shape[0] if stop is None else stop
        first, last = start // _ROWS * _ROWS, -(-stop // _ROWS) * _ROWS
        result = torch.empty(last - first, self.shape[1], dtype=dtype, device=self.device)
        numbers = self.tensors["scale_and_middle"]
        for i, j in pieces((last - first, self.shape[1]), self.device, _ROWS):
            q = self.unpack(first + i, first + j).float().view(j - i, numbers.shape[0], -1)
            scale, middle = numbers[:, first + i : first + j].float().transpose(0, 1).unbind(-1)
            result[i:j] = q.sub_(8).mul_(scale[..., None]).add_(middle[..., None]).flatten(1)
        return result[start - first : stop - first]

    def multiply_few(self, x: Tensor) -> Tensor | None:
        return _kernel(self, x) if has_int4_kernel(x.device.type, x.dtype) else None


def group_of(inner: int) -> int | None:
    """Neighbours in a row of so many weights that share a scale and a middle; None where no number of them fits."""
    return next((group for group in _GROUPS if inner % group == 0), None)


def _kernel(matrix: Int4Matrix, x: Tensor) -> Tensor:
    numbers = matrix.tensors["scale_and_middle"]
    packed = matrix.tensors["values"].view(matrix.shape[0], matrix.shape[1] // 2)
    group = matrix.shape[1] // numbers.shape[0]
    return torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, group, numbers)


@cache
def has_int4_kernel(device: str, dtype: torch.dtype) -> bool:
    """Whether PyTorch multiplies such weights as they are, on this processor and with such activations, and rightly:
    the order of its values depends on the processor, and ours is that of AVX-512.
    """
    if device != "cpu":
        return False
    generator = torch.Generator().manual_seed(0)
    matrix = Int4Matrix.quantise(torch.randn(128, 128, generator=generator))
    x = torch.randn(3, 128, generator=generator).to(dtype)
    try:
        got = _kernel(matrix, x)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return torch.allclose(got.float(), F.linear(x.float(), matrix.dequantise(torch.float32)), rtol=0.02, atol=0.2)
