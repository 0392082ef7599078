"""Products of half precision taken in float32, as on a processor that has no instructions for it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bagel_mot import Bagel
from bagel_mot.config import VitConfig
from bagel_mot.model import joined, measuring, prepacked, widened
from bagel_mot.model.attend_over import attend_over
from bagel_mot.model.decoder import Expert
from bagel_mot.model.prepacked import prepack_weights
from bagel_mot.model.quant import FORMATS
from bagel_mot.model.quant.linear import QuantisedLinear
from bagel_mot.model.vit import VisionTransformer
from bagel_mot.model.widened import FEWEST_ROWS, WidenedLinear, product_dtype

HALF = {torch.bfloat16: 4e-3, torch.float16: 5e-4}


@pytest.fixture
def slow_in_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that multiplies faster in float32, whatever this one does."""
    monkeypatch.setattr(widened, "can_prepack", lambda dtype: False)
    monkeypatch.setattr(widened, "_float32_is_faster", lambda dtype: True)
    for module in (prepacked, joined):
        monkeypatch.setattr(module, "can_be_prepacked", lambda weight: False)


def off(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens", [0, 1, FEWEST_ROWS - 1, FEWEST_ROWS, 33])
@pytest.mark.parametrize("piece", [1, 1 << 20])
def test_numbers(tokens: int, bias: bool, dtype: torch.dtype, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widened, "_PIECE", piece)
    linear = nn.Linear(72, 150, bias=bias).to(dtype)
    x = torch.randn(tokens, 72).to(dtype)
    made = WidenedLinear.of(linear.weight, linear.bias)
    assert made.weight.data_ptr() == linear.weight.data_ptr()
    assert made.state_dict().keys() == linear.state_dict().keys()
    exact = nn.functional.linear(x.double(), linear.weight.double(), linear.bias.double() if bias else None)
    found = made(x)
    assert found.dtype == dtype
    assert found.shape == (tokens, 150)
    assert (found.double() - exact).norm() <= HALF[dtype] * exact.norm()


def test_the_type_of_products(slow_in_half: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert product_dtype(torch.bfloat16, "cpu") == torch.float32
    assert product_dtype(torch.float16, "cpu") == torch.float32
    assert product_dtype(torch.float64, "cpu") == torch.float64
    assert product_dtype(torch.bfloat16, "cuda") == torch.bfloat16
    monkeypatch.setattr(widened, "_float32_is_faster", lambda dtype: False)
    assert product_dtype(torch.bfloat16, "cpu") == torch.bfloat16
    monkeypatch.setattr(widened, "_float32_is_faster", lambda dtype: True)
    monkeypatch.setattr(widened, "can_prepack", lambda dtype: dtype == torch.bfloat16)
    assert product_dtype(torch.bfloat16, "cpu") == torch.bfloat16


@pytest.mark.parametrize(("factor", "faster"), [(0.3, False), (1.0, False), (1.9, False), (2.1, True), (7.0, True)])
def test_it_is_measured(factor: float, faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def product(x: Tensor, weight: Tensor) -> None:
        clock[0] += 1.0 if x.dtype == torch.float32 else factor

    monkeypatch.setattr(widened.F, "linear", product)
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: clock[0])
    assert widened._float32_is_faster.__wrapped__(torch.bfloat16) == faster


def test_maps_that_are_changed(slow_in_half: None) -> None:
    both = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8).to(torch.bfloat16))
    assert prepack_weights(both) == 1
    assert type(both[0]) is nn.Linear
    assert isinstance(both[1], WidenedLinear)


@torch.no_grad()
def test_attention_and_the_vision_transformer_are_nearer_to_float32(slow_in_half: None) -> None:
    torch.manual_seed(0)
    query = torch.randn(1, 4, 5, 16).to(torch.bfloat16)
    pieces = [
        (torch.randn(1, 2, n, 16).to(torch.bfloat16), torch.randn(1, 2, n, 16).to(torch.bfloat16)) for n in (9, 6)
    ]
    exact = attend_over(query.float(), [(k.float(), v.float()) for k, v in pieces], causal=True)
    found = attend_over(query, pieces, causal=True)
    assert torch.equal(found, exact.to(torch.bfloat16))

    config = VitConfig(hidden_size=48, num_layers=2, num_heads=4, intermediate_size=64, patch_size=2, image_size=8)
    plain = VisionTransformer(config).to(torch.bfloat16)
    patches, index = torch.randn(16, config.patch_dim).to(torch.bfloat16), torch.arange(16)
    wide = copy.deepcopy(plain).float()(patches.float(), index, ((4, 4),)).double()
    own = copy.deepcopy(plain)
    assert prepack_weights(own) == 13
    found = own(patches, index, ((4, 4),))
    assert found.dtype == torch.bfloat16
    assert off(found, wide) < 0.02


@pytest.mark.parametrize("stored", ["int8", "fp8", "nf4", "int4"])
def test_quantised_matrices(stored: str, slow_in_half: None) -> None:
    """What is dequantised is multiplied in float32, so only the result is rounded."""
    torch.manual_seed(0)
    matrix = FORMATS[stored].quantise(torch.randn(128, 192))
    linear = QuantisedLinear(matrix, None, torch.bfloat16)
    x = torch.randn(64, 192).to(torch.bfloat16)
    exact = x.double() @ matrix.dequantise(torch.float32).double().T
    found = linear(x)
    assert found.dtype == torch.bfloat16
    assert off(found, exact) < 2e-3


def test_an_image_is_the_same_in_any_batch(slow_in_half: None) -> None:
    bagel = Bagel.from_pretrained("mini", precision="bfloat16", device="cpu")
    experts = [part for part in bagel.runtime.engine.model.modules() if isinstance(part, Expert)]
    assert all(expert.qkv is not None and isinstance(expert.qkv.whole, WidenedLinear) for expert in experts)
    prompts = ["a red car", "a blue circle left of a green tree", "a star"]
    settings = {"num_timesteps": 3, "seed": 1}
    together = bagel.generate(prompts, **settings)
    for prompt, image in zip(prompts, together, strict=True):
        levels = [np.asarray(found).astype(int) for found in (bagel.generate(prompt, **settings), image)]
        assert np.abs(levels[0] - levels[1]).max() <= 1
