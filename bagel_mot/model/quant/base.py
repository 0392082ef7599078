"""The base of all quantised weight matrices.

Small batches are bound by reading weights, so they use a compiled pass or a kernel that multiplies the matrix as it is
stored. Large batches are bound by arithmetic, so they dequantise block by block and use an ordinary matmul.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bagel_mot.allocator import on_own_pages
from bagel_mot.model.passes import TYPES, clearly_slower, compiled
from bagel_mot.model.widened import product_dtype

_PIECE = 1 << 18  # values that are worked on at a time on the CPU where float32 intermediates are needed
_PIECE_ON_DEVICE = 1 << 25  # the same on accelerators, where each piece costs the start of its operations
_LEAST_WEIGHTS = 1 << 18  # in a smaller matrix passes are not worth a compiler's seconds
_EXAMPLE, _EXAMPLE_ROWS = (512, 1024), 4  # by which passes are chosen
_BLOCK = 1 << 22  # values that are dequantised at a time on the CPU: 8 MB, which stay in the processor's cache


class QuantisedMatrix(ABC):
    """A quantised weight matrix (out, in).

    Attributes:
        format: its name, which is also that of the precision.
        few_rows: the largest batch for which `multiply_few` is quicker, where there is one.
        pass_rows: the largest batch for which a compiled pass is.
        shape: (out, in).
        tensors: its parts, by name.
    """

    format: ClassVar[str]
    few_rows: ClassVar[int] = 0
    pass_rows: ClassVar[int] = 0

    def __init__(self, shape: tuple[int, int], tensors: dict[str, Tensor]) -> None:
        self.shape = shape
        self.tensors = tensors

    @classmethod
    @abstractmethod
    def fits(cls, shape: tuple[int, int]) -> bool:
        """Whether a matrix of this shape can be stored so."""

    @classmethod
    @abstractmethod
    def quantise(cls, weight: Tensor) -> QuantisedMatrix:
        """The nearest matrix to a weight (out, in) of any floating-point type, on its device.

        Raises:
            CheckpointError: the shape does not fit the format.
        """

    @classmethod
    @abstractmethod
    def stored_bytes(cls, shape: tuple[int, int]) -> int:
        """Bytes that a matrix of this shape takes."""

    def dequantise(self, dtype: torch.dtype, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows start..stop, (stop − start, in), on the device of the matrix."""
        stop = self.shape[0] if stop is None else stop
        if dtype in TYPES and self._is_for_passes() and _restores(type(self), dtype):
            return self.dequantise_by_pass(dtype, start, stop)
        return self.dequantise_plainly(dtype, start, stop)

    @abstractmethod
    def dequantise_plainly(self, dtype: torch.dtype, start: int, stop: int) -> Tensor:
        """The same, (stop − start, in), by PyTorch's operations."""

    def dequantise_by_pass(self, dtype: torch.dtype, start: int, stop: int) -> Tensor:
        """The same, (stop − start, in), to the bit, by a compiled pass; by PyTorch's operations where a format has
        none.
        """
        return self.dequantise_plainly(dtype, start, stop)

    def multiply(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out) by whatever is quickest for so many rows."""
        rows = x.shape[0]
        on_cpu = x.device.type == "cpu"
        if rows <= self.pass_rows and on_cpu and self._is_for_passes() and _multiplies(type(self), x.dtype):
            return self.multiply_by_pass(x)
        if rows <= self.few_rows and (found := self.multiply_few(x)) is not None:
            return found
        return self.multiply_many(x.to(product_dtype(x.dtype, x.device.type))).to(x.dtype)

    def multiply_few(self, x: Tensor) -> Tensor | None:
        """(T, in) -> (T, out) by a kernel of PyTorch or another package, without dequantising the weights; None where
        nothing here does that.
        """
        return None

    def multiply_by_pass(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out) by a compiled pass."""
        raise NotImplementedError

    def has_pass(self) -> bool:
        """Whether there is a pass for the way this very matrix is stored."""
        return True

    def _is_for_passes(self) -> bool:
        """Whether passes may work on this matrix."""
        return self.shape[0] * self.shape[1] >= _LEAST_WEIGHTS and self.device.type == "cpu" and self.has_pass()

    def multiply_many(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out) by ordinary matmuls, a piece of the matrix at a time."""
        return self.multiply_by_blocks(x, lambda start, stop: self.dequantise(x.dtype, start, stop))

    def multiply_by_blocks(self, x: Tensor, block: Callable[[int, int], Tensor]) -> Tensor:
        """(T, in) -> (T, out); `block` gives rows of the weight, (stop − start, in)."""
        ranges = self.blocks()
        if len(ranges) == 1:  # without a second result beside the first
            return F.linear(x, block(*ranges[0]))
        result = x.new_empty(x.shape[0], self.shape[0])
        for start, stop in ranges:
            result[:, start:stop] = F.linear(x, block(start, stop))
        return result

    def blocks(self) -> list[tuple[int, int]]:
        """Ranges of rows that are dequantised at a time: all on accelerators, some of them on the CPU."""
        out, inner = self.shape
        rows = max(64, _BLOCK // inner // 64 * 64) if self.device.type == "cpu" else out
        return [(start, min(out, start + rows)) for start in range(0, out, rows)]

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors.values())

    @property
    def device(self) -> torch.device:
        return next(iter(self.tensors.values())).device


@cache
def _multiplies(kind: type[QuantisedMatrix], dtype: torch.dtype) -> bool:
    """Whether compiled passes multiply an example rightly, and are fast: clearly faster than another kernel, or without
    one not clearly slower than dequantising.
    """
    if compiled() is None:
        return False
    matrix, generator = _example(kind), torch.Generator().manual_seed(1)
    x = torch.randn(_EXAMPLE_ROWS, _EXAMPLE[1], generator=generator).to(dtype)
    with torch.inference_mode():
        expected = F.linear(x.float(), matrix.dequantise_plainly(torch.float32, 0, _EXAMPLE[0]))
        by_pass = partial(matrix.multiply_by_pass, x)
        if not torch.allclose(by_pass().float(), expected, rtol=0.02, atol=0.02 * float(expected.abs().max())):
            return False
        if matrix.few_rows >= _EXAMPLE_ROWS and matrix.multiply_few(x) is not None:
            return clearly_slower(partial(matrix.multiply_few, x), by_pass)
        wide = product_dtype(dtype, "cpu")
        return not clearly_slower(by_pass, lambda: matrix.multiply_many(x.to(wide)))


@cache
def _restores(kind: type[QuantisedMatrix], dtype: torch.dtype) -> bool:
    """Whether compiled passes dequantise an example as PyTorch's operations do, to the bit, and are not clearly
    slower.
    """
    if compiled() is None or kind.dequantise_by_pass is QuantisedMatrix.dequantise_by_pass:
        return False
    matrix, rows = _example(kind), (64, 448)
    mine, plain = partial(matrix.dequantise_by_pass, dtype, *rows), partial(matrix.dequantise_plainly, dtype, *rows)
    return torch.equal(mine(), plain()) and not clearly_slower(mine, plain)


@cache
def _example(kind: type[QuantisedMatrix]) -> QuantisedMatrix:
    """A matrix by which passes are chosen."""
    return kind.quantise(torch.randn(_EXAMPLE, generator=torch.Generator().manual_seed(0)))


def pieces(shape: tuple[int, int], device: torch.device, multiple: int = 1) -> list[tuple[int, int]]:
    """Ranges of rows that are worked on at a time, of a multiple of rows except for the last."""
    values = _PIECE if device.type == "cpu" else _PIECE_ON_DEVICE
    rows = max(1, values // shape[1] // multiple) * multiple
    return [(start, min(shape[0], start + rows)) for start in range(0, shape[0], rows)]


def wide_pieces(weight: Tensor, multiple: int = 1) -> Iterator[tuple[int, int, Tensor]]:
    """The same ranges with their rows of a weight (out, in) in float32, to be changed at will: one buffer serves all.

    Rounding in place in a buffer outside the heap, and not in new tensors, is for memory's sake: their blocks would
    leave gaps in the heap between all the small tensors that stay, and a model of 400 MB took 900.
    """
    ranges = pieces((weight.shape[0], weight.shape[1]), weight.device, multiple)
    rows = max((stop - start for start, stop in ranges), default=0)
    buffer = on_own_pages((rows, weight.shape[1]), torch.float32, weight.device)
    for start, stop in ranges:
        yield start, stop, buffer[: stop - start].copy_(weight[start:stop])


def bfloat16_scale(scale: Tensor) -> Tensor:
    """The first numbers of bfloat16 that are not below scales (n,), as float32 (n,); 1 for a scale of 0.

    Kernels want scales in the precision of the activations. One that is exact in bfloat16 is not rounded again.
    """
    rounded = scale.to(torch.bfloat16)
    above = torch.nextafter(rounded, torch.full_like(rounded, math.inf))
    rounded = torch.where(rounded.float() < scale, above, rounded)
    return torch.where(scale == 0, torch.ones_like(scale), rounded.float())
