"""Attention of an image, without any mask: the kernel that is quickest on a device for its size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from bagel_mot.model import kernels
from bagel_mot.model.buckets import bucket
from bagel_mot.model.measuring import fastest

_LEAST = 256  # queries and keys of the smallest example
Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def full_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of all queries over all keys. On CUDA devices it is PyTorch's own choice of a kernel, the flash kernel
    or cuDNN's: whichever was quickest when such a size first came.

    Args:
        query: (1, heads, n, head_dim).
        key, value: (1, heads, tokens, head_dim).

    Returns: (1, heads, n, head_dim)
    """
    if query.device.type != "cuda":
        return F.scaled_dot_product_attention(query, key, value)
    sizes = (bucket(part.shape[2], least=_LEAST, steps=1) for part in (query, key))
    return chosen(query.device, query.dtype, query.shape[1], query.shape[3], *sizes)(query, key, value)


def kernels_by_name() -> dict[str, Way]:
    """The kernels to choose from; the first is the one that is always right. Not all are there on each device."""
    return {
        "default": F.scaled_dot_product_attention,
        "flash": lambda query, key, value: kernels.flash_attention(query, key, value)[0],
        "cudnn": kernels.cudnn_attention,
    }


@cache
def chosen(device: torch.device, dtype: torch.dtype, heads: int, head_dim: int, queries: int, keys: int) -> Way:
    """The quickest of the kernels that are right here, for tensors of about such a size. It is measured once, for which
    the host waits: in the first pass of its size, which is never a recorded one.
    """
    ways = kernels_by_name()

    def named(name: str) -> Callable[..., Sequence[Tensor]]:
        return lambda *inputs: (ways[name](*inputs),)

    generator = torch.Generator(device).manual_seed(0)
    inputs = [
        torch.randn(1, heads, length, head_dim, device=device, generator=generator).to(dtype)
        for length in (queries, keys, keys)
    ]
    return ways[fastest({name: named(name) for name in ways}, inputs, device, _same)]


def _same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return torch.allclose(found[0].float(), expected[0].float(), rtol=0.02, atol=0.02)
