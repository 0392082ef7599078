"""Joined linear maps: the same numbers and names, one set of weights, and apart again for adapters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bagel_mot.config import DecoderConfig
from bagel_mot.model import prepacked
from bagel_mot.model.decoder import Expert
from bagel_mot.model.joined import PrepackedRows, join, prepare, separate
from bagel_mot.model.kernels import can_prepack
from bagel_mot.model.prepacked import PrepackedLinear

CONFIG = DecoderConfig(hidden_size=48, num_layers=2, num_heads=6, num_kv_heads=2, intermediate_size=80, vocab_size=20)
KINDS = [False, *([True] if can_prepack(torch.float32) else [])]


@pytest.fixture(autouse=True)
def everything_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepacked, "_SMALLEST_FLOAT32", 0)


def expert(prepack: bool) -> tuple[Expert, dict[str, torch.Tensor]]:
    """A joined expert, and its state before."""
    torch.manual_seed(0)
    made = Expert(CONFIG).eval().requires_grad_(False)
    state = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    prepare(made, prepack=prepack)
    return made, state


@pytest.mark.parametrize("prepack", KINDS)
def test_numbers_and_names_stay(prepack: bool) -> None:
    made, state = expert(prepack)
    assert made.qkv is not None
    assert made.gate_up is not None
    x = torch.randn(9, 48)
    with torch.no_grad():
        for joined, parts in Expert.JOINED.items():
            wanted = [nn.functional.linear(x, state[f"{p}.weight"], state.get(f"{p}.bias")) for p in parts]
            assert torch.allclose(getattr(made, joined)(x), torch.cat(wanted, 1), atol=1e-5)
            for part, own in zip(parts, wanted, strict=True):
                assert torch.allclose(getattr(made, part)(x), own, atol=1e-5)
    found = made.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_plain_parts_are_views_of_the_whole() -> None:
    made, _ = expert(False)
    assert made.qkv is not None
    whole = made.qkv.whole.weight.untyped_storage()
    assert all(p.weight.untyped_storage().data_ptr() == whole.data_ptr() for p in (made.q, made.k, made.v))
    made.to(torch.bfloat16)  # moved one by one, they are joined anew
    assert made.qkv is not None
    assert made.qkv.whole.weight.dtype == torch.bfloat16
    assert made.k.weight.untyped_storage().data_ptr() == made.qkv.whole.weight.untyped_storage().data_ptr()


@pytest.mark.parametrize("prepack", KINDS)
def test_a_map_that_is_replaced_is_joined_no_longer(prepack: bool) -> None:
    made, state = expert(prepack)
    separate(made, "k")
    assert made.qkv is None
    assert made.gate_up is not None
    assert not any(isinstance(part, PrepackedRows) for part in (made.q, made.k, made.v))
    assert isinstance(made.q, PrepackedLinear) == prepack
    found = made.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    made.up = nn.Linear(48, 80, bias=False)
    assert made.gate_up is None


def test_what_cannot_be_joined_is_left() -> None:
    made = Expert(CONFIG)
    made.v = nn.Linear(48, 16, bias=False)
    assert join(made, ("q", "k", "v"), prepack=False) is None
    with torch.device("meta"):
        assert join(Expert(CONFIG), ("gate", "up"), prepack=False) is None


def test_adapters_find_their_map_apart() -> None:
    pytest.importorskip("peft")
    from bagel_mot.config import BagelConfig, VitConfig
    from bagel_mot.model.bagel import BagelModel
    from bagel_mot.model.lora import MatrixShape, add_new_adapter

    model = BagelModel(BagelConfig(decoder=CONFIG, vit=VitConfig(hidden_size=8, num_layers=1, num_heads=1)))
    model.eval().requires_grad_(False).decoder.prepare(prepack=True)
    add_new_adapter(model, "a", {"decoder.layers.0.und.q": MatrixShape(2, 4.0)})
    first, second = (layer.und for layer in model.decoder.layers)
    assert first.qkv is None
    assert first.gate_up is not None
    assert second.qkv is not None
    x, rope = torch.randn(5, 48), (torch.ones(5, 1, 8), torch.zeros(5, 1, 8))
    with torch.no_grad():  # a new adapter changes nothing
        adapted = first.project(x, rope)
        first.q = first.q.base_layer
        assert all(torch.allclose(a, b) for a, b in zip(adapted, first.project(x, rope), strict=True))


def test_weights_that_are_brought_stay_apart() -> None:
    """For what is brought is not what was joined."""
    from bagel_mot import Bagel

    bagel = Bagel.from_pretrained("mini", device="cpu", offload="disk")
    assert all(layer.und.qkv is None for layer in bagel.checkpoint.model.decoder.layers)
    bagel = Bagel.from_pretrained("mini", device="cpu")
    assert all(layer.und.qkv is not None for layer in bagel.checkpoint.model.decoder.layers)
