"""A prepared decoder computes what the plain one does, with compiled passes and without, in both precisions."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from bagel_mot.config import BagelConfig, DecoderConfig, VitConfig
from bagel_mot.inference.loading import compile_experts
from bagel_mot.model import decoder, passes
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.cache import Context
from bagel_mot.model.cached_attention import CachedAttention, CachedSample
from bagel_mot.model.decoder import LEAST_WIDTH
from bagel_mot.sequence import PackSpec, Sample, TextSegment, VaeSegment, Values, pack_cached, segment_length
from bagel_mot.tokenizer import SpecialTokens


def model_of(width: int) -> BagelModel:
    torch.manual_seed(0)
    config = BagelConfig(
        decoder=DecoderConfig(
            hidden_size=width,
            num_layers=4,
            num_heads=width // 64,
            num_kv_heads=2,
            intermediate_size=2 * width,
            vocab_size=64,
        ),
        vit=VitConfig(hidden_size=8, num_layers=1, num_heads=1, intermediate_size=8, patch_size=2, image_size=4),
        vit_max_num_patch_per_side=2,
    )
    model = BagelModel(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            torch.nn.init.normal_(parameter, 1, 0.1)
        else:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model


def states(model: BagelModel) -> Tensor:
    """The hidden states of texts and images of two contexts of different lengths, read one after another, together, and
    token by token, in float32.
    """
    spec, generator = PackSpec.of(model.config, SpecialTokens(1, 2, 3, 4)), torch.Generator().manual_seed(1)
    contexts = [Context(model.decoder.cache_spec) for _ in range(2)]
    found = []
    for first, second in ((9, 13), (1, 1), (None, None), (1, 4)):
        segments = [
            VaeSegment(torch.randn(16, spec.latent_dim, generator=generator), (4, 4), noised=True, timestep=0.3)
            if length is None
            else TextSegment(tuple(range(10, 10 + length)))
            for length in (first, second)
        ]
        samples = [Sample((part,), own.position) for part, own in zip(segments, contexts, strict=True)]
        layout = pack_cached(samples, spec)
        rooms = [own.allocate(segment_length(part)) for part, own in zip(segments, contexts, strict=True)]
        attention = CachedAttention([CachedSample(*each) for each in zip(layout.spans, rooms, strict=True)])
        found += model(layout, Values.of(samples, spec), attention)
        for own, room, part in zip(contexts, rooms, segments, strict=True):
            own.commit(room, (part,))
    return torch.cat(found).float()


@pytest.fixture(params=["compiled", "no compiler", "narrow"])
def plain(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> BagelModel:
    """A model that is not prepared, in float32; `prepare` would give it passes, or none for either reason."""
    library = passes.compiled()
    if request.param == "narrow":
        assert library is None or decoder.LEAST_WIDTH == LEAST_WIDTH
        monkeypatch.setattr(decoder, "passes_for", lambda *_: pytest.fail("not worth a compiler's second"))
        return model_of(LEAST_WIDTH // 2)
    if request.param == "no compiler":
        monkeypatch.setattr(passes, "compiled", lambda: None)
        monkeypatch.setattr(decoder, "passes_for", passes.passes_for.__wrapped__)
        return model_of(LEAST_WIDTH)
    if library is None:
        pytest.skip("no compiler, or another system than Linux")
    # Whether they are faster depends on what else this machine does.
    monkeypatch.setattr(decoder, "passes_for", lambda dtype, *_: passes.Passes(library, dtype))
    return model_of(LEAST_WIDTH)


@pytest.mark.parametrize("prepack", [False, True])
def test_numbers_are_those_of_the_plain_model(plain: BagelModel, prepack: bool) -> None:
    """In bfloat16, where each rounding moves them, they are no farther from those in float32."""
    compiled = plain.config.decoder.hidden_size == LEAST_WIDTH and passes.compiled() is not None
    with torch.no_grad():
        exact = states(plain)
        prepared = copy.deepcopy(plain)
        prepared.decoder.prepare(prepack=prepack)
        experts = [expert for layer in prepared.decoder.layers for expert in (layer.und, layer.gen)]
        assert all(expert.qkv is not None and expert.gate_up is not None for expert in experts)
        assert all((expert.passes is not None) == compiled for expert in experts)
        torch.testing.assert_close(states(prepared), exact, rtol=0, atol=2e-5)

        rounded = plain.to(torch.bfloat16)
        as_before = (states(rounded) - exact).norm()
        rounded.decoder.prepare(prepack=prepack)
        assert (states(rounded) - exact).norm() <= 1.02 * as_before
        assert as_before < 0.05 * exact.norm()


def test_what_pytorch_compiles_has_no_other_passes() -> None:
    model = model_of(LEAST_WIDTH // 2)
    experts = [part for part in model.modules() if isinstance(part, decoder.Expert)]
    for expert in experts:
        expert.passes = object.__new__(passes.Passes)
    compile_experts(model)
    assert len(experts) == 8
    assert all(expert.passes is None for expert in experts)


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_have_no_passes(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes.sys, "platform", system)
    assert passes.compiled.__wrapped__() is None
