"""Quantised weight matrices: how they are stored, made, dequantised, and multiplied.

    format   stored                                            bits a weight   made from
    int8     whole numbers −127..127, a scale for each row     8               largest of the row / 127
    fp8      float8 e4m3 (or e5m2), a scale for each row       8               largest of the row / 448
    int4     whole numbers 0..15, scale and middle a group     4.5             range of 64 neighbours in a row
    nf4      16 levels of a normal distribution, a scale       4.13            largest of 64 neighbours, the scales
             for each block, itself in 8 bits                                  themselves in blocks of 256

INT8 is laid out as LLM.int8() (Dettmers et al. 2022) and NF4 as QLoRA (Dettmers et al. 2023, double quantisation) have
it, so that files of bitsandbytes are read and written without another rounding. INT4 is laid out as PyTorch's kernel
for the CPU wants it. Every matrix is (out, in), as in `nn.Linear`.
"""

from __future__ import annotations

from bagel_mot.model.quant.base import QuantisedMatrix
from bagel_mot.model.quant.int4 import Int4Matrix
from bagel_mot.model.quant.nf4 import Nf4Matrix
from bagel_mot.model.quant.rows import Fp8Matrix, Int8Matrix, RowScaledMatrix

FORMATS: dict[str, type[QuantisedMatrix]] = {
    kind.format: kind for kind in (Int8Matrix, Fp8Matrix, Int4Matrix, Nf4Matrix)
}

__all__ = ["FORMATS", "Fp8Matrix", "Int4Matrix", "Int8Matrix", "Nf4Matrix", "QuantisedMatrix", "RowScaledMatrix"]
