"""Plain files, our INT4, and what is not understood."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bagel_mot.checkpoint.opening import open_source
from bagel_mot.checkpoint.source import SafetensorsFiles
from bagel_mot.errors import CheckpointError
from bagel_mot.model.quant import Int4Matrix

Save = Callable[[dict[str, Tensor]], Path]


def test_plain_files(save: Save, tmp_path: Path) -> None:
    one, two = torch.randn(4, 6).bfloat16(), torch.randn(3)
    source = open_source(save({"a.weight": one, "b.bias": two}))
    assert isinstance(source, SafetensorsFiles)
    assert source.kind == "safetensors, bfloat16"
    assert torch.equal(source.read("a.weight"), one)
    assert torch.equal(source.read_part("a.weight", 1, 3), one[1:3])
    assert torch.equal(source.read_part("b.bias", 2, 9), two[2:])
    save_file({"b.bias": two}, tmp_path / "two.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": "one.safetensors", "b.bias": "two.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"names one.safetensors, which is missing"):
        open_source(index)
    for named in (1, None, ["one.safetensors"]):
        (tmp_path / "odd.safetensors.index.json").write_text(json.dumps({"weight_map": {"a.weight": named}}))
        with pytest.raises(CheckpointError, match="could not be read as an index"):
            open_source(tmp_path / "odd.safetensors.index.json")
    save_file({"a.weight": one}, tmp_path / "one.safetensors")
    sharded = open_source(index)
    assert torch.equal(sharded.read("a.weight"), one)
    assert torch.equal(sharded.read("b.bias"), two)


@pytest.mark.parametrize("group", [128, 64, 32])
def test_int4(save: Save, group: int) -> None:
    """A file made number by number, by the documented rule."""
    out, inner = 128, {128: 256, 64: 192, 32: 96}[group]
    q = torch.randint(0, 16, (out, inner), dtype=torch.uint8)
    numbers = torch.rand(inner // group, out, 2).bfloat16()
    packed = torch.zeros(out // 64, inner, 32, dtype=torch.uint8)
    for row in range(32):
        for block in range(out // 64):
            packed[block, :, row] = q[64 * block + row] + 16 * q[64 * block + row + 32]
    tensors = {"q.weight": packed, "q.weight_scale_and_middle": numbers, "q.bias": torch.randn(out)}
    source = open_source(save(tensors))
    assert source.kind == f"INT4 in groups of {group}"
    assert set(source.names()) == {"q.weight", "q.bias"}
    assert source.shape("q.weight") == (out, inner)
    found = source.read("q.weight")
    assert isinstance(found, Int4Matrix)
    scale, middle = (numbers[..., i].float().T.repeat_interleave(group, 1) for i in (0, 1))
    assert torch.equal(found.dequantise(torch.float32), (q.float() - 8) * scale + middle)


@pytest.mark.parametrize(
    ("packed", "numbers"), [((2, 256, 32), (2, 64, 2)), ((2, 256, 16), (2, 128, 2)), ((2, 256, 32), (1, 128, 2))]
)
def test_parts_of_int4_that_do_not_fit(save: Save, packed: tuple[int, ...], numbers: tuple[int, ...]) -> None:
    tensors = {
        "q.weight": torch.zeros(packed, dtype=torch.uint8),
        "q.weight_scale_and_middle": torch.ones(numbers, dtype=torch.bfloat16),
    }
    with pytest.raises(CheckpointError, match=r"q.weight \(U8 .* is of an unknown layout \(INT4 is uint8"):
        open_source(save(tensors))


def test_the_first_tensor_that_is_not_understood_is_named(save: Save) -> None:
    """GPTQ's layout, which is not read."""
    tensors = {
        "a.weight": torch.randn(4, 4).bfloat16(),
        "layers.0.q.qweight": torch.zeros(2, 8, dtype=torch.int32),
        "layers.0.q.scales": torch.zeros(1, 8, dtype=torch.float16),
    }
    message = (
        r"layers.0.q.qweight \(I32 \[2, 8\]\) is of an unknown layout; "
        r"beside it: layers.0.q.scales \(F16 \[1, 8\]\); plain tensors, FP8"
    )
    with pytest.raises(CheckpointError, match=message):
        open_source(save(tensors))
    with pytest.raises(CheckpointError, match=r"q.weight \(I8 \[4, 4\]\) is of an unknown layout; beside it: nothing"):
        open_source(save({"q.weight": torch.zeros(4, 4, dtype=torch.int8)}))


def test_other_kinds_of_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model.bin is of no kind that is read here: give a .safetensors"):
        open_source(tmp_path / "model.bin")
    with pytest.raises(CheckpointError, match=r"model.safetensors is missing"):
        open_source(tmp_path / "model.safetensors")
