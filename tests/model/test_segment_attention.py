"""Attention by segments is that of the mask, whatever is packed, and computes few pairs that nobody sees."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from bagel_mot.config import BagelConfig, DecoderConfig, VitConfig
from bagel_mot.model import segment_attention
from bagel_mot.model.attention import MaskedAttention, Pair
from bagel_mot.model.decoder import DecoderLayer, rope
from bagel_mot.model.segment_attention import SegmentAttention
from bagel_mot.sequence import (
    PackSpec,
    Sample,
    Segment,
    TextSegment,
    TrainingLayout,
    VaeSegment,
    VitSegment,
    pack,
)
from bagel_mot.tokenizer import SpecialTokens
from bagel_mot.training.flops import visible_pairs

DECODER = DecoderConfig(hidden_size=64, num_layers=1, num_heads=4, num_kv_heads=2, vocab_size=9)
CONFIG = BagelConfig(decoder=DECODER, vit=VitConfig(hidden_size=8, num_layers=1, num_heads=1), max_latent_size=64)
SPEC = PackSpec.of(CONFIG, SpecialTokens(1, 2, 3, 4))


def _segment(rng: Random) -> Segment:
    if rng.random() < 0.5:
        return TextSegment((1,) * rng.randrange(1, 30))
    grid = rng.randrange(1, 6), rng.randrange(1, 6)
    return VitSegment(None, grid) if rng.random() < 0.5 else VaeSegment(None, grid, noised=rng.random() < 0.6)


def _layout(rng: Random) -> TrainingLayout:
    """A pack of a few rows, of samples of a few segments of any kinds, with padding."""
    rows = [
        [Sample(tuple(_segment(rng) for _ in range(rng.randrange(1, 6)))) for _ in range(rng.randrange(1, 5))]
        for _ in range(rng.randrange(1, 4))
    ]
    least = pack(rows, SPEC)
    return pack(rows, SPEC, und_len=least.und_len + rng.randrange(5), gen_len=least.gen_len + rng.randrange(3))


def _drawn(layout: TrainingLayout, heads: int, size: int = 16) -> Pair:
    slots = layout.rows * layout.und_len, layout.rows * layout.gen_len
    und, gen = (torch.randn(count, heads, size, requires_grad=True) for count in slots)
    return und, gen


@pytest.mark.parametrize("pairs", [0, 1 << 9, 1 << 30], ids=["apart", "some together", "all together"])
@pytest.mark.parametrize("seed", range(12))
def test_values_and_gradients_are_those_of_the_mask(seed: int, pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_attention, "PAIRS_OF_A_CALL", pairs)
    layout = _layout(Random(seed))
    torch.manual_seed(seed)
    inputs = _drawn(layout, 4), _drawn(layout, 2), _drawn(layout, 2)
    real = [part.flatten() >= 0 for part in layout.sample.split([layout.und_len, layout.gen_len], dim=1)]
    weights = [torch.randn(int(tokens.sum()), 4, 16) for tokens in real]
    found = []
    for attention in (MaskedAttention(layout), SegmentAttention(layout)):
        out = [part[tokens] for part, tokens in zip(attention.for_layer(0)(*inputs), real, strict=True)]
        loss = torch.stack([(part * weight).sum() for part, weight in zip(out, weights, strict=True)]).sum()
        leaves = [part for pair in inputs for part in pair]
        found.append([*out, *torch.autograd.grad(loss, leaves, materialize_grads=True)])
    for theirs, ours in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=3e-6)
    padded = SegmentAttention(layout).for_layer(0)(*inputs)
    assert not any(part[1:][~tokens[1:]].any() for part, tokens in zip(padded, real, strict=True))


class _Pairs(TorchDispatchMode):
    """Counts the calls of the kernel, and the pairs that they compute for a head."""

    calls = pairs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
            query, key = (part.shape[2] for part in args[:2])
            causal = args[4] if len(args) > 4 else (kwargs or {}).get("is_causal", False)
            self.calls += 1
            self.pairs += query * (query + 1) // 2 if causal else query * key
        return func(*args, **(kwargs or {}))


def _computed(layout: TrainingLayout) -> _Pairs:
    attend, inputs = SegmentAttention(layout), [_drawn(layout, heads) for heads in (4, 2, 2)]
    with _Pairs() as counted, torch.no_grad():
        attend(*inputs)
    return counted


def test_long_segments_compute_what_is_seen_alone() -> None:
    """Texts with images behind them, in one row, and a conversation whose questions follow one another."""
    drawn = Sample((TextSegment((1,) * 200), VaeSegment(None, (20, 20), noised=True)))
    asked = Sample((VitSegment(None, (15, 15)), TextSegment((1,) * 100), TextSegment((1,) * 100)))
    layout = pack([[drawn, asked, drawn]], SPEC)
    counted = _computed(layout)
    wasted = counted.pairs - visible_pairs(layout.spans)
    assert counted.calls == 6
    assert 0 <= wasted <= 200 * 200 // 2  # the answer behind an image is computed as if it were not causal


def test_short_samples_are_computed_together() -> None:
    """A call for each of 64 texts of 10 tokens would cost more than the pairs that they do not see."""
    layout = pack([[Sample((TextSegment((1,) * 10),)) for _ in range(64)]], SPEC)
    counted = _computed(layout)
    assert counted.calls <= 8
    assert counted.pairs <= 640 * 640 // 7


def test_all_inputs_have_gradients_whatever_a_pack_holds() -> None:
    """A parameter without one would neither decay its moments nor be added up with other processes'."""
    text = Sample((TextSegment((1,) * 3),))
    for rows, und_len, gen_len in (([[]], 4, 0), ([[]], 4, 3), ([[text]], 3, 2), ([[text], []], 5, 1)):
        layout = pack(rows, SPEC, und_len=und_len, gen_len=gen_len)
        inputs = [_drawn(layout, heads) for heads in (4, 2, 2)]
        und, gen = SegmentAttention(layout)(*inputs)
        assert (und.shape, gen.shape) == ((layout.rows * und_len, 4, 16), (layout.rows * gen_len, 4, 16))
        (und.sum() + gen.sum()).backward()
        for part in (pair[expert] for pair in inputs for expert in range(2) if (und_len, gen_len)[expert]):
            assert part.grad is not None
            assert part.grad.isfinite().all()


