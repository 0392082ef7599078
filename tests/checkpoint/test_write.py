"""The streaming writer: the files against safetensors' own reader and bitsandbytes; sharding; memory; failures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bagel_mot.checkpoint.write import TensorEntry, entry_of, parts_of, write_model, write_safetensors
from bagel_mot.errors import CheckpointError
from bagel_mot.model.quant import FORMATS

NAME = "layer.q_proj.weight"


def matrix_entry(format: str, weight: torch.Tensor) -> TensorEntry:
    return TensorEntry(NAME, tuple(weight.shape), format, lambda: FORMATS[format].quantise(weight))


def test_every_type_as_safetensors_reads_it(tmp_path: Path) -> None:
    tensors = {
        "bytes": torch.arange(7, dtype=torch.uint8),
        "half": torch.randn(3, 5).to(torch.float16),
        "brain": torch.randn(1, 3).to(torch.bfloat16),
        "single": torch.randn(2, 2),
        "small": torch.randn(3).to(torch.float8_e4m3fn),
        "smaller": torch.randn(3).to(torch.float8_e5m2),
        "whole": torch.tensor([-5, 9]),
        "scalar": torch.tensor(2.5),
        "none": torch.empty(0, 4),
        "view": torch.randn(4, 6).t()[1:],
        "flag": torch.tensor([True, False]),
    }
    write_safetensors(tmp_path / "x.safetensors", [entry_of(name, tensor) for name, tensor in tensors.items()])
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert torch.equal(read[name].float(), tensor.float()), name
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_as_large_as_safetensors_own_file_and_aligned(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.randn(2 * i + 1).to(t) for i, t in enumerate([torch.bfloat16, torch.float32] * 3)}
    write_safetensors(tmp_path / "ours", [entry_of(name, tensor) for name, tensor in tensors.items()])
    save_file(tensors, tmp_path / "theirs")
    content = (tmp_path / "ours").read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    header = json.loads(content[8 : 8 + length])
    sizes = {"BF16": 2, "F32": 4}
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    assert all(entry["data_offsets"][0] % sizes[entry["dtype"]] == 0 for entry in entries)
    assert len(content) - length == (tmp_path / "theirs").stat().st_size - int.from_bytes(
        (tmp_path / "theirs").read_bytes()[:8], "little"
    )


def test_cast_when_written(tmp_path: Path) -> None:
    weight = torch.randn(3, 4)
    write_safetensors(tmp_path / "x", [entry_of("a", weight, torch.bfloat16)])
    assert torch.equal(load_file(tmp_path / "x")["a"], weight.to(torch.bfloat16))


@pytest.mark.parametrize("format", FORMATS)
def test_parts_of_a_matrix_are_known_before_it_is_made(tmp_path: Path, format: str) -> None:
    entry = matrix_entry(format, torch.randn(192, 128))
    write_safetensors(tmp_path / "x", [entry])
    read = load_file(tmp_path / "x")
    assert {part.name: (part.dtype, part.shape) for part in parts_of(entry)} == {
        name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in read.items()
    }
    assert entry.nbytes == sum(tensor.nbytes for tensor in read.values())


def test_int8_is_what_bitsandbytes_multiplies(tmp_path: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    weight, x = torch.randn(64, 128), torch.randn(5, 128)
    write_safetensors(tmp_path / "x", [matrix_entry("int8", weight)])
    read = load_file(tmp_path / "x")
    theirs = bitsandbytes.functional.int8_vectorwise_dequant(read[NAME], read["layer.q_proj.SCB"])
    assert torch.allclose(theirs, FORMATS["int8"].quantise(weight).dequantise(torch.float32), rtol=1e-5, atol=1e-6)
    linear = bitsandbytes.nn.Linear8bitLt(128, 64, bias=False, has_fp16_weights=False)
    values, scale = read[NAME], read["layer.q_proj.SCB"]
    linear.weight = bitsandbytes.nn.Int8Params(values, False, has_fp16_weights=False, CB=values, SCB=scale)
    error = (linear(x.to(torch.float16)).float() - x @ weight.T).norm() / (x @ weight.T).norm()
    assert error < 0.03


def test_nf4_is_what_bitsandbytes_writes_and_reads(tmp_path: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    weight = torch.randn(64, 256).to(torch.bfloat16)
    write_safetensors(tmp_path / "x", [matrix_entry("nf4", weight)])
    read = {name.removeprefix(NAME + "."): tensor for name, tensor in load_file(tmp_path / "x").items()}
    values = read.pop(NAME)
    theirs = bitsandbytes.nn.Params4bit(
        weight.clone(), requires_grad=False, quant_type="nf4", compress_statistics=True
    )._quantize("cpu")
    state = theirs.quant_state.as_dict(packed=True)
    assert read.keys() == state.keys()
    assert all(read[key].dtype == state[key].dtype for key in state)
    assert values.shape == theirs.data.shape
    assert torch.equal(read["quant_map"], state["quant_map"])
    assert torch.allclose(read["nested_quant_map"], state["nested_quant_map"])
    ours, whole = (json.loads(bytes(tensors["quant_state.bitsandbytes__nf4"].tolist())) for tensors in (read, state))
    assert {**ours, "nested_offset": None} == {**whole, "nested_offset": None}
    assert ours["nested_offset"] == pytest.approx(whole["nested_offset"], rel=1e-5)
    loaded = bitsandbytes.nn.Params4bit.from_prequantized(values, dict(read), device="cpu")
    back = bitsandbytes.functional.dequantize_4bit(loaded.data, loaded.quant_state)
    expected = FORMATS["nf4"].quantise(weight).dequantise(torch.bfloat16)
    assert torch.allclose(back.float(), expected.float(), rtol=0.01, atol=1e-3)


def test_shards_and_their_index(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.full((10,), float(i)) for i in range(5)} | {"large": torch.zeros(100)}
    write_model(tmp_path / "ema.safetensors", [entry_of(name, tensor) for name, tensor in tensors.items()], 80)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    names = [f"model-0000{i}-of-00004.safetensors" for i in range(1, 5)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "model.safetensors.index.json"]
    assert index["metadata"]["total_size"] == 600
    assert [list(load_file(tmp_path / name)) for name in names] == [["t0", "t1"], ["t2", "t3"], ["t4"], ["large"]]
    for name, tensor in tensors.items():
        assert torch.equal(load_file(tmp_path / index["weight_map"][name])[name], tensor)


def test_parts_of_a_matrix_stand_in_one_shard(tmp_path: Path) -> None:
    entries = [matrix_entry("nf4", torch.randn(64, 128)), entry_of("b", torch.zeros(4))]
    write_model(tmp_path / "ema.safetensors", entries, 100)
    files = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert {files[part.name] for part in parts_of(entries[0])} == {"model-00001-of-00002.safetensors"}


@pytest.mark.parametrize("write", [write_safetensors, lambda path, entries: write_model(path, entries, 50)])
def test_an_exception_in_the_middle_leaves_no_file(tmp_path: Path, write: Callable[[Path, Any], None]) -> None:
    def fail() -> torch.Tensor:
        raise KeyboardInterrupt

    entries = [entry_of("a", torch.zeros(10)), TensorEntry("b", (10,), torch.float32, fail)]
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "x.safetensors", entries)
    # A shard that was finished is whole; without an index it is no checkpoint.
    assert {path.name for path in tmp_path.iterdir()} <= {"model-00001-of-00002.safetensors"}


def test_what_was_not_announced_is_refused(tmp_path: Path) -> None:
    wrong = TensorEntry("a", (3,), torch.float32, lambda: torch.zeros(4))
    with pytest.raises(CheckpointError, match=r"a is torch.float32 \[4\]; torch.float32 \[3\] was to be written"):
        write_safetensors(tmp_path / "x", [wrong])
    with pytest.raises(CheckpointError, match="two tensors"):
        write_safetensors(tmp_path / "x", [entry_of("a", torch.zeros(1))] * 2)
    assert list(tmp_path.iterdir()) == []


def test_room_is_looked_for_first(tmp_path: Path) -> None:
    made = []
    huge = TensorEntry("a", (1 << 50,), torch.float32, lambda: made.append(1) or torch.zeros(1))
    with pytest.raises(OSError, match=r"4.5e\+06 GB are needed .* but only .* GB are free"):
        write_safetensors(tmp_path / "x", [huge])
    assert made == []


def test_progress_counts_all_bytes(tmp_path: Path) -> None:
    entries = [matrix_entry("fp8", torch.randn(64, 64)), entry_of("b", torch.zeros(4))]
    seen: list[int] = []
    write_safetensors(tmp_path / "x", entries, seen.append)
    assert sum(seen) == sum(entry.nbytes for entry in entries)


_MEASURE = """
import sys, torch
from pathlib import Path
from bagel_mot.checkpoint.write import TensorEntry, write_safetensors

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024

make = lambda: torch.ones(1 << 24, dtype=torch.bfloat16)
entries = [TensorEntry(f"t{i}", (1 << 24,), torch.bfloat16, make) for i in range(32)]
before = peak()
write_safetensors(Path(sys.argv[1]), entries)
print((peak() - before) / (1 << 25))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_that_of_one_tensor(tmp_path: Path) -> None:
    """A file of 32 tensors, each of 32 MiB."""
    command = [sys.executable, "-c", _MEASURE, str(tmp_path / "x")]
    tensors = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert tensors <= 2.2
    assert (tmp_path / "x").stat().st_size > 1 << 30
