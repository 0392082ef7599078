"""Compiled passes that quantise weights on the CPU (`rounding.cpp`), where there is a compiler.

PyTorch's own operations go over a weight a dozen times, so that loading the official size was bound by them and not by
the disk. A pass is taken where it makes the same bits of an example as they do, and is not clearly slower; elsewhere
they serve.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from bagel_mot.allocator import on_own_pages
from bagel_mot.model.kernels import INT4_ROWS
from bagel_mot.model.passes import TYPES, call_compiled, clearly_slower, compiled

Rounded = tuple[Tensor, ...]
"""Whole numbers, and the scales and the like that belong to them."""
Plain = Callable[[Tensor], Rounded]

BLOCK = 64
"""Neighbours that share a scale in INT4 and NF4 as the passes make them."""
SCALE_BLOCK = 256
"""Scales of NF4 that share a scale."""
_LEAST_VALUES = 1 << 18  # in a smaller matrix a pass is not worth a compiler's seconds
_REGISTERS = (8, 16)  # numbers of float32 in a register of the processor, in whose order PyTorch adds up


class Rounding:
    """The compiled passes for weights of one type.

    Args:
        dtype: float32 or bfloat16.
        registers: one of _REGISTERS.

    Its methods raise RuntimeError where there are no compiled passes.
    """

    def __init__(self, dtype: torch.dtype, registers: int) -> None:
        self._type, self._registers = TYPES[dtype], registers

    def int8(self, weight: Tensor) -> Rounded | None:
        """A weight (out, in) is rounded to values int8 (out, in) and scales float32 (out,); None if some of it is not
        finite.
        """
        out, inner = weight.shape
        values, scale = on_own_pages((out, inner), torch.int8), torch.empty(out, dtype=torch.float32)
        bad = call_compiled(f"to_int8_{self._type}", weight, values, scale, out, inner)
        return None if bad else (values, scale)

    def int4(self, weight: Tensor) -> Rounded | None:
        """A weight (out, in) is rounded to values and numbers of `Int4Matrix`, groups of 64; None if some of it is not
        finite.
        """
        out, inner = weight.shape
        values = on_own_pages((out // INT4_ROWS, inner, INT4_ROWS // 2), torch.uint8)
        numbers = on_own_pages((inner // BLOCK, out, 2), torch.bfloat16)
        bad = call_compiled(f"to_int4_{self._type}", weight, values, numbers, out, inner, self._registers)
        return None if bad else (values, numbers)

    def nf4(self, weight: Tensor, borders: Tensor, scale_borders: Tensor) -> Rounded | None:
        """A weight (out, in) is rounded to the parts of `Nf4Matrix`; None if some of it is not finite.

        Args:
            weight: the weight.
            borders: the borders between the levels of weights, float32 (15,).
            scale_borders: the borders between the levels of scales, float32 (255,).

        Returns: `values`, `scale`, `scale_scale`, `scale_offset`.
        """
        blocks = weight.numel() // BLOCK
        values, fine = on_own_pages((weight.numel() // 2,), torch.uint8), on_own_pages((blocks,), torch.uint8)
        scale = on_own_pages((blocks,), torch.float32)
        outer = torch.empty(-(-blocks // SCALE_BLOCK), dtype=torch.float32)
        if call_compiled(f"to_nf4_{self._type}", weight, values, scale, borders, blocks):
            return None
        offset = scale.mean()
        call_compiled("to_8_bits", scale, offset, fine, outer, scale_borders, blocks)
        return values, fine, outer, offset


Pass = Callable[[Rounding, Tensor], "Rounded | None"]


def rounded(weight: Tensor, compiled_pass: Pass, plain: Plain) -> Rounded:
    """A weight (out, in) is rounded by a compiled pass, or by PyTorch's operations.

    Args:
        weight: a tensor of any floating-point type on any device.
        compiled_pass: calls the pass of a format. The same function each time, for which is tried once.
        plain: does the same by PyTorch's operations.
    """
    if weight.device.type == "cpu" and weight.dtype in TYPES and weight.numel() >= _LEAST_VALUES:
        passes = _chosen(compiled_pass, plain, weight.dtype)
        found = None if passes is None else compiled_pass(passes, weight.contiguous())
        if found is not None:
            return found
    return plain(weight)


@cache
def _chosen(compiled_pass: Pass, plain: Plain, dtype: torch.dtype) -> Rounding | None:
    """The passes, if they make of an example what PyTorch makes of it, and are not clearly slower."""
    if compiled() is None:
        return None
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(2 * INT4_ROWS, 16 * BLOCK, generator=generator)
    example[0, :BLOCK], example[1, :BLOCK], example[2] = 0, 0.3, example[2].abs() + 3  # zeros, one value, one sign
    example = (0.05 * example).to(dtype)
    expected = plain(example)
    for registers in _REGISTERS:
        passes = Rounding(dtype, registers)
        found = compiled_pass(passes, example)
        if found is not None and all(torch.equal(mine, its) for mine, its in zip(found, expected, strict=True)):
            slow = clearly_slower(partial(compiled_pass, passes, example), partial(plain, example))
            return None if slow else passes
    return None
