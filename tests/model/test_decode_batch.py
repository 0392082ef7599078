"""Decoding many texts in one call of attention, forced on the CPU, against each text alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bagel_mot.config import DecoderConfig
from bagel_mot.model import cache
from bagel_mot.model.cache import CachePool, Context
from bagel_mot.model.cached_attention import CachedAttention, CachedSample
from bagel_mot.model.decoder import Decoder
from bagel_mot.sequence import CAUSAL, FULL, SegmentSpan, TextSegment

CONFIG = DecoderConfig(hidden_size=48, num_layers=3, num_heads=6, num_kv_heads=2, intermediate_size=32, vocab_size=9)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(CONFIG).eval()


@torch.no_grad()
def step(decoder: Decoder, contexts: list[Context], tokens: list[int], seed: int) -> Tensor:
    """Reads so many random tokens into each context, all in one pass: (tokens, hidden)."""
    generator = torch.Generator().manual_seed(seed)
    tails = [context.allocate(n) for context, n in zip(contexts, tokens, strict=True)]
    samples, start = [], 0
    for tail, n in zip(tails, tokens, strict=True):
        samples.append(CachedSample((SegmentSpan(CAUSAL, (start, start + n), (0, 0), 0),), tail))
        start += n
    x = torch.randn(start, CONFIG.hidden_size, generator=generator)
    positions = torch.cat([torch.arange(c.position, c.position + n) for c, n in zip(contexts, tokens, strict=True)])
    und, _ = decoder(x, x[:0], (positions, positions[:0]), CachedAttention(samples))
    for context, tail, n in zip(contexts, tails, tokens, strict=True):
        context.commit(tail, (TextSegment((0,) * n),))
    return und


def run(decoder: Decoder, pool: CachePool | None) -> list[Tensor]:
    """A shared prefix, forks of it at two places, contexts of other lengths, one of several chunks; then ten tokens."""
    spec = decoder.cache_spec._replace(pool=pool)
    first, other = Context(spec, reserve=20), Context(spec)
    found = [step(decoder, [first, other], [17, 5], 1)]
    found.append(step(decoder, [first], [9], 2))
    contexts = [first, first.fork(), first.fork(1), other, Context(spec)]
    found.append(step(decoder, contexts, [3, 90, 1, 70, 2], 3))
    for seed in range(4, 14):
        found.append(step(decoder, contexts, [1] * len(contexts), seed))
    assert max(len(context.chunks) for context in contexts) > 2
    return found


@pytest.mark.parametrize("slab", [8192, 128, 1], ids=["one slab", "a few", "one for each chunk"])
def test_many_texts_are_decoded_as_each_alone(slab: int, decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SLAB_TOKENS", slab)
    for ours, theirs in zip(run(decoder, CachePool()), run(decoder, None), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


class Count(TorchDispatchMode):
    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def test_operations_do_not_grow_with_the_batch(decoder: Decoder) -> None:
    def calls(rows: int, pool: CachePool | None) -> int:
        prefix = Context(decoder.cache_spec._replace(pool=pool), reserve=40)
        step(decoder, [prefix], [30], 0)
        contexts = [prefix.fork() for _ in range(rows)]
        step(decoder, contexts, [2] * rows, 1)
        tails = [context.allocate(1) for context in contexts]
        spans = [(SegmentSpan(CAUSAL, (row, row + 1), (0, 0), 0),) for row in range(rows)]
        x, positions = torch.zeros(rows, CONFIG.hidden_size), torch.full((rows,), 32)
        with Count() as count, torch.no_grad():
            attend = CachedAttention([CachedSample(s, t) for s, t in zip(spans, tails, strict=True)])
            decoder(x, x[:0], (positions, positions[:0]), attend)
        return count.calls

    alone, *batched = (calls(rows, CachePool()) for rows in (1, 2, 8, 32))
    assert batched[0] == batched[1] == batched[2]
    assert batched[0] < alone + 12 * CONFIG.num_layers + 40  # its lists of slots are made once for all layers
    # Where each cache has memory of its own, views of it are made for each row, but no operation of a layer.
    assert calls(32, None) < 2.5 * batched[2]


def test_other_rows_of_a_pass_are_attended_to_beside_the_batch(decoder: Decoder) -> None:
    """A text that is being read and an image with latents, between two texts that are being written."""
    found = []
    for pool in (CachePool(), None):
        spec = decoder.cache_spec._replace(pool=pool)
        contexts = [Context(spec) for _ in range(4)]
        step(decoder, contexts, [4, 5, 6, 7], 0)
        tails = [context.allocate(n) for context, n in zip(contexts, (1, 3, 1, 6), strict=True)]
        spans = [
            SegmentSpan(CAUSAL, (0, 1), (0, 0), 0),
            SegmentSpan(CAUSAL, (1, 4), (0, 0), 0),
            SegmentSpan(CAUSAL, (4, 5), (0, 0), 0),
            SegmentSpan(FULL, (5, 7), (0, 4), 0),
        ]
        attend = CachedAttention([CachedSample((s,), t) for s, t in zip(spans, tails, strict=True)])
        generator = torch.Generator().manual_seed(1)
        und, gen = torch.randn(7, 48, generator=generator), torch.randn(4, 48, generator=generator)
        with torch.no_grad():
            found.append(torch.cat(decoder(und, gen, (torch.arange(7), torch.arange(4)), attend)))
    assert torch.allclose(*found, atol=1e-5)


def test_slots_are_used_again(decoder: Decoder) -> None:
    pool = CachePool()
    spec = decoder.cache_spec._replace(pool=pool)
    first, second, third = (Context(spec, reserve=100) for _ in range(3))
    for context in (first, second, third):
        step(decoder, [context], [10], 0)
    slab = next(iter(first.chunks)).slab
    where = next(iter(second.chunks)).first
    del second
    again = Context(spec, reserve=80)
    step(decoder, [again], [10], 0)
    assert next(iter(again.chunks)).slab is slab
    assert next(iter(again.chunks)).first == where
    del first, third, again, context
    assert len(slab._free) == 1
    assert slab._free[0][1] - slab._free[0][0] == slab.layers[0].shape[2]
