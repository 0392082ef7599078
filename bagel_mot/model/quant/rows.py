"""INT8 and FP8: small numbers and a scale for each row."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bagel_mot.allocator import on_own_pages
from bagel_mot.model import kernels
from bagel_mot.model.quant.activations import quantise_rows
from bagel_mot.model.quant.base import QuantisedMatrix, bfloat16_scale, pieces, wide_pieces
from bagel_mot.model.quant.products import by_fp8, by_int8
from bagel_mot.model.quant.rounding import Rounded, Rounding, rounded

_KERNEL_WIDTH = 16


class RowScaledMatrix(QuantisedMatrix):
    """`values` (out, in), `scale` float32 (out,): a weight is value · scale."""

    dtype: ClassVar[torch.dtype]
    largest: ClassVar[float]

    @classmethod
    def fits(cls, shape: tuple[int, int]) -> bool:
        return True

    @classmethod
    def stored_bytes(cls, shape: tuple[int, int]) -> int:
        return shape[0] * shape[1] + 4 * shape[0]

    @classmethod
    def quantise(cls, weight: Tensor) -> RowScaledMatrix:
        """The nearest matrix to a weight (out, in)."""
        values, scale = cls._rounded(weight)
        return cls((weight.shape[0], weight.shape[1]), {"values": values, "scale": scale})

    @classmethod
    def _rounded(cls, weight: Tensor) -> Rounded:
        """A weight (out, in) as values (out, in) and scales (out,), by PyTorch's operations."""
        out, inner = weight.shape
        values = on_own_pages((out, inner), cls.dtype, weight.device)
        scale = torch.empty(out, dtype=torch.float32, device=weight.device)
        for start, stop, wide in wide_pieces(weight):
            scale[start:stop] = bfloat16_scale(torch.maximum(-wide.amin(1), wide.amax(1)) / cls.largest)
            wide /= scale[start:stop, None]
            values[start:stop] = wide if cls.dtype.is_floating_point else wide.round_()
        return values, scale

    def dequantise_plainly(self, dtype: torch.dtype, start: int, stop: int) -> Tensor:
        """Rows start..stop, (stop − start, in)."""
        values, scale = self.tensors["values"][start:stop], self.tensors["scale"][start:stop]
        result = torch.empty(values.shape, dtype=dtype, device=values.device)
        for i, j in pieces((values.shape[0], values.shape[1]), values.device):
            result[i:j] = values[i:j].float().mul_(scale[i:j, None])
        return result

    def rows(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Single rows, index (N,) or of any shape, int64 -> (N, in)"""
        values = self.tensors["values"]
        found = values.view(torch.uint8)[index].view(values.dtype)  # PyTorch 2.9 cannot index float8
        return (found.float() * self.tensors["scale"][index][..., None]).to(dtype)

    def multiply_many(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out). The scale multiplies the products, because it is the same along a row; the values are
        exact in every precision of activations. In float16 products of values without their scales overflow: the matrix
        is dequantised.
        """
        if x.dtype == torch.float16:
            return super().multiply_many(x)
        values, scale = self.tensors["values"], self.tensors["scale"].to(x.dtype)
        ranges = self.blocks()
        if len(ranges) == 1:  # without a second result beside the first
            return F.linear(x, self._widened(values, x.dtype)).mul_(scale)
        result = x.new_empty(x.shape[0], self.shape[0])
        for start, stop in ranges:
            products = F.linear(x, self._widened(values[start:stop], x.dtype))
            torch.mul(products, scale[start:stop], out=result[:, start:stop])
        return result

    @staticmethod
    def _widened(values: Tensor, dtype: torch.dtype) -> Tensor:
        """The values, without their scales, in the precision of activations."""
        return values.to(dtype)


class Int8Matrix(RowScaledMatrix):
    """Whole numbers −127..127."""

    format = "int8"
    few_rows = pass_rows = 16
    dtype = torch.int8
    largest = 127.0

    @classmethod
    def quantise(cls, weight: Tensor) -> Int8Matrix:
        """The nearest matrix to a weight (out, in)."""
        values, scale = rounded(weight, Rounding.int8, cls._rounded)
        return cls((weight.shape[0], weight.shape[1]), {"values": values, "scale": scale})

    def multiply_few(self, x: Tensor) -> Tensor | None:
        """(T, in) -> (T, out), or None where there is no kernel."""
        # The kernel reads past the end of rows that are not of its width.
        if self.shape[1] % _KERNEL_WIDTH or not kernels.has_int8_kernel(x.device.type, x.dtype):
            return None
        return kernels.int8_weight_matmul(x, self.tensors["values"], self.tensors["scale"].to(x.dtype))

    def multiply_by_pass(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out)"""
        return by_int8(x, self.tensors["values"], self.tensors["scale"])

    def multiply_dynamic(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out) with the activations in 8 bits too, a scale for each row of them."""
        numbers, scale = quantise_rows(x, self.dtype)
        sums = kernels.int8_matmul(numbers, self.tensors["values"].t())
        return (sums.float() * scale * self.tensors["scale"]).to(x.dtype)


class Fp8Matrix(RowScaledMatrix):
    """Numbers of float8, e4m3 where they are made here; files may bring e5m2."""

    format = "fp8"
    pass_rows = 16
    dtype = torch.float8_e4m3fn
    largest = 448.0

    @staticmethod
    def _widened(values: Tensor, dtype: torch.dtype) -> Tensor:
        if values.device.type != "cpu" or values.dtype != torch.float8_e4m3fn or dtype == torch.float16:
            return values.to(dtype)
        # A cast takes PyTorch five times as long on the CPU. The bits of e4m3 are those of bfloat16 with four bits of
        # the exponent: put in their place they make the number, too small by the difference of the exponents' offsets.
        bits = values.view(torch.int8).to(torch.int16)
        bits <<= 4
        bits &= -0x7810  # the sign, four bits of exponent, three of mantissa
        return bits.view(torch.bfloat16).mul_(2.0**120).to(dtype)

    def has_pass(self) -> bool:
        """Whether its values are e4m3."""
        return self.tensors["values"].dtype == self.dtype

    def multiply_by_pass(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out)"""
        return by_fp8(x, self.tensors["values"], self.tensors["scale"])

    def multiply_dynamic(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out) with the activations in float8 too, a scale for each row of them."""
        numbers, scale = quantise_rows(x, self.dtype)
        values, weight_scale = self.tensors["values"].t(), self.tensors["scale"][None]
        return kernels.float8_matmul(numbers, values, scale, weight_scale, x.dtype)
