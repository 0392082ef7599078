"""DFloat11: files made code by code, brought back bit for bit."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bagel_mot.checkpoint.formats.exponents import CodeTable, join, read_gaps
from bagel_mot.checkpoint.opening import open_source
from bagel_mot.errors import CheckpointError

Encode = Callable[..., dict[str, Tensor]]
INNER = [
    f"{part}{suffix}.{name}" if part == "mlp" else f"{part}.{name}{suffix}"
    for suffix in ("", "_moe_gen")
    for part, names in (
        ("self_attn", ("q_proj", "k_proj", "v_proj", "o_proj")),
        ("mlp", ("gate_proj", "up_proj", "down_proj")),
    )
    for name in names
]
PATTERNS = {r"language_model\.model\.layers\.\d+": INNER, r"language_model\.lm_head": []}
SETTINGS = {"version": "0.5.0", "threads_per_block": [512], "bytes_per_thread": 8, "pattern_dict": PATTERNS}


def same_bits(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype == torch.bfloat16 and torch.equal(one.view(torch.int16), other.view(torch.int16))


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif("not torch.cuda.is_available()"))]
)
def test_long_codes(encode: Encode, device: str) -> None:
    """Codes of 1 to 30 bits, each often: Fibonacci's numbers as frequencies make a code that is one long branch."""
    frequencies = {90: 1}
    for exponent in range(91, 120):
        frequencies[exponent] = frequencies[exponent - 1] + frequencies.get(exponent - 2, 1)
    bits = (
        torch.randint(90, 120, (30_000,)) << 7 | torch.randint(0, 2, (30_000,)) << 15 | torch.randint(0, 128, (30_000,))
    )
    weights = bits.to(torch.int16).view(torch.bfloat16)
    made = {name: tensor.to(device) for name, tensor in encode([weights], frequencies).items()}
    assert made["luts"][-1].max() >= 29
    codes = made["encoded_exponent"]
    padded = torch.zeros(len(codes) // 8 * 8 + 16, dtype=torch.uint8, device=device)
    padded[: len(codes)] = codes
    chunks = padded.view(-1, 8)
    exponents, counts = CodeTable(made["luts"]).decode(chunks, read_gaps(made["gaps"])[: len(chunks) - 1])
    assert int(counts.sum()) == len(exponents) >= len(weights)
    assert same_bits(join(exponents[: len(weights)], made["sign_mantissa"]).cpu(), weights)


@pytest.fixture(scope="module")
def original(golden: Any) -> dict[str, Tensor]:
    """The recorded model in bfloat16, with a few numbers among the weights that are rare."""
    tensors = {n: t.to(torch.bfloat16) for n, t in load_file(golden.checkpoint / "ema.safetensors").items()}
    strange = torch.tensor([0.0, -0.0, 1e-40, -1e-38, 1e30, 3.0, -1.0]).to(torch.bfloat16)
    tensors["language_model.lm_head.weight"].view(-1)[5:12] = strange
    return tensors


@pytest.fixture(scope="module")
def parts(original: dict[str, Tensor], encode: Encode) -> dict[str, dict[str, Tensor]]:
    """The tensors of each file that the package writes, by its name."""
    rest, found = dict(original), {}
    modules = {f"language_model.model.layers.{layer}": INNER for layer in range(3)} | {"language_model.lm_head": None}
    for module, inner in modules.items():
        names = [f"{module}.weight"] if inner is None else [f"{module}.{path}.weight" for path in inner]
        file = {f"{module}.{part}": tensor for part, tensor in encode([rest.pop(name) for name in names]).items()}
        file |= {name: rest.pop(name) for name in list(rest) if name.startswith(module + ".")}
        found[f"{module.replace('.', '_')}.safetensors"] = file
    return found | {"model.safetensors": rest}


@pytest.fixture
def folder(golden: Any, tmp_path: Path) -> Path:
    """A folder with the configuration of the recorded model, its autoencoder, and that of DFloat11."""
    for file in golden.checkpoint.glob("*_config.json"):
        shutil.copy(file, tmp_path)
    shutil.copy(golden.checkpoint / "ae.safetensors", tmp_path)
    config = json.loads((golden.checkpoint / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dfloat11_config": SETTINGS}))
    return tmp_path


def test_a_file_for_each_module(folder: Path, parts: dict[str, dict[str, Tensor]], original: dict[str, Tensor]) -> None:
    for file, tensors in parts.items():
        save_file(tensors, folder / file)
    source = open_source(folder / "model.safetensors")
    assert source.kind == "DFloat11 (bfloat16 without loss in 11 bits)"
    assert set(source.names()) == set(original)
    for name, expected in original.items():
        assert source.shape(name) == tuple(expected.shape)
        assert same_bits(source.read(name), expected), name
    matrix = "language_model.model.layers.1.mlp.up_proj.weight"
    assert 1.2 < source.stored_bytes(matrix) / original[matrix].numel() < 1.6
    assert "decoder.conv_in.weight" in open_source(folder / "ae.safetensors").names()


def test_one_file(folder: Path, parts: dict[str, dict[str, Tensor]], original: dict[str, Tensor]) -> None:
    save_file(
        {name: tensor for tensors in parts.values() for name, tensor in tensors.items()}, folder / "a.safetensors"
    )
    source = open_source(folder / "a.safetensors")
    assert set(source.names()) == set(original)
    assert all(same_bits(source.read(name), expected) for name, expected in original.items())


def test_an_ordinary_file_beside_the_settings(folder: Path, original: dict[str, Tensor]) -> None:
    save_file(original, folder / "ema.safetensors")
    assert open_source(folder / "ema.safetensors").kind == "safetensors, bfloat16"


HEAD = "language_model.lm_head"


def broken_file(folder: Path, parts: dict[str, dict[str, Tensor]], changes: dict[str, Tensor | None]) -> Path:
    tensors = dict(parts["language_model_lm_head.safetensors"])
    for part, changed in changes.items():
        del tensors[f"{HEAD}.{part}"]
        if changed is not None:
            tensors[f"{HEAD}.{part}"] = changed
    save_file(tensors, folder / "head.safetensors")
    return folder / "head.safetensors"


def test_damage_is_noticed(folder: Path, parts: dict[str, dict[str, Tensor]]) -> None:
    head = parts["language_model_lm_head.safetensors"]
    codes, tables = head[f"{HEAD}.encoded_exponent"].clone(), head[f"{HEAD}.luts"].clone()
    codes[100:140] = 0
    with pytest.raises(CheckpointError, match=r"lm_head.weight cannot be decoded .* another number of codes"):
        open_source(broken_file(folder, parts, {"encoded_exponent": codes})).read(f"{HEAD}.weight")
    tables[-1] = 0
    with pytest.raises(CheckpointError, match=r"lm_head.weight cannot be decoded .* a code that is in no table"):
        open_source(broken_file(folder, parts, {"luts": tables})).read(f"{HEAD}.weight")
    gaps = head[f"{HEAD}.gaps"][:-320].clone()
    with pytest.raises(CheckpointError, match="fewer gaps than blocks"):
        open_source(broken_file(folder, parts, {"gaps": gaps})).read(f"{HEAD}.weight")
    with pytest.raises(CheckpointError, match=r"lacks language_model.lm_head.gaps, which DFloat11 needs"):
        open_source(broken_file(folder, parts, {"gaps": None}))
    short = head[f"{HEAD}.sign_mantissa"][1:].clone()
    with pytest.raises(CheckpointError, match=r"has 27135 weights; the configuration makes it \[424, 64\]"):
        open_source(broken_file(folder, parts, {"sign_mantissa": short}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bytes_per_thread": 4}, "4 bytes a thread and 512 threads a block"),
        ({"pattern_dict": None}, "dfloat11_config is incomplete or damaged"),
        ({"pattern_dict": {}}, "of 14 matrices, which dfloat11_config does not name"),
        ({"pattern_dict": {r"language_model.model.layers.[0-9]": INNER}}, "names modules by 'language_model.model"),
    ],
)
def test_settings(folder: Path, parts: dict[str, dict[str, Tensor]], change: dict[str, object], message: str) -> None:
    path, config = folder / "layer.safetensors", json.loads((folder / "config.json").read_text())
    save_file(parts["language_model_model_layers_0.safetensors"], path)
    (folder / "config.json").write_text(json.dumps(config | {"dfloat11_config": SETTINGS | change}))
    with pytest.raises(CheckpointError, match=re.escape(message)):
        open_source(path)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "dfloat11_config"}))
    with pytest.raises(CheckpointError, match="has no dfloat11_config"):
        open_source(path)


def test_a_pattern_of_a_hostile_checkpoint_is_not_run(folder: Path, parts: dict[str, dict[str, Tensor]]) -> None:
    """As a regular expression it takes half a minute for a name of 27 characters, and twice as long for one of 28."""
    path, config = folder / "layer.safetensors", json.loads((folder / "config.json").read_text())
    layer = parts["language_model_model_layers_0.safetensors"]
    save_file({f"{'a' * 60}.{name.rpartition('.')[2]}": tensor for name, tensor in layer.items()}, path)
    settings = SETTINGS | {"pattern_dict": {"(a+)+b": INNER}}
    (folder / "config.json").write_text(json.dumps(config | {"dfloat11_config": settings}))
    with pytest.raises(CheckpointError, match=re.escape("names modules by '(a+)+b'; names with \\d+ in the place of")):
        open_source(path)
