"""Attention over keys and values that lie in several pieces of memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bagel_mot.model import kernels
from bagel_mot.model.full_attention import full_attention
from bagel_mot.model.widened import product_dtype

MAX_DECODE_QUERIES = 16
"""Up to so many queries are text that is being written; an image has hundreds."""
_LARGEST_SCORES = 1 << 26  # 256 MiB of float32


def causal_mask(n: int, length: int, device: torch.device) -> Tensor:
    """The mask of the last n of `length` tokens, which see one another causally: (n, length) bool, True = may see."""
    return torch.ones(n, length, dtype=torch.bool, device=device).tril(length - n)


def attend_over(
    query: Tensor, pieces: Sequence[tuple[Tensor, Tensor]], *, causal: bool, mask: Tensor | None = None
) -> Tensor:
    """Attention of `query` (1, heads, n, head_dim) over keys and values that lie in several pieces of memory.

    Args:
        query: the last n tokens of what the pieces hold.
        pieces: (keys, values), each (1, kv_heads, length, head_dim). The queries' own keys end the last one.
        causal: whether the queries see one another causally; else fully.
        mask: the `causal_mask` of the last piece, where there is one already.

    Returns: (1, heads, n, head_dim)
    """
    if (wide := product_dtype(query.dtype, query.device.type)) != query.dtype:
        widened = [(keys.to(wide), values.to(wide)) for keys, values in pieces]
        return attend_over(query.to(wide), widened, causal=causal, mask=mask).to(query.dtype)
    heads, n, dim = query.shape[1:]
    kv_heads, last = pieces[-1][0].shape[1:3]
    on_cpu, group = query.device.type == "cpu", heads // kv_heads
    if causal and len(pieces) == 1 and last == n:
        return F.scaled_dot_product_attention(query, *pieces[0], is_causal=True, enable_gqa=group > 1)
    if causal and mask is None:
        mask = causal_mask(n, last, query.device)
    total = sum(keys.shape[2] for keys, _ in pieces)
    if len(pieces) > 1 and on_cpu and group * n >= total:
        # Keys of all pieces in one are copied sooner than several softmaxes of so many queries are merged.
        pieces = [(torch.cat([keys for keys, _ in pieces], 2), torch.cat([values for _, values in pieces], 2))]
        mask = None if mask is None else F.pad(mask, (total - last, 0), value=True)
    if len(pieces) == 1 and on_cpu:
        mask = None if mask is None else mask[None, None]
        return F.scaled_dot_product_attention(query, *pieces[0], attn_mask=mask, enable_gqa=group > 1)
    # Grouped queries are folded into the sequence axis: keys and values are not repeated by any kernel.
    folded = query.reshape(1, kv_heads, group * n, dim)
    mask = None if mask is None else mask.repeat(group, 1)[None, None]
    key, value = pieces[0]
    if len(pieces) > 1:
        out = _attend_and_merge(folded, pieces, mask)
    elif (
        n <= MAX_DECODE_QUERIES
        and query.device.type == "cuda"
        and kernels.has_flash_attention(folded, key, value, mask is not None)
    ):
        # PyTorch would take cuDNN's kernel on newer GPUs, which builds a plan for every new length: for each token.
        out = kernels.flash_attention(folded, key, value)[0]
    else:
        out = (
            full_attention(folded, key, value)
            if mask is None and n > MAX_DECODE_QUERIES
            else F.scaled_dot_product_attention(folded, key, value, attn_mask=mask)
        )
    return out.view(1, heads, n, dim)


def _attend_and_merge(query: Tensor, parts: Sequence[tuple[Tensor, Tensor]], last_mask: Tensor | None) -> Tensor:
    """Softmax over all parts, from the parts' own softmaxes and their log-sum-exps (as flash decoding does): each is
    mixed with what came before it in one pass.
    """
    masks = [None] * (len(parts) - 1) + [last_mask]
    pieces = [_partial(query, k, v, m) for (k, v), m in zip(parts, masks, strict=True)]
    out, total = pieces[0]
    for number, (other, lse) in enumerate(pieces[1:], start=2):
        share = torch.sigmoid(total - lse)[..., None]  # e^total / (e^total + e^lse)
        out = torch.lerp(other.to(lse.dtype), out.to(lse.dtype), share)
        if number < len(pieces):
            total = torch.logaddexp(total, lse)
    return out.to(query.dtype)


def _partial(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """One part's attention (float or half) and its log-sum-exp (1, heads, n) in float32: by PyTorch's flash kernel
    where the device has one that yields both, else by matmuls.
    """
    if not kernels.has_flash_attention(query, key, value, mask is not None):
        return _partial_by_matmul(query, key, value, mask)
    bias = None if mask is None else torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, float("-inf"))
    return kernels.flash_attention(query, key, value, bias)


def _partial_by_matmul(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same in float32 by plain matmuls, in blocks of queries: memory holds the scores of one block alone."""
    heads, n, dim = query.shape[1:]
    keys, values = key.float().transpose(-1, -2), value.float()
    out = torch.empty(query.shape, dtype=torch.float32, device=query.device)
    lse = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
    rows = max(1, _LARGEST_SCORES // (heads * key.shape[2]))
    for start in range(0, n, rows):
        block = slice(start, start + rows)
        scores = (query[:, :, block].float() * dim**-0.5) @ keys
        if mask is not None:
            scores.masked_fill_(~mask[:, :, block], float("-inf"))
        lse[:, :, block] = scores.logsumexp(-1)
        out[:, :, block] = scores.sub_(lse[:, :, block, None]).exp_() @ values
    return out, lse
