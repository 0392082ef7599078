"""Adapters beside matrices of every kind compute what merged weights compute."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.tuners import lora
from torch import Tensor, nn

from bagel_mot.checkpoint.official import Checkpoint, load_checkpoint
from bagel_mot.model import kernels
from bagel_mot.model.adapters import Adapter, MatrixAdapter, merge
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.lora import (
    AdaptedLinear,
    MatrixShape,
    adapted_layers,
    add_adapter,
    add_new_adapter,
    fill_adapter,
    remove_adapter,
    row_squares,
    set_strengths,
)
from bagel_mot.model.prepacked import PrepackedLinear
from bagel_mot.model.quant import FORMATS
from bagel_mot.model.quant.linear import QuantisedLinear
from tests.adapters import random_adapter

INNER, OUT, RANK, ALPHA = 128, 192, 4, 6.0


def _base(kind: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    """A linear map, and its weight in float32."""
    linear = nn.Linear(INNER, OUT, dtype=dtype).requires_grad_(False)
    if kind == "plain":
        return linear, linear.weight.float()
    if kind == "prepacked":
        if not kernels.can_prepack(dtype):
            pytest.skip("this processor multiplies no prepacked weights")
        return PrepackedLinear(linear.weight, linear.bias), linear.weight.float()
    matrix = FORMATS[kind].quantise(linear.weight)
    return QuantisedLinear(matrix, linear.bias, dtype), matrix.dequantise(torch.float32)


def _adapted(base: nn.Module, *, dora: bool = False, rslora: bool = False, dropout: float = 0.0) -> AdaptedLinear:
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, use_dora=dora, use_rslora=rslora, lora_dropout=dropout)
    layer = AdaptedLinear(base, "default", config, MatrixShape(RANK, ALPHA))
    nn.init.normal_(layer.factors("default")[1], std=0.1)
    if dora:
        nn.init.uniform_(layer.magnitude("default"), 0.5, 1.5)
    return layer


def _numbers(layer: AdaptedLinear) -> Adapter:
    down, up = (factor.detach() for factor in layer.factors("default"))
    magnitude = layer.magnitude("default").detach() if "default" in layer.lora_magnitude_vector else None
    return Adapter({"here": MatrixAdapter(down, up, ALPHA, magnitude)}, layer.use_rslora["default"])


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("kind", ["plain", "prepacked", *FORMATS])
def test_every_kind_of_matrix_computes_what_the_merged_one_does(kind: str, dora: bool) -> None:
    base, weight = _base(kind)
    layer = _adapted(base, dora=dora, rslora=True)
    bias = base.bias
    assert isinstance(bias, Tensor)
    x = torch.randn(7, INNER)
    for strength in (1.0, 0.5, -2.0):
        layer.strengths = {"default": strength}
        expected = x @ merge(weight, "here", [(_numbers(layer), strength)]).T + bias
        with torch.no_grad():
            assert torch.allclose(layer(x), expected, rtol=1e-4, atol=1e-4 if kind in ("plain", "prepacked") else 0.02)
        assert not torch.allclose(base(x), expected, atol=0.1)


@pytest.mark.parametrize("kind", ["plain", *FORMATS])
def test_a_new_adapter_changes_nothing(kind: str) -> None:
    base, weight = _base(kind)
    x = torch.randn(3, INNER)
    for dora in (False, True):
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, use_dora=dora)
        layer = AdaptedLinear(base, "default", config, MatrixShape(RANK, ALPHA))
        assert torch.allclose(layer(x), base(x), atol=1e-5)
    assert torch.allclose(row_squares(base), weight.square().sum(1), rtol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_outputs_and_gradients_are_those_of_peft(dora: bool, dropout: float) -> None:
    base, _ = _base("plain")
    layer = _adapted(base, dora=dora, dropout=dropout)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, use_dora=dora, lora_dropout=dropout)
    theirs = lora.Linear(copy.deepcopy(base), "default", config=config, r=RANK, lora_alpha=ALPHA)
    theirs.load_state_dict({name: tensor for name, tensor in layer.state_dict().items() if name != "row_squares"})
    x, results = torch.randn(6, INNER), []
    for module in (layer, theirs):
        own = x.clone().requires_grad_()
        torch.manual_seed(1)
        out = module(own)
        out.square().sum().backward()
        trained = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        results.append({"out": out, "x": own.grad, **trained})
    assert results[0].keys() == results[1].keys()
    assert len(results[0]) == (5 if dora else 4)
    for name, value in results[0].items():
        assert torch.allclose(value, results[1][name], rtol=1e-4, atol=1e-3), name


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("kind", ["int8", "int4", "nf4", "fp8"])
def test_gradients_through_quantised_matrices_are_those_of_their_values(kind: str, dora: bool) -> None:
    base, weight = _base(kind)
    plain = nn.Linear(INNER, OUT).requires_grad_(False)
    plain.weight.copy_(weight)
    plain.bias.copy_(base.bias)
    x, results = torch.randn(40, INNER), []
    layer = _adapted(base, dora=dora)
    other = _adapted(plain, dora=dora)
    other.load_state_dict({n: t for n, t in layer.state_dict().items() if "base_layer" not in n}, strict=False)
    for module in (layer, other):
        own = x.clone().requires_grad_()
        module(own).square().sum().backward()
        assert own.grad is not None
        trained = [p.grad for _, p in module.named_parameters() if p.requires_grad]
        results.append([own.grad, *trained])
    assert len(results[0]) == (4 if dora else 3)
    for got, expected in zip(*results, strict=True):
        assert (got - expected).norm() <= 1e-2 * expected.norm()


@pytest.mark.parametrize("kind", ["plain", "nf4"])
def test_the_master_is_float32_and_the_products_are_in_the_type_of_the_base(kind: str) -> None:
    base, _ = _base(kind, torch.bfloat16)
    for dora in (False, True):
        layer = _adapted(base, dora=dora)
        out = layer(torch.randn(3, INNER, dtype=torch.bfloat16))
        out.float().square().sum().backward()
        trained = [p for p in layer.parameters() if p.requires_grad]
        assert out.dtype == torch.bfloat16
        assert len(trained) == 2 + dora
        assert all(p.dtype == torch.float32 and p.grad is not None and p.grad.dtype == torch.float32 for p in trained)


# ------------------------------------------------------------------------------------------------------ whole models


@pytest.fixture
def model(golden: Any) -> BagelModel:
    return load_checkpoint(golden.checkpoint, precision=torch.float32).model


def _linear_maps(model: BagelModel) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if hasattr(module, "in_features")}


def test_adapters_are_added_mixed_and_removed(model: BagelModel) -> None:
    before = _linear_maps(model)
    adapters = {
        "first": random_adapter(model.config, seed=1, rank=2),
        "second": random_adapter(model.config, seed=2, experts=["gen"], rank=5, dora=True),
    }
    for name, adapter in adapters.items():
        add_adapter(model, name, adapter)
    assert not [name for name, p in model.named_parameters() if p.requires_grad]
    place = "decoder.layers.1.gen.down"
    weight, x = before[place].weight, torch.randn(3, before[place].in_features)  # type: ignore[arg-type]
    for strengths in ({"first": 1.0, "second": 0.25}, {"second": 1.0}, {"first": -1.0, "second": 0.0}, {}):
        set_strengths(model, strengths)
        mixed = [(adapters[name], strength) for name, strength in strengths.items()]
        expected = x @ merge(weight, place, mixed).T  # type: ignore[arg-type]
        assert torch.allclose(model.get_submodule(place)(x), expected, atol=1e-4)
    assert torch.equal(model.get_submodule(place)(x), before[place](x))
    remove_adapter(model, "first")
    set_strengths(model, {"second": 1.0})
    assert torch.allclose(
        model.get_submodule(place)(x), x @ merge(weight, place, [(adapters["second"], 1.0)]).T, atol=1e-4  # type: ignore[arg-type]
    )  # fmt: skip
    assert {place.split(".")[3] for place, _ in adapted_layers(model)} == {"gen"}
    remove_adapter(model, "second")
    assert _linear_maps(model) == before


def test_parts_that_a_task_does_not_need_have_no_adapters(golden: Any) -> None:
    checkpoint: Checkpoint = load_checkpoint(golden.checkpoint, tasks=("understand",))
    add_adapter(checkpoint.model, "a", random_adapter(checkpoint.config))
    assert {place.split(".")[3] for place, _ in adapted_layers(checkpoint.model)} == {"und"}
    assert {layer.factors("a")[0].dtype for _, layer in adapted_layers(checkpoint.model)} == {torch.bfloat16}


def test_an_adapter_of_other_ranks_scales_or_matrices_is_not_put_into_another(model: BagelModel) -> None:
    add_new_adapter(model, "a", {"decoder.layers.0.und.q": MatrixShape(4, 8.0)})
    with pytest.raises(ValueError, match=r"^only one of them adapts decoder.layers.0.gen.down"):
        fill_adapter(model, "a", random_adapter(model.config))
    only = random_adapter(model.config, rank=2).matrices["decoder.layers.0.und.q"]
    with pytest.raises(ValueError, match=r"^the rank of decoder.layers.0.und.q is 2, and 4 is asked for"):
        fill_adapter(model, "a", Adapter({"decoder.layers.0.und.q": only}))
    same = random_adapter(model.config, rank=4).matrices["decoder.layers.0.und.q"]
    for other in (
        Adapter({"decoder.layers.0.und.q": replace(same, alpha=4.0)}),
        Adapter({"decoder.layers.0.und.q": same}, True),
    ):
        with pytest.raises(ValueError, match=r"^the scale of decoder.layers.0.und.q, .* is [14], and 2 is asked for"):
            fill_adapter(model, "a", other)
    fill_adapter(model, "a", Adapter({"decoder.layers.0.und.q": same}))
