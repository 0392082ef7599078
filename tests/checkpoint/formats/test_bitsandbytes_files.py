"""INT8 and NF4 in the state dictionaries of bitsandbytes, against what it makes of them itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bagel_mot.checkpoint.opening import open_source
from bagel_mot.errors import CheckpointError
from bagel_mot.model.quant import Int8Matrix, Nf4Matrix

bnb = pytest.importorskip("bitsandbytes")
Save = Callable[[dict[str, Tensor]], Path]
STATE = "q.weight.quant_state.bitsandbytes__"


def state(layer: nn.Linear, out: int, inner: int) -> dict[str, Tensor]:
    """A layer's state, quantised as bitsandbytes does it, of a matrix named q."""
    layer.load_state_dict({"weight": torch.randn(out, inner), "bias": torch.randn(out)})
    return {f"q.{name}": tensor for name, tensor in layer.to("cpu").state_dict().items()}


def four_bits(out: int = 128, inner: int = 192, kind: str = "nf4", nested: bool = True) -> dict[str, Tensor]:
    return state(bnb.nn.Linear4bit(inner, out, compress_statistics=nested, quant_type=kind), out, inner)


def its_own(tensors: dict[str, Tensor]) -> Tensor:
    """The weights that bitsandbytes dequantises from four bits, float32."""
    parts = {name.removeprefix("q."): t for name, t in tensors.items() if name.startswith("q.weight.")}
    found = bnb.functional.QuantState.from_dict(parts, torch.device("cpu"))
    shape, found.dtype = found.shape, torch.float32
    # Its kernel for the CPU goes wrong where a block runs over the end of a row (0.50): it is given a row for each.
    found.shape = torch.Size((shape.numel() // found.blocksize, found.blocksize))
    return bnb.functional.dequantize_4bit(tensors["q.weight"], found).view(shape)


def changed_state(tensors: dict[str, Tensor], **changes: object) -> dict[str, Tensor]:
    content = json.loads(bytes(tensors[STATE + "nf4"].tolist())) | changes
    return tensors | {STATE + "nf4": torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8)}


def test_int8(save: Save) -> None:
    tensors = state(bnb.nn.Linear8bitLt(192, 128, has_fp16_weights=False), 128, 192)
    assert "q.weight_format" in tensors
    source = open_source(save(tensors))
    assert set(source.names()) == {"q.weight", "q.bias"}
    assert source.kind == "bitsandbytes INT8"
    found = source.read("q.weight")
    assert isinstance(found, Int8Matrix)
    assert torch.equal(found.tensors["values"], tensors["q.weight"])
    assert torch.equal(found.tensors["scale"], tensors["q.SCB"] / 127)
    theirs = bnb.functional.int8_vectorwise_dequant(tensors["q.weight"], tensors["q.SCB"])
    assert torch.allclose(found.dequantise(torch.float32), theirs, rtol=1e-6, atol=0)
    with pytest.raises(CheckpointError, match="weight_format is 2"):
        open_source(save(tensors | {"q.weight_format": torch.tensor(2, dtype=torch.uint8)}))
    with pytest.raises(CheckpointError, match="weight_format is 0, 0, and only 0"):
        open_source(save(tensors | {"q.weight_format": torch.zeros(2, dtype=torch.uint8)}))
    with pytest.raises(CheckpointError, match="its SCB is I64"):
        open_source(save(tensors | {"q.SCB": torch.ones(128, dtype=torch.int64)}))
    with pytest.raises(CheckpointError, match=r"q.weight \(I8 \[128, 192\]\) is of an unknown layout"):
        open_source(save(tensors | {"q.SCB": torch.ones(3)}))


@pytest.mark.parametrize("nested", [True, False])
def test_nf4(save: Save, nested: bool) -> None:
    tensors = four_bits(nested=nested)
    source = open_source(save(tensors))
    assert set(source.names()) == {"q.weight", "q.bias"}
    assert source.kind == ("bitsandbytes NF4, scales in 8 bits" if nested else "bitsandbytes NF4")
    assert source.shape("q.weight") == (128, 192)
    found = source.read("q.weight")
    assert isinstance(found, Nf4Matrix)
    assert ("scale_levels" in found.tensors) == nested
    assert torch.equal(found.tensors["values"], tensors["q.weight"].flatten())
    assert torch.equal(found.dequantise(torch.float32), its_own(tensors))


def test_bytes_of_nf4_as_a_wider_type(save: Save) -> None:
    """`quant_storage` of another type keeps the bytes as they are."""
    tensors = four_bits()
    wide = tensors | {"q.weight": tensors["q.weight"].flatten().view(torch.bfloat16).view(-1, 1)}
    found = open_source(save(wide)).read("q.weight")
    assert isinstance(found, Nf4Matrix)
    assert torch.equal(found.dequantise(torch.float32), its_own(tensors))


def test_scales_in_other_blocks_than_ours(save: Save) -> None:
    """Scales that share one in blocks of 128 are brought back to float32."""
    weight = torch.randn(128, 320)
    packed, plain = bnb.functional.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=False)
    offset = plain.absmax.mean()
    absmax, second = bnb.functional.quantize_blockwise(plain.absmax - offset, blocksize=128)
    whole = bnb.functional.QuantState(
        absmax, plain.shape, plain.code, 64, "nf4", plain.dtype, offset=offset, state2=second
    )
    tensors = {"q.weight": packed} | {f"q.weight.{k}": v for k, v in whole.as_dict(packed=True).items()}
    found = open_source(save(tensors)).read("q.weight")
    assert isinstance(found, Nf4Matrix)
    assert found.tensors.keys() == {"values", "scale"}
    assert torch.equal(found.dequantise(torch.float32), its_own(tensors))


