"""Attention of both experts' tokens in one softmax.

The decoder hands over queries, keys and values of und and gen slots; an *attend* object knows who sees whom:

- `MaskedAttention` for training: rows of slots under one mask;
- `CachedAttention` for inference: each sample's new tokens against its own context, whose cache is appended in place.

In the cache, grouped queries are folded into the sequence axis, (kv_heads, group·n, head_dim), so that keys and values
are never repeated. Nothing here needs flash-attn or any other package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from bagel_mot.model import kernels
from bagel_mot.model.cache import KVReservation
from bagel_mot.sequence import CAUSAL, SegmentSpan, TrainingLayout

_MAX_DECODE_QUERIES = 16  # up to this many queries is text being written; an image has hundreds
_LARGEST_SCORES = 1 << 26  # 256 MiB of float32

Pair = tuple[Tensor, Tensor]  # und slots (S, heads, head_dim) and gen slots (G, heads, head_dim)


class Attend(Protocol):
    """One layer's attention: queries, keys and values of all slots in, attended values out."""

    def __call__(self, query: Pair, key: Pair, value: Pair) -> Pair: ...


class Attention(Protocol):
    """Who sees whom, for all layers of one forward pass."""

    def for_layer(self, layer: int) -> Attend: ...


# ---------------------------------------------------------------------------------------------------------- training