def test_masks_have_the_type_of_the_queries() -> None:
    layout = pack([[Sample((TextSegment((1,) * 3), VitSegment(None, (1, 2)), TextSegment((1,) * 3)))]], SPEC)
    inputs = [tuple(part.bfloat16() for part in _drawn(layout, heads)) for heads in (4, 2, 2)]
    und, _ = SegmentAttention(layout, torch.bfloat16)(*inputs)
    wanted, _ = MaskedAttention(layout)(*inputs)
    assert und.dtype == torch.bfloat16
    assert torch.allclose(und.float(), wanted.float(), atol=0.02)
    assert isinstance(und, Tensor)


def test_compiled_layers_serve_the_segments_of_every_pack() -> None:
    """Segments differ from pack to pack: they are no part of what is compiled, which depends on the sizes alone."""
    torch.compiler.reset()
    layer, counter = DecoderLayer(DECODER), CompileCounter()
    compiled = torch.compile(layer, backend=counter, dynamic=False)
    compiles = []
    for seed in range(3):
        rng = Random(seed)
        samples = [Sample(tuple(_segment(rng) for _ in range(rng.randrange(1, 6)))) for _ in range(4)]
        layout = pack([samples[:2], samples[2:]], SPEC, und_len=400, gen_len=300)
        inputs = [torch.randn(layout.rows * length, DECODER.hidden_size) for length in (400, 300)]
        ropes = [rope(torch.arange(float(len(x))), DECODER.head_dim, 1e4) for x in inputs]
        expected = layer(*inputs, *ropes, MaskedAttention(layout).for_layer(0))
        found = compiled(*inputs, *ropes, SegmentAttention(layout).for_layer(0))
        real = layout.place >= 0
        for ours, theirs, slots in zip(found, expected, (real[:, :400], real[:, 400:]), strict=True):
            assert torch.allclose(ours[slots.flatten()], theirs[slots.flatten()], atol=1e-5)
        compiles.append(counter.frame_count)
    assert compiles[0] == compiles[1] == compiles[2] > 0