def test_blocks_over_the_ends_of_rows(save: Save) -> None:
    """As in the ViT, whose rows of 4304 are no multiple of 64: brought back at once, in the type it was."""
    tensors = four_bits(128, 96)
    found = open_source(save(tensors)).read("q.weight")
    assert isinstance(found, Tensor)
    assert torch.equal(found, its_own(tensors).to(found.dtype))


def test_fp4_is_named(save: Save) -> None:
    with pytest.raises(CheckpointError, match="q.weight is in FP4 of bitsandbytes, which is not read"):
        open_source(save(four_bits(kind="fp4")))


def test_broken_nf4(save: Save) -> None:
    tensors = four_bits()
    with pytest.raises(CheckpointError, match="lacks q.weight.nested_absmax"):
        open_source(save({name: t for name, t in tensors.items() if name != "q.weight.nested_absmax"}))
    with pytest.raises(CheckpointError, match="could not be read as the JSON of bitsandbytes"):
        open_source(save(tensors | {STATE + "nf4": tensors[STATE + "nf4"][:20]}))
    with pytest.raises(CheckpointError, match="NF4 of 128×256 in blocks of 64 is of another size"):
        open_source(save(changed_state(tensors, shape=[128, 256])))
    with pytest.raises(CheckpointError, match="quant_map is not that of NF4"):
        open_source(save(tensors | {"q.weight.quant_map": torch.linspace(-1, 1, 16)}))
    with pytest.raises(CheckpointError, match="scales are not those of 384 blocks"):
        open_source(save(tensors | {"q.weight.absmax": tensors["q.weight.absmax"][1:]}))
    with pytest.raises(CheckpointError, match="scales are not in 8 bits with 256 levels"):
        open_source(save(tensors | {"q.weight.absmax": tensors["q.weight.absmax"].float()}))
    with pytest.raises(CheckpointError, match="scales are not in 8 bits with 256 levels"):
        open_source(save(tensors | {"q.weight.nested_quant_map": torch.ones(16)}))
    plain = four_bits(nested=False)
    with pytest.raises(CheckpointError, match="its scales are I64"):
        open_source(save(plain | {"q.weight.absmax": plain["q.weight.absmax"].long()}))
