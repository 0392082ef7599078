"""Packed weights: the same numbers, one set of them, and no training."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bagel_mot import Bagel
from bagel_mot.config import DecoderConfig
from bagel_mot.model import prepacked as prepacked_module
from bagel_mot.model.cache import Context
from bagel_mot.model.cached_attention import CachedAttention, CachedSample
from bagel_mot.model.decoder import Decoder
from bagel_mot.model.kernels import can_prepack
from bagel_mot.model.prepacked import PrepackedLinear, prepack_weights
from bagel_mot.sequence import CAUSAL, FULL, SegmentSpan

PACKABLE = [dtype for dtype in (torch.float32, torch.bfloat16) if can_prepack(dtype)]
CONFIG = DecoderConfig(hidden_size=96, num_layers=2, num_heads=6, num_kv_heads=2, intermediate_size=176, vocab_size=200)

pytestmark = pytest.mark.skipif(not PACKABLE, reason="this processor or PyTorch packs no weights")


@pytest.mark.parametrize("dtype", PACKABLE, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 33])
def test_the_same_numbers_as_plain(tokens: int, bias: bool, dtype: torch.dtype) -> None:
    linear = nn.Linear(72, 130, bias=bias)
    x = torch.randn(tokens, 72).to(dtype)
    exact = nn.functional.linear(x.double(), linear.to(dtype).weight.double(), linear.bias.double() if bias else None)
    with torch.no_grad():
        got = PrepackedLinear(linear.weight, linear.bias)(x)
    assert got.dtype == dtype
    assert got.shape == (tokens, 130)
    tolerance = 1e-6 if dtype == torch.float32 else 4e-3
    assert (got.double() - exact).norm() <= tolerance * exact.norm()


@torch.no_grad()
def run(decoder: Decoder) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A text of 5 tokens, then a picture of 7 between its markers, behind it."""
    generator = torch.Generator().manual_seed(0)
    context = Context(decoder.cache_spec)
    tail = context.allocate(14)
    text = torch.randn(5, 96, generator=generator)
    attend = CachedAttention([CachedSample([SegmentSpan(CAUSAL, (0, 5), (0, 0), 0)], tail)])
    read, _ = decoder(text, text[:0], (torch.arange(5), torch.arange(0)), attend)
    und, gen = torch.randn(2, 96, generator=generator), torch.randn(7, 96, generator=generator)
    attend = CachedAttention([CachedSample([SegmentSpan(FULL, (0, 2), (0, 7), 5)], tail)])
    markers, image = decoder(und, gen, (torch.full((2,), 5), torch.full((7,), 5)), attend)
    return decoder.lm_head(decoder.norm(read)), markers, image


def test_a_decoder_computes_the_same_and_saves_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepacked_module, "_SMALLEST_FLOAT32", 0)
    torch.manual_seed(0)
    decoder = Decoder(CONFIG).eval()
    packed = copy.deepcopy(decoder)
    assert prepack_weights(packed) == 2 * 2 * 7 + 1
    assert not any(isinstance(module, nn.Linear) for module in packed.modules())
    for mine, plain in zip(run(packed), run(decoder), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-5)
    state = packed.state_dict()
    assert state.keys() == decoder.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in decoder.state_dict().items())
    kept = {name for name, _ in packed.named_parameters()}
    assert kept == {name for name in state if "norm" in name or "embed" in name}  # nothing is held twice


def test_gradients_are_refused() -> None:
    packed = PrepackedLinear(torch.randn(8, 8), None)
    with pytest.raises(RuntimeError, match="for inference"):
        packed(torch.randn(2, 8, requires_grad=True))


def test_what_is_left_as_it_is() -> None:
    sizes = nn.Sequential(nn.Linear(256, 256), nn.Linear(512, 512))
    assert prepack_weights(sizes) == 1
    assert isinstance(sizes[1], PrepackedLinear)
    elsewhere = nn.Sequential(nn.Linear(8, 8, device="meta"), nn.Linear(8, 8, dtype=torch.float64))
    tied = nn.Sequential(nn.Embedding(8, 8), nn.Linear(8, 8, bias=False))
    tied[1].weight = tied[0].weight
    assert prepack_weights(elsewhere) == prepack_weights(tied) == 0
    assert not can_prepack(torch.float64)


@pytest.mark.skipif(torch.bfloat16 not in PACKABLE, reason="no bfloat16 here")
@pytest.mark.parametrize("compile", [False, True])
def test_users_get_packed_weights_unless_they_compile(compile: bool) -> None:
    bagel = Bagel.from_pretrained("mini", precision="bfloat16", device="cpu", compile=compile)
    decoder = bagel.checkpoint.model.decoder
    plain = [module for module in decoder.modules() if isinstance(module, nn.Linear)]
    packed = [module for module in decoder.modules() if isinstance(module, PrepackedLinear)]
    assert bool(plain) == compile
    assert bool(packed) != compile
    if not compile:
        image = bagel.generate("a red car", num_timesteps=2, seed=0)
        assert bagel.ask(image, "How many cars are there?", max_new_tokens=2) is not None