class MaskedAttention:
    """Attention over the rows of a pack by PyTorch's SDPA.

    Args:
        layout: the pack.
        mask: (rows, L, L) bool, True = may attend, as `TrainingLayout.mask` makes it.
        dtype: the type of the queries. The mask becomes numbers of it here, once, and not in each layer, which would
            keep them for the backward pass too.
    """

    def __init__(self, layout: TrainingLayout, mask: Tensor | None = None, dtype: torch.dtype | None = None) -> None:
        self.rows, self.und_len = layout.rows, layout.und_len
        self.mask = (layout.mask() if mask is None else mask)[:, None]  # (rows, 1, L, L)
        if dtype is not None:
            hidden = torch.zeros((), dtype=dtype, device=self.mask.device).new_full((), float("-inf"))
            self.mask = torch.where(self.mask, 0.0, hidden)

    def for_layer(self, layer: int) -> Attend:
        return self

    def __call__(self, query: Pair, key: Pair, value: Pair) -> Pair:
        def by_row(pair: Pair) -> Tensor:  # -> (rows, heads, L, head_dim)
            return torch.cat([part.view(self.rows, -1, *part.shape[1:]) for part in pair], dim=1).transpose(1, 2)

        out = self.attend(by_row(query), by_row(key), by_row(value)).transpose(1, 2)
        return out[:, : self.und_len].flatten(0, 1), out[:, self.und_len :].flatten(0, 1)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Queries (rows, heads, L, head_dim), keys and values (rows, kv_heads, L, head_dim) -> as queries."""
        grouped = query.shape[1] > key.shape[1]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask, enable_gqa=grouped)


# --------------------------------------------------------------------------------------------------------- inference


@dataclass(frozen=True)
class CachedSample:
    """One sample of an inference pack: the slots of its new tokens, and the room for their keys and values."""

    spans: Sequence[SegmentSpan]
    reservation: KVReservation

    @property
    def decodes(self) -> bool:
        """Whether it is the next token of a text, which can be computed in a `DecodeBatch`."""
        return self.reservation.chunk.pooled and len(self.spans) == 1 and self.spans[0].length == 1


class CachedAttention:
    """Each sample's new tokens against its context and themselves.

    A full or noised segment sees everything up to its own end; a text sees everything before it and, causally,
    itself. Both are contiguous stretches of the cache, so no mask is needed except a small one for a text behind a
    context.
    """

    def __init__(self, samples: Sequence[CachedSample]) -> None:
        batched = [sample for sample in samples if sample.decodes]
        self.batch = DecodeBatch(batched) if len(batched) > 1 else None
        self.samples = [sample for sample in samples if not sample.decodes] if self.batch else samples

    def for_layer(self, layer: int) -> Attend:
        return partial(self._attend, layer)

    def _attend(self, layer: int, query: Pair, key: Pair, value: Pair) -> Pair:
        und_out, gen_out = torch.empty_like(query[0]), torch.empty_like(query[1])
        if self.batch:
            self.batch.attend(layer, query[0], key[0], value[0], und_out)
        for sample in self.samples:
            reservation = sample.reservation
            for span in sample.spans:
                und, gen = slice(*span.und), slice(*span.gen)
                n_und = span.und[1] - span.und[0]
                reservation.write(layer, span.start, key[0][und], value[0][und])
                if span.gen[1] > span.gen[0]:
                    reservation.write(layer, span.start + n_und, key[1][gen], value[1][gen])
                    q = torch.cat([query[0][und], query[1][gen]])
                else:
                    q = query[0][und]
                parts = reservation.visible(layer, span.start + span.length)
                out = attend_parts(q, parts, causal=span.mode == CAUSAL)
                und_out[und] = out[:n_und]
                if span.gen[1] > span.gen[0]:
                    gen_out[gen] = out[n_und:]
        return und_out, gen_out


class _Places(NamedTuple):
    """The part of a `DecodeBatch` in one slab, on one device. R rows of up to L tokens are laid out one after another.

    Attributes:
        rows: the rows whose new token is written here.
        new: the slots that they are written to.
        where: the places of R·L that are read from here; None where all are.
        slots: the slots that they are read from.
    """

    rows: Tensor
    new: Tensor
    where: Tensor | None
    slots: Tensor

    def to(self, device: torch.device) -> _Places:
        where = None if self.where is None else self.where.to(device)
        return _Places(self.rows.to(device), self.new.to(device), where, self.slots.to(device))


class DecodeBatch:
    """The next tokens of many texts in one call of attention, each over its own context.

    All contexts lie in a few slabs, so the tokens that a row sees, shared prefixes among them, are a list of slots. The
    lists are made once for all layers; the number of operations does not depend on the number of rows.

    Args:
        samples: samples of one new text token each, whose chunks are in slabs.
    """

    def __init__(self, samples: Sequence[CachedSample]) -> None:
        parts = [sample.reservation.parts(1) for sample in samples]
        lengths = torch.tensor([sum(tokens for _, tokens in row) for row in parts])
        self.longest = -(-int(lengths.max()) // 8) * 8  # kernels want masks in steps of 8
        self.mask = (torch.arange(self.longest) < lengths[:, None])[:, None, None]  # (R, 1, 1, L)
        self.und = torch.tensor([sample.spans[0].und[0] for sample in samples])
        self.slabs = list({id(chunk.slab): chunk.slab for row in parts for chunk, _ in row}.values())
        number = {id(slab): n for n, slab in enumerate(self.slabs)}
        table = torch.tensor(
            [
                (row, number[id(chunk.slab)], chunk.first, tokens)
                for row, own in enumerate(parts)
                for chunk, tokens in own
            ]
        )
        # Places beyond a row's length read its own new token: unused memory may hold values that are not numbers.
        ends = torch.tensor([(number[id(own[-1][0].slab)], own[-1][0].first + own[-1][1] - 1) for own in parts])
        tokens = table[:, 3]
        inside = torch.arange(int(tokens.sum())) - (tokens.cumsum(0) - tokens).repeat_interleave(tokens)
        found = ends[:, None].repeat(1, self.longest, 1)  # (R, L, 2): slab, slot
        found[self.mask[:, 0, 0]] = torch.stack(
            [table[:, 1].repeat_interleave(tokens), table[:, 2].repeat_interleave(tokens) + inside], 1
        )
        slab, slot = found.flatten(0, 1).unbind(1)
        self.places: list[_Places] = []
        for n in range(len(self.slabs)):
            rows, where = (ends[:, 0] == n).nonzero()[:, 0], (slab == n).nonzero()[:, 0]
            alone = len(self.slabs) == 1
            self.places.append(_Places(rows, ends[rows, 1], None if alone else where, slot[where]))
        self._on: dict[torch.device, tuple[Tensor, Tensor, list[_Places]]] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
        """Writes keys and values (S, kv_heads, head_dim) of the rows' und slots into the cache, and what their queries
        (S, heads, head_dim) attend to into `out`.
        """
        device = query.device
        if device not in self._on:
            places = [part.to(device) for part in self.places]
            self._on[device] = self.mask.to(device), self.und.to(device), places
        mask, und, places = self._on[device]
        rows, (heads, dim), kv_heads = len(self.und), query.shape[1:], key.shape[1]
        new = torch.stack([key, value]).index_select(1, und).transpose(1, 2)  # (2, kv_heads, R, head_dim)
        seen = new.new_empty(0)
        for slab, part in zip(self.slabs, places, strict=True):
            memory = slab.layers[layer]
            memory.index_copy_(2, part.new, new if part.where is None else new.index_select(2, part.rows))
        for slab, part in zip(self.slabs, places, strict=True):
            read = slab.layers[layer].index_select(2, part.slots)
            if part.where is None:
                seen = read
            else:
                seen = seen if seen.numel() else new.new_empty(2, kv_heads, rows * self.longest, dim)
                seen.index_copy_(2, part.where, read)
        keys, values = seen.unflatten(2, (rows, -1)).transpose(1, 2)  # (R, kv_heads, L, head_dim) each
        grouped = query.index_select(0, und).view(rows, kv_heads, heads // kv_heads, dim)
        attended = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
        out.index_copy_(0, und, attended.reshape(rows, heads, dim))


def attend_parts(query: Tensor, parts: list[tuple[Tensor, Tensor]], *, causal: bool) -> Tensor:
    """Attention of `query` (n, heads, head_dim) over keys and values that lie in several pieces of memory.

    Args:
        query: the last n tokens of what `parts` hold.
        parts: (keys, values), each (kv_heads, length, head_dim). The queries' own keys end the last part.
        causal: whether the queries see one another causally; else fully.

    Returns: (n, heads, head_dim)
    """
    n, heads, dim = query.shape
    kv_heads = parts[0][0].shape[0]
    group = heads // kv_heads
    causal = causal and n > 1
    last = parts[-1][0].shape[1]
    if causal and len(parts) == 1 and last == n:
        out = F.scaled_dot_product_attention(
            query.transpose(0, 1)[None], parts[0][0][None], parts[0][1][None], is_causal=True, enable_gqa=group > 1
        )
        return out[0].transpose(0, 1)
    folded = query.view(n, kv_heads, group, dim).permute(1, 2, 0, 3).reshape(1, kv_heads, group * n, dim)
    mask = None
    if causal:
        mask = torch.ones(n, last, dtype=torch.bool, device=query.device).tril(last - n).repeat(group, 1)[None, None]
    (key, value), *others = ((k[None], v[None]) for k, v in parts)
    if others:
        out = _attend_and_merge(folded, parts, mask)
    elif (
        n <= _MAX_DECODE_QUERIES
        and query.device.type == "cuda"
        and kernels.has_flash_attention(folded, key, value, mask is not None)
    ):
        # PyTorch would take cuDNN's kernel on newer GPUs, which builds a plan for every new length: for each token.
        out = kernels.flash_attention(folded, key, value)[0]
    else:
        out = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask)
    return out.view(kv_heads, group, n, dim).permute(2, 0, 1, 3).reshape(n, heads, dim)


def _attend_and_merge(query: Tensor, parts: list[tuple[Tensor, Tensor]], last_mask: Tensor | None) -> Tensor:
    """Softmax over all parts, from the parts' own softmaxes and their log-sum-exps (as flash decoding does)."""
    masks = [None] * (len(parts) - 1) + [last_mask]
    pieces = [_partial(query, k[None], v[None], m) for (k, v), m in zip(parts, masks, strict=True)]
    total = torch.logsumexp(torch.stack([lse for _, lse in pieces]), dim=0)
    out = sum((o * (lse - total).exp()[..., None] for o, lse in pieces), torch.zeros((), device=query.device))
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
