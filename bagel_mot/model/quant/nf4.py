"""NF4 (QLoRA): sixteen levels of a normal distribution, a scale for each block of neighbours.

The package bitsandbytes has kernels for it, which are used where it is installed; without it, the weights are brought
back by PyTorch alone, which is slower.
"""

from __future__ import annotations

import logging
import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from bagel_mot.allocator import on_own_pages
from bagel_mot.errors import CheckpointError
from bagel_mot.model.quant.base import QuantisedMatrix, pieces, wide_pieces
from bagel_mot.model.quant.products import by_nf4
from bagel_mot.model.quant.restoring import restored_nf4
from bagel_mot.model.quant.rounding import BLOCK, SCALE_BLOCK, Rounded, Rounding, rounded

# QLoRA, appendix E: quantiles of a normal distribution, zero among them, scaled to [−1, 1].
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_PART = 512  # weights of a row that a compiled pass multiplies at a time
_SCALE_BLOCKS = 256  # that are worked on at a time
_CELLS = 2048  # cells of the table for each unit; no border is so near the end of a cell that rounding would miss it
# When bitsandbytes is imported, here or by peft, it says what it does without; that is its own affair, not the user's.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


class Nf4Matrix(QuantisedMatrix):
    """`values` uint8 (out·in/2,), the earlier weight in the high half; scales of blocks either as `scale` float32
    (blocks,), or in 8 bits: `scale` uint8 (blocks,), `scale_levels` float32 (256,), `scale_scale` float32 (one for 256
    blocks,), `scale_offset` float32 (), with scale = level · scale of the scales + offset.
    """

    format = "nf4"
    few_rows, pass_rows = 1, 16

    @classmethod
    def fits(cls, shape: tuple[int, int]) -> bool:
        return shape[1] % BLOCK == 0

    @classmethod
    def stored_bytes(cls, shape: tuple[int, int]) -> int:
        blocks = shape[0] * shape[1] // BLOCK
        return shape[0] * shape[1] // 2 + blocks + 4 * -(-blocks // SCALE_BLOCK) + 4 * 257

    @classmethod
    def quantise(cls, weight: Tensor) -> Nf4Matrix:
        """The nearest matrix to a weight (out, in); CheckpointError where its shape does not fit."""
        out, inner = weight.shape
        if not cls.fits((out, inner)):
            raise CheckpointError(f"a matrix of {out}×{inner} cannot be NF4: it takes rows of a multiple of {BLOCK}")
        values, scale, outer, offset = rounded(weight, _by_pass, cls._rounded)
        levels = dynamic_levels().to(weight.device)
        scales = {"scale": scale, "scale_levels": levels, "scale_scale": outer, "scale_offset": offset}
        return cls((out, inner), {"values": values, **scales})

    @classmethod
    def _rounded(cls, weight: Tensor) -> Rounded:
        """A weight (out, in) as values, scales, their scales and offset, by PyTorch's operations."""
        out, inner = weight.shape
        values = on_own_pages((out * inner // 2,), torch.uint8, weight.device)
        scale = on_own_pages((out * inner // BLOCK,), torch.float32, weight.device)
        for start, stop, wide in wide_pieces(weight):
            blocks = wide.view(-1, BLOCK)
            largest = torch.maximum(-blocks.amin(1), blocks.amax(1))
            scale[start * inner // BLOCK : stop * inner // BLOCK] = largest
            blocks /= torch.where(largest == 0, torch.ones_like(largest), largest)[:, None]
            level = nearest_level(wide.view(-1)).view(-1, 2)
            values[start * inner // 2 : stop * inner // 2] = level[:, 0] << 4 | level[:, 1]
        return values, *_in_8_bits(scale)

    @property
    def block(self) -> int:
        """Weights that share a scale."""
        return self.shape[0] * self.shape[1] // self.tensors["scale"].numel()

    def scales(self, first: int = 0, last: int | None = None) -> Tensor:
        """The scales of blocks first..last, float32 (last − first,)."""
        scale = self.tensors["scale"][first:last]
        if scale.dtype != torch.uint8:
            return scale
        place = torch.arange(first, first + scale.numel(), device=scale.device) // SCALE_BLOCK
        outer = self.tensors["scale_scale"][place]
        return self.tensors["scale_levels"][scale.int()] * outer + self.tensors["scale_offset"]

    def dequantise_by_pass(self, dtype: torch.dtype, start: int, stop: int) -> Tensor:
        """Rows start..stop, (stop − start, in)."""
        shape = stop - start, self.shape[1]
        return restored_nf4(self.tensors, dtype, _levels(self.device), shape, self.block, start)

    def dequantise_plainly(self, dtype: torch.dtype, start: int, stop: int) -> Tensor:
        """Rows start..stop, (stop − start, in)."""
        inner = self.shape[1]
        scale = self.scales(start * inner // self.block, stop * inner // self.block)
        packed = self.tensors["values"].flatten()[start * inner // 2 : stop * inner // 2]
        if has_bitsandbytes(packed.device.type):
            shape = [stop - start, inner]
            return torch.ops.bitsandbytes.dequantize_4bit(packed[:, None], scale, self.block, "nf4", shape, dtype)
        # A byte holds two weights: a table of 256 pairs yields both at once.
        levels = _levels(packed.device)
        pairs = torch.stack([levels.repeat_interleave(16), levels.repeat(16)], 1)
        result = torch.empty(stop - start, inner, dtype=dtype, device=packed.device)
        for i, j in pieces((stop - start, inner), packed.device):
            wide = F.embedding(packed[i * inner // 2 : j * inner // 2].int(), pairs).view(-1, self.block)
            result[i:j] = wide.mul_(scale[i * inner // self.block : j * inner // self.block, None]).view(j - i, inner)
        return result

    def multiply_few(self, x: Tensor) -> Tensor | None:
        """(T, in) -> (T, out), or None where there is no kernel."""
        # The package's kernel for the CPU wants the weights in an order of its own.
        if x.device.type != "cuda" or x.shape[0] != 1 or not has_bitsandbytes("cuda"):
            return None
        code = _levels(x.device)
        packed = self.tensors["values"].view(-1, 1)
        return torch.ops.bitsandbytes.gemv_4bit(x, packed, list(self.shape), self.scales(), code, self.block)

    def has_pass(self) -> bool:
        """Whether its blocks end where rows and the parts of rows end that are multiplied at a time."""
        return self.shape[1] % self.block == 0 and self.block % 8 == 0 and _PART % self.block == 0

    def multiply_by_pass(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out)"""
        return by_nf4(x, self.shape[0], self.block, _levels(x.device), self.tensors)


def _by_pass(passes: Rounding, weight: Tensor) -> Rounded | None:
    return passes.nf4(weight, _borders(), _scale_borders())


@cache
def _borders() -> Tensor:
    """The borders between the levels, float32 (15,) on the CPU."""
    levels = torch.tensor(LEVELS)
    return (levels[1:] + levels[:-1]) / 2


@cache
def _scale_borders() -> Tensor:
    """The borders between the levels of scales, float32 (255,) on the CPU."""
    levels = dynamic_levels()
    return (levels[1:] + levels[:-1]) / 2


def nearest_level(x: Tensor) -> Tensor:
    """The nearest of `LEVELS` to float32 (n,) within [−1, 1], of two equally near the lower: uint8 (n,).

    A table of narrow cells knows it for all cells but those in which two levels meet, where it is compared: a third of
    the time of comparing with every border.
    """
    lower, border = _cells(x.device)
    cell = (x * _CELLS).add_(_CELLS).int().clamp_(0, 2 * _CELLS)  # not a number is in no cell
    return lower.index_select(0, cell) + (x > border.index_select(0, cell))


@cache
def _cells(device: torch.device) -> tuple[Tensor, Tensor]:
    """The level at the lower end of each cell of [−1, 1], and the border above that: (cells,) each."""
    borders = _borders()
    lower = torch.bucketize(torch.arange(2 * _CELLS + 1) / _CELLS - 1, borders)
    border = F.pad(borders, (0, 1), value=math.inf)[lower]
    return lower.to(device, torch.uint8), border.to(device)


def _in_8_bits(scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scales of blocks, which are overwritten: what they are more or less than their mean, in 8 bits; with the scales
    of those, and the mean.
    """
    borders = _scale_borders().to(scale.device)
    offset = scale.mean()
    scale -= offset
    fine = on_own_pages(scale.shape, torch.uint8, scale.device)
    outer = torch.empty(-(-scale.numel() // SCALE_BLOCK), dtype=torch.float32, device=scale.device)
    for start in range(0, outer.numel(), _SCALE_BLOCKS):  # in pieces, for memory's sake (`wide_pieces`)
        part = slice(start * SCALE_BLOCK, (start + _SCALE_BLOCKS) * SCALE_BLOCK)
        rest = F.pad(scale[part], (0, -scale[part].numel() % SCALE_BLOCK)).view(-1, SCALE_BLOCK)
        largest = torch.maximum(-rest.amin(1), rest.amax(1))
        rest /= torch.where(largest == 0, torch.ones_like(largest), largest)[:, None]
        outer[start : start + _SCALE_BLOCKS] = largest
        fine[part] = torch.bucketize(rest, borders, out_int32=True).flatten()[: scale[part].numel()]
    return fine, outer, offset


@cache
def dynamic_levels() -> Tensor:
    """The 256 levels of dynamic quantisation in 8 bits (Dettmers 2016), ascending in [−1, 1], float32 (256,): a sign, a
    power of ten, and steps within it, twice as many for every next power.
    """
    levels = [0.0, 1.0]
    for power in range(7):
        borders = torch.linspace(0.1, 1, 2**power + 1, dtype=torch.float32)
        steps = ((borders[1:] + borders[:-1]) / 2 * 10.0 ** (power - 6)).tolist()
        levels += [*steps, *(-step for step in steps)]
    return torch.tensor(sorted(levels), dtype=torch.float32)


def has_bitsandbytes(device: str) -> bool:
    """Whether the package is installed and dequantises weights rightly on such a device."""
    return _bitsandbytes_works(device)


@cache
def _bitsandbytes_works(device: str) -> bool:
    try:
        import bitsandbytes  # noqa: F401

        # Where it lacks a library for this version of CUDA, it says so no sooner than at the first call.
        every = torch.arange(16, dtype=torch.uint8).repeat_interleave(2).repeat(2).view(-1, 2)
        packed = (every[:, 0] << 4 | every[:, 1])[:, None].to(device)
        scale = torch.full((1,), 2.0, device=device)
        got = torch.ops.bitsandbytes.dequantize_4bit(packed, scale, 64, "nf4", [1, 64], torch.float32)
    except Exception:  # any kind: it loads a library of its own
        return False
    wanted = 2 * torch.tensor(LEVELS)[every.flatten().int()]
    return hasattr(torch.ops.bitsandbytes, "gemv_4bit") and torch.allclose(got.flatten().cpu(), wanted, rtol=1e-5)


@cache
def _levels(device: torch.device) -> Tensor:
    return torch.tensor(LEVELS, device=device)
