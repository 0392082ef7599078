"""Marks for `torch.compile` in the code of quantised weights.

PyTorch's marks for this import its whole compiler, which takes longer than all other imports of loading a model. So
they are set when something is to be compiled, and not where the functions are defined.
"""

from __future__ import annotations

from functools import cache

import torch

from bagel_mot.model.quant import linear, nf4


@cache
def prepare_compiling() -> None:
    """Marks functions before a model that may have quantised weights is compiled: on the CPU the kernels are chosen by
    the number of rows, and some cannot be lowered, so that part is left out; and the answer whether bitsandbytes works
    is a constant, else compiling would go through its import.
    """
    apart = torch.compiler.disable(linear.QuantisedLinear._products_apart)
    linear.QuantisedLinear._products_apart = apart  # type: ignore[method-assign]
    torch.compiler.assume_constant_result(nf4.has_bitsandbytes)
