"""Counted operations against PyTorch's own counter, and visible pairs against the mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bagel_mot.config import BagelConfig, DecoderConfig, VitConfig
from bagel_mot.model.attention import MaskedAttention
from bagel_mot.model.bagel import BagelModel
from bagel_mot.placement.peaks import peak_flops
from bagel_mot.sequence import (
    DroppedImage,
    PackSpec,
    Sample,
    TextSegment,
    TrainingLayout,
    VaeSegment,
    Values,
    VitSegment,
    pack,
)
from bagel_mot.tokenizer import SpecialTokens
from bagel_mot.training.flops import FlopCounter, attention_flops, published_flops, visible_pairs, vit_attention_flops
from bagel_mot.training.lora import AdapterConfig, add_adapters, base_velocities
from bagel_mot.training.objective import CE_CHUNK, add_noise, compute_losses
from bagel_mot.training.trainable import select_trainable

CONFIG = BagelConfig(
    decoder=DecoderConfig(
        hidden_size=64, num_layers=3, num_heads=4, num_kv_heads=2, intermediate_size=160, vocab_size=512
    ),
    vit=VitConfig(hidden_size=48, num_layers=2, num_heads=4, intermediate_size=96, image_size=140),
    max_latent_size=16,
    vit_max_num_patch_per_side=10,
)


def _samples() -> list[Sample]:
    """An edit whose image is drawn and seen, a text, and an image from a text whose condition was dropped."""

    def text(length: int, learn: bool) -> TextSegment:
        ids = tuple(range(10, 8 + length))
        return TextSegment((1, *ids, 2), labels=(*ids, 2) if learn else ())

    def drawn(side: int, noised: bool) -> VaeSegment:
        return VaeSegment(torch.randn(side**2, CONFIG.latent_dim), (side, side), noised)

    seen = VitSegment(torch.randn(30, CONFIG.vit.patch_dim), (5, 6))
    return [
        Sample((drawn(6, False), seen, text(20, False), drawn(7, True), drawn(7, False), seen, text(9, True))),
        Sample((text(40, True),)),
        Sample((DroppedImage(), text(12, False), drawn(9, True))),
    ]


def _layout() -> tuple[TrainingLayout, Values]:
    spec, samples = PackSpec.of(CONFIG, SpecialTokens(1, 2, 3, 4)), _samples()
    layout = pack([samples[:2], samples[2:]], spec, und_len=200, gen_len=150)
    return layout, Values.of(samples, spec)


def test_visible_pairs_are_those_of_the_mask_without_padding() -> None:
    layout, _ = _layout()
    real = layout.place >= 0
    assert visible_pairs(layout.spans) == int((layout.mask() & real[:, :, None]).sum())


@pytest.mark.parametrize(
    ("patterns", "error"),
    [
        (["*"], 0.0),
        (["decoder.lm_head.*"], 0.0),
        # In the layer where the first weight trains not all gradients of inputs are needed.
        (["decoder.layers.*.gen.*"], 0.02),
        (["connector.*"], 0.02),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_matmuls_are_counted_as_pytorch_does(patterns: list[str], error: float) -> None:
    torch.manual_seed(0)
    model = BagelModel(CONFIG)
    select_trainable(model, patterns)
    # One row without padding: matmuls over padding are no useful work, but PyTorch counts them.
    spec, samples = PackSpec.of(CONFIG, SpecialTokens(1, 2, 3, 4)), _samples()
    layout, values = pack([samples], spec), Values.of(samples, spec)
    noised = add_noise(layout, values, torch.rand(len(layout.latent_grids)), torch.randn_like(values.latents))
    with FlopCounterMode(display=False) as counter:
        losses = compute_losses(model, noised, MaskedAttention(layout))
        (losses.ce.sum() + losses.mse.sum()).backward()
    operations = counter.get_flop_counts()["Global"]
    matmuls = sum(count for name, count in operations.items() if "attention" not in str(name))
    flops = FlopCounter(model, recomputes_layers=False, chunk=CE_CHUNK)
    attention = attention_flops(CONFIG.decoder, visible_pairs(layout.spans)) * (3 if flops.layers_train else 1)
    attention += vit_attention_flops(CONFIG.vit, layout) * (3 if flops.vit_trains else 1)
    assert flops.count(layout).useful - attention == pytest.approx(matmuls, rel=error or 1e-9)


def test_attention_is_two_products_of_each_visible_pair() -> None:
    length, heads, size = 37, 4, 16
    with FlopCounterMode(display=False) as counter:
        query = torch.randn(heads, length, size)
        (query @ query.transpose(1, 2)) @ query
    assert attention_flops(CONFIG.decoder, length**2) == CONFIG.decoder.num_layers * counter.get_total_flops()


def test_what_is_computed_again_counts_for_hfu_alone() -> None:
    layout, _ = _layout()
    model = BagelModel(CONFIG)
    plain = FlopCounter(model, recomputes_layers=False, chunk=CE_CHUNK).count(layout)
    again = FlopCounter(model, recomputes_layers=True, chunk=10).count(layout)
    assert plain.recomputed == 0
    assert plain.useful == again.useful
    assert 0.2 < again.recomputed / again.useful < 1 / 3, "a forward pass is a third of all"


@pytest.mark.parametrize("experts", [("gen",), ("und", "gen")])
def test_matmuls_beside_adapters_are_counted_as_pytorch_does(experts: tuple[Literal["und", "gen"], ...]) -> None:
    torch.manual_seed(0)
    model = BagelModel(CONFIG)
    add_adapters(model, AdapterConfig(experts=experts, rank=2))
    spec, samples = PackSpec.of(CONFIG, SpecialTokens(1, 2, 3, 4)), _samples()
    layout, values = pack([samples], spec), Values.of(samples, spec)
    noised = add_noise(layout, values, torch.rand(len(layout.latent_grids)), torch.randn_like(values.latents))
    plain = FlopCounter(model, recomputes_layers=False, chunk=CE_CHUNK).count(layout)
    distilled = FlopCounter(model, recomputes_layers=False, chunk=CE_CHUNK, distils=True).count(layout)
    assert plain.recomputed == 0
    assert plain.useful == distilled.useful
    seen = vit_attention_flops(CONFIG.vit, layout)
    attention = attention_flops(CONFIG.decoder, visible_pairs(layout.spans))

    def matmuls(compute: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter:
            compute()
        return sum(n for name, n in counter.get_flop_counts()["Global"].items() if "attention" not in str(name))

    def step() -> None:
        losses = compute_losses(model, noised, MaskedAttention(layout))
        (losses.ce.sum() + losses.mse.sum()).backward()

    # What the base predicts is done beside the step; in the first layer not all gradients of inputs are needed.
    base = matmuls(lambda: base_velocities(model, noised, MaskedAttention(layout)))
    assert distilled.recomputed - attention - seen == pytest.approx(base, rel=1e-9)
    assert plain.useful - 3 * attention - seen == pytest.approx(matmuls(step), rel=0.03)


def test_the_published_count_is_their_formula() -> None:
    layout, _ = _layout()
    dense = 3 * (3 * 64 * 160 + 64 * (64 + 32 + 32 + 64)) + 2 * 512 * 64
    lengths = [sum(span.length for span in sample) for sample in layout.spans]
    assert sum(lengths) == layout.num_tokens
    expected = 6 * dense * layout.num_tokens + 12 * 16 * 4 * 3 * sum(length**2 for length in lengths)
    assert published_flops(CONFIG.decoder, layout) == expected


def test_peaks_are_of_known_devices_alone() -> None:
    assert peak_flops("NVIDIA H200") == peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-40GB") == 312e12
    assert peak_flops("NVIDIA L40S") == 362.05e12
    for unknown in ("NVIDIA GeForce RTX 4090 Ti", "NVIDIA H2000", "NVIDIA L405", "Apple M3", ""):
        assert peak_flops(unknown) is None
