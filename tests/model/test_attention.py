"""Attention over a cache in several pieces, against a softmax in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bagel_mot.config import BagelConfig, DecoderConfig, VitConfig
from bagel_mot.model import attend_over as merging
from bagel_mot.model.attend_over import attend_over
from bagel_mot.model.attention import MaskedAttention
from bagel_mot.model.cache import CacheSpec, Context
from bagel_mot.model.cached_attention import CachedAttention, CachedSample
from bagel_mot.model.flex import FlexMaskedAttention, block_mask
from bagel_mot.sequence import (
    PackSpec,
    Sample,
    TextSegment,
    VaeSegment,
    VitSegment,
    pack,
    segment_length,
)
from bagel_mot.tokenizer import SpecialTokens

TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


SPEC = PackSpec(SpecialTokens(1, 2, 3, 4), vit_side=30, latent_side=30, patch_dim=12, latent_dim=8)


def reference(query: Tensor, keys: Tensor, values: Tensor, causal: bool) -> Tensor:
    """Plain softmax attention in float64: (n, heads, dim) over (kv_heads, length, dim)."""
    n, heads, dim = query.shape
    q = query.double().transpose(0, 1)
    k = keys.double().repeat_interleave(heads // keys.shape[0], 0)
    v = values.double().repeat_interleave(heads // keys.shape[0], 0)
    scores = q @ k.transpose(1, 2) * dim**-0.5
    if causal:
        length = keys.shape[1]
        hidden = torch.ones(n, length, dtype=torch.bool).triu(length - n + 1)
        scores = scores.masked_fill(hidden, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(0, 1)


def split(x: Tensor, sizes: tuple[int, ...]) -> list[Tensor]:
    """Pieces of (kv_heads, length, dim), each a stretch of a larger buffer, as in a cache."""
    pieces = []
    for piece in x.split(sizes, dim=1):
        buffer = torch.full((x.shape[0], piece.shape[1] + 5, x.shape[2]), float("nan"), dtype=x.dtype)
        buffer[:, : piece.shape[1]] = piece
        pieces.append(buffer[:, : piece.shape[1]])
    return pieces


def attend_parts(query: Tensor, parts: list[tuple[Tensor, Tensor]], causal: bool) -> Tensor:
    """`attend_over` for queries (n, heads, dim) over keys and values (kv_heads, length, dim)."""
    pieces = [(keys[None], values[None]) for keys, values in parts]
    return attend_over(query.transpose(0, 1)[None], pieces, causal=causal)[0].transpose(0, 1)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)], ids=str)
@pytest.mark.parametrize(
    ("n", "sizes"), [(1, (1,)), (7, (7,)), (1, (20,)), (5, (40,)), (1, (9, 1)), (6, (3, 11, 8)), (30, (64, 1, 33))]
)
def test_pieces_against_float64(
    n: int, sizes: tuple[int, ...], heads: tuple[int, int], causal: bool, dtype: torch.dtype
) -> None:
    length = sum(sizes)
    query = torch.randn(n, heads[0], 8).to(dtype)
    keys, values = (torch.randn(heads[1], length, 8).to(dtype) for _ in range(2))
    got = attend_parts(query, list(zip(split(keys, sizes), split(values, sizes), strict=True)), causal=causal)
    expected = reference(query, keys, values, causal)
    assert got.shape == query.shape
    assert got.dtype == dtype
    assert ((got.double() - expected).norm() / expected.norm()) < TOLERANCE[dtype]


def test_extreme_scores_stay_finite() -> None:
    query = torch.full((1, 2, 8), 40.0)
    keys = torch.cat([torch.full((2, 4, 8), -40.0), torch.full((2, 4, 8), 40.0)], dim=1)
    values = torch.randn(2, 8, 8)
    parts = list(zip(split(keys, (4, 4)), split(values, (4, 4)), strict=True))
    assert torch.allclose(attend_parts(query, parts, causal=False).double(), reference(query, keys, values, False))


@pytest.mark.parametrize("largest", [1, 100, 1 << 20])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_parts_by_matmul_in_blocks(largest: int, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What devices without a fitting kernel run, whatever the size of a block."""
    monkeypatch.setattr(merging, "_LARGEST_SCORES", largest)
    monkeypatch.setattr(merging, "_partial", merging._partial_by_matmul)
    query, keys, values = torch.randn(7, 4, 8), torch.randn(2, 24, 8), torch.randn(2, 24, 8)
    parts = list(zip(split(keys, (13, 11)), split(values, (13, 11)), strict=True))
    got = attend_parts(query, parts, causal=causal)
    expected = reference(query, keys, values, causal)
    assert ((got.double() - expected).norm() / expected.norm()) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_parts_by_matmul_against_the_concatenation(
    causal: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a device that only has matmuls."""
    monkeypatch.setattr(merging, "_partial", merging._partial_by_matmul)
    query, keys, values = (torch.randn(shape).to(dtype) for shape in ((6, 4, 8), (2, 21, 8), (2, 21, 8)))
    parts = list(zip(split(keys, (3, 10, 8)), split(values, (3, 10, 8)), strict=True))
    mask = torch.ones(6, 21, dtype=torch.bool).tril(15) if causal else None
    expected = F.scaled_dot_product_attention(query.transpose(0, 1), keys, values, attn_mask=mask, enable_gqa=True)
    got = attend_parts(query, parts, causal=causal)
    assert got.dtype == dtype
    assert ((got - expected.transpose(0, 1)).norm() / expected.norm()) < TOLERANCE[dtype]


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_no_device_joins_keys_and_values(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta tensors stand for a device without kernels of its own: each part is attended to where it lies."""
    lengths = []

    def by_matmul(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        lengths.append(key.shape[2])
        return original(query, key, value, mask)

    original = merging._partial_by_matmul
    monkeypatch.setattr(merging, "_partial_by_matmul", by_matmul)
    keys = torch.empty(2, 24, 8, device="meta")
    parts = [(part, part) for part in keys.split((13, 11), dim=1)]
    assert attend_parts(torch.empty(7, 4, 8, device="meta"), parts, causal=causal).shape == (7, 4, 8)
    assert lengths == [13, 11]


def test_cached_equals_masked() -> None:
    """Reading a sample piece by piece into a cache gives what one masked pass over all of it gives."""
    decoder = DecoderConfig(hidden_size=32, num_layers=1, num_heads=4, num_kv_heads=2, vocab_size=9)
    config = BagelConfig(decoder=decoder, vit=VitConfig(hidden_size=8, num_layers=1, num_heads=1))
    spec = PackSpec.of(config, SpecialTokens(1, 2, 3, 4))
    samples = [
        (
            TextSegment((1, 5, 6, 2)),
            VaeSegment(torch.zeros(6, spec.latent_dim), (2, 3)),
            VitSegment(torch.zeros(4, spec.patch_dim), (2, 2)),
            TextSegment((1, 7, 8, 5, 2)),
            VaeSegment(torch.zeros(4, spec.latent_dim), (2, 2), noised=True, timestep=0.5),
        ),
        (TextSegment((1, 8, 2)), VaeSegment(torch.zeros(2, spec.latent_dim), (1, 2), noised=True, timestep=0.1)),
    ]
    whole = pack([[Sample(s) for s in samples]], spec)
    und, gen = whole.und_len, whole.gen_len

    def draw(heads: int) -> tuple[Tensor, Tensor]:
        return torch.randn(und, heads, 8), torch.randn(gen, heads, 8)

    query, key, value = draw(4), draw(2), draw(2)
    expected = MaskedAttention(whole).for_layer(0)(query, key, value)

    contexts = [Context(CacheSpec(2, 8, torch.float32, (torch.device("cpu"),))) for _ in samples]
    for step in range(max(map(len, samples))):
        active = [i for i, s in enumerate(samples) if step < len(s)]
        part = pack([[Sample((samples[i][step],), contexts[i].position) for i in active]], spec)
        tails = [contexts[i].allocate(segment_length(samples[i][step])) for i in active]
        spans = [whole.spans[i][step] for i in active]

        def gather(pair: tuple[Tensor, Tensor], spans: list = spans) -> tuple[Tensor, Tensor]:
            und_part = torch.cat([pair[0][slice(*s.und)] for s in spans])
            return und_part, torch.cat([pair[1][slice(*s.gen)] for s in spans])

        attend = CachedAttention([CachedSample(s, t) for s, t in zip(part.spans, tails, strict=True)])
        got = attend.for_layer(0)(gather(query), gather(key), gather(value))
        for mine, theirs in zip(got, gather(expected), strict=True):
            assert torch.allclose(mine, theirs, atol=1e-6)
        for i, tail in zip(active, tails, strict=True):
            contexts[i].commit(tail, (samples[i][step],))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_image_is_the_same_in_any_batch(dtype: torch.dtype) -> None:
    """Images behind texts of different lengths, some of which see more than is copied: each as alone, to the bit."""
    spec = PackSpec.of(BagelConfig(), SpecialTokens(1, 2, 3, 4))
    image = VaeSegment(torch.zeros(12, spec.latent_dim), (3, 4), noised=True, timestep=0.5)
    lengths = (3, 0, 40, 50, 51, 700, 900)
    cache = CacheSpec(2, 64, dtype, (torch.device("cpu"),))
    draws = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draws).to(dtype)

    rooms = []
    for length in lengths:
        context = Context(cache)
        if length:
            read = context.allocate(length)
            for room in read.room(0, length)[0]:
                room.copy_(random(length, 2, 64))
            context.commit(read, (TextSegment((5,) * length),))
        rooms.append(context.allocate(segment_length(image), scratch=True))
    query, key, value = (tuple(random(len(lengths), n, heads, 64) for n in (2, 12)) for heads in (14, 2, 2))

    def attend(chosen: list[int]) -> list[Tensor]:
        layout = pack([[Sample((image,)) for _ in chosen]], spec)
        samples = [CachedSample(spans, rooms[i]) for spans, i in zip(layout.spans, chosen, strict=True)]
        inputs = (tuple(part[chosen].flatten(0, 1) for part in pair) for pair in (query, key, value))
        und, gen = CachedAttention(samples).for_layer(0)(*inputs)
        return list(torch.cat([und.view(-1, 2, 14, 64), gen.view(-1, 12, 14, 64)], 1))

    together = attend(list(range(len(lengths))))
    for i, room in enumerate(rooms):
        assert torch.equal(attend([i])[0], together[i])
        seen = [torch.cat(both, 2)[0] for both in zip(*room.visible(14)[0], strict=True)]
        expected = reference(torch.cat([part[i] for part in query]), *seen, causal=False)
        assert (together[i] - expected).abs().max() <= 2 * TOLERANCE[dtype]


def test_flex_attention_equals_masked() -> None:
    """Several samples in a row, an expert without slots of its own in some, and padding."""
    decoder = DecoderConfig(hidden_size=64, num_layers=1, num_heads=4, num_kv_heads=2, vocab_size=9)
    config = BagelConfig(decoder=decoder, vit=VitConfig(hidden_size=8, num_layers=1, num_heads=1))
    spec = PackSpec.of(config, SpecialTokens(1, 2, 3, 4))
    image = VaeSegment(torch.zeros(6, spec.latent_dim), (2, 3), noised=True, timestep=0.5)
    rows = [
        [Sample((TextSegment((1, 5, 6, 2)), image)), Sample((TextSegment((1, 7, 2)),))],
        [Sample((TextSegment((1, 8, 2)), image, TextSegment((1, 8, 6, 2))))],
    ]
    packed = pack(rows, spec, und_len=20, gen_len=9)
    und, gen = packed.rows * packed.und_len, packed.rows * packed.gen_len

    def draw(heads: int) -> tuple[Tensor, Tensor]:
        return torch.randn(und, heads, 16), torch.randn(gen, heads, 16)

    query, key, value = draw(4), draw(2), draw(2)
    wanted = MaskedAttention(packed).for_layer(0)(query, key, value)
    found = FlexMaskedAttention(packed).for_layer(0)(query, key, value)
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_blocks_of_flex_attention_are_those_of_the_mask() -> None:
    """Of a long row: blocks seen as a whole, in part and not at all, and a rest that fills no block."""
    row = [Sample((TextSegment((1,) * n), VaeSegment(None, (9, 20), noised=True))) for n in (300, 40, 500)]
    layout = pack([row], SPEC, und_len=900, gen_len=600)
    blocks, mask = block_mask(layout), layout.mask()[0]
    spare = -mask.shape[0] % 128
    tiles = torch.nn.functional.pad(mask, (0, spare, 0, spare)).unflatten(1, (-1, 128)).unflatten(0, (-1, 128))
    seen, whole = tiles.any(3).any(1), tiles.all(3).all(1)
    assert whole.any()
    assert not seen.all()
    for chosen, count, index in (
        (seen & ~whole, blocks.kv_num_blocks, blocks.kv_indices),
        (whole, blocks.full_kv_num_blocks, blocks.full_kv_indices),
    ):
        assert count is not None
        assert index is not None
        for line, (n, places) in zip(chosen, zip(count[0, 0], index[0, 0], strict=True), strict=True):
            assert sorted(places[:n].tolist()) == line.nonzero()[:, 0].tolist()
    where = torch.randint(0, mask.shape[0], (2, 4000))
    zero = torch.zeros(4000, dtype=torch.int64)
    assert torch.equal(blocks.mask_mod(zero, zero, *where), mask[where[0], where[1]])


def test_the_mask_of_a_long_pack_takes_megabytes() -> None:
    """16,384 tokens in one row: the whole mask would be 268 MB, and the block mask made from it took gigabytes."""
    row = [Sample((TextSegment((1,) * 126), VaeSegment(None, (24, 24), noised=True))) for _ in range(23)]
    layout = pack([row], replace(SPEC, latent_side=64), und_len=16384 - 13312, gen_len=13312)

    class Largest(TorchDispatchMode):
        nbytes = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for made in tree_leaves(result):
                if isinstance(made, Tensor):
                    self.nbytes = max(self.nbytes, made.untyped_storage().nbytes())
            return result

    with Largest() as largest:
        block_mask(layout)
    assert largest.nbytes < 10_000_000
