"""Conversions: what is written is what was rounded, nothing else changes, and a killed one leaves nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bagel_mot.checkpoint import convert as module
from bagel_mot.checkpoint.compare import mean_by_kind, relative_errors
from bagel_mot.checkpoint.convert import STORED, convert
from bagel_mot.checkpoint.names import official_name
from bagel_mot.checkpoint.official import load_checkpoint
from bagel_mot.checkpoint.opening import open_checkpoint, open_source
from bagel_mot.checkpoint.random_weights import write_random_checkpoint
from bagel_mot.config import BagelConfig, DecoderConfig, VaeConfig, VitConfig
from bagel_mot.errors import CheckpointError, SettingError
from bagel_mot.inference.api import Bagel
from bagel_mot.model.quant import FORMATS, QuantisedMatrix
from bagel_mot.tokenizer import Tokenizer

CONFIG = BagelConfig(
    decoder=DecoderConfig(
        hidden_size=128, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=256, vocab_size=424
    ),
    vit=VitConfig(hidden_size=32, num_layers=2, num_heads=2, intermediate_size=48, image_size=70),
    vae=VaeConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=4),
    max_latent_size=8,
    vit_max_num_patch_per_side=5,
)
# Relative error of normal weights: the step of the grid over √12, of its range for a row or block of normals.
LARGEST = {
    "bf16": 0.0,
    "int8": 0.01,
    "fp8": 0.04,
    "int4": 0.12,
    "nf4": 0.12,
    "gguf-bf16": 0.0,
    "gguf-f16": 0.0,  # but for the smallest numbers, which float16 rounds
    "gguf-q8_0": 0.01,
    "gguf-q4_0": 0.12,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(Path(__file__).parent.parent / "golden" / "checkpoint")


@pytest.fixture(scope="module")
def source(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "checkpoint"
    write_random_checkpoint(folder, CONFIG, tokenizer)
    (folder / "bagel_defaults.json").write_text('{"generate": {"num_timesteps": 3}}')
    (folder / "notes.txt").write_text("mine")
    return folder


def plain(found: torch.Tensor | QuantisedMatrix) -> torch.Tensor:
    return found.dequantise(torch.float32) if isinstance(found, QuantisedMatrix) else found.float()


def is_big(name: str) -> bool:
    """Told by the official name, as the documentation has it."""
    return name.startswith("language_model.model.layers.") and "proj" in name and name.endswith(".weight")


@pytest.mark.parametrize("stored", STORED)
def test_big_matrices_are_rounded_and_nothing_else(source: Path, tmp_path: Path, stored: str) -> None:
    if stored.startswith("gguf"):
        pytest.importorskip("gguf")
    convert(source, tmp_path / "new", stored)
    weights = {"ema.gguf"} if stored.startswith("gguf") else {"ema.safetensors"}
    kept = {path.name for path in source.iterdir()} - {"ema.safetensors", "notes.txt"}
    assert {path.name for path in (tmp_path / "new").iterdir()} == kept | weights
    assert all((tmp_path / "new" / name).read_bytes() == (source / name).read_bytes() for name in kept)
    before = load_file(source / "ema.safetensors")
    after = open_checkpoint(tmp_path / "new")
    assert set(after.names()) == set(before)
    changed = 0
    for name, tensor in before.items():
        error = ((plain(after.read(name)) - tensor.float()).norm() / tensor.float().norm().clamp(min=1e-9)).item()
        if not is_big(name):
            assert error == 0, name
        elif LARGEST[stored]:
            assert 0 < error < LARGEST[stored], name
            changed += 1
        else:
            assert error <= (1e-4 if stored == "gguf-f16" else 0), name
    assert changed == (2 * 2 * 7 if LARGEST[stored] else 0)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("place", ["decoder.layers.1.gen.down.weight", "connector.fc1.bias"])
def test_values_that_are_not_finite_are_refused_and_nothing_is_written(
    source: Path, tmp_path: Path, stored: str, place: str
) -> None:
    if stored.startswith("gguf"):
        pytest.importorskip("gguf")
    folder = Path(shutil.copytree(source, tmp_path / "damaged"))
    tensors = load_file(folder / "ema.safetensors")
    tensors[official_name(place)].view(-1)[7] = float("nan")
    save_file(tensors, folder / "ema.safetensors")
    with pytest.raises(CheckpointError, match=rf"{official_name(place)} holds infinite values .*: download or convert"):
        convert(folder, tmp_path / "new", stored)
    assert {path.name for path in tmp_path.iterdir()} == {"damaged"}


def test_a_quantised_file_whose_scale_is_not_finite_is_refused(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "int8", "int8")
    tensors = load_file(tmp_path / "int8" / "ema.safetensors")
    name = official_name("decoder.layers.0.und.q.weight")
    tensors[name.replace("weight", "SCB")][3] = float("inf")
    save_file(tensors, tmp_path / "int8" / "ema.safetensors")
    for stored in ("int8", "bf16"):
        with pytest.raises(CheckpointError, match=f"{name} holds infinite values"):
            convert(tmp_path / "int8", tmp_path / "new", stored)
    with pytest.raises(CheckpointError, match=f"{name} holds infinite values"):
        Bagel.from_pretrained(tmp_path / "int8")


def test_values_too_large_for_the_format_are_refused(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    folder = Path(shutil.copytree(source, tmp_path / "large"))
    tensors = load_file(folder / "ema.safetensors")
    name = official_name("decoder.layers.1.gen.down.weight")
    tensors[name][0, 0] = 1e7
    save_file(tensors, folder / "ema.safetensors")
    for stored in ("gguf-f16", "gguf-q8_0", "gguf-q4_0"):
        with pytest.raises(CheckpointError, match=f"{name} has values beyond the range of float16.*: take gguf-bf16"):
            convert(folder, tmp_path / "new", stored)
    convert(folder, tmp_path / "new", "gguf-bf16")
    assert open_checkpoint(tmp_path / "new").read(name)[0, 0] == tensors[name][0, 0]


@pytest.mark.parametrize("stored", FORMATS)
def test_a_matrix_is_read_back_as_it_was_rounded(source: Path, tmp_path: Path, stored: str) -> None:
    convert(source, tmp_path / "new", stored)
    name = official_name("decoder.layers.1.gen.down.weight")
    expected = FORMATS[stored].quantise(load_file(source / "ema.safetensors")[name])
    found = open_checkpoint(tmp_path / "new").read(name)
    assert isinstance(found, FORMATS[stored])
    assert found.tensors.keys() == expected.tensors.keys()
    for part, tensor in expected.tensors.items():
        assert torch.equal(found.tensors[part].flatten().float(), tensor.flatten().float()), part


@pytest.mark.parametrize("stored", ["bf16", "int8", "nf4", "gguf-q8_0"])
def test_what_is_written_runs(source: Path, tmp_path: Path, stored: str) -> None:
    if stored.startswith("gguf"):
        pytest.importorskip("gguf")
    convert(source, tmp_path / "new", stored)
    images = [
        Bagel.from_pretrained(folder, device="cpu").generate("a red circle", size=(32, 32), seed=0)
        for folder in (source, tmp_path / "new")
    ]
    levels = [torch.tensor(list(image.tobytes()), dtype=torch.float32) for image in images]
    change = (levels[1] - levels[0]).abs().mean()
    assert change == 0 if stored == "bf16" else 0 < change < 40


def test_converted_twice_is_not_rounded_twice(source: Path, tmp_path: Path) -> None:
    for stored in FORMATS:
        convert(source, tmp_path / stored, stored)
        convert(tmp_path / stored, tmp_path / f"{stored} again", stored)
        first, second = ((tmp_path / f / "ema.safetensors").read_bytes() for f in (stored, f"{stored} again"))
        assert first == second, stored


def test_from_few_bits_to_others(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "int8", "int8")
    convert(tmp_path / "int8" / "ema.safetensors", tmp_path / "bf16", "bf16")
    name = official_name("decoder.layers.0.und.q.weight")
    expected = plain(open_source(tmp_path / "int8" / "ema.safetensors").read(name)).to(torch.bfloat16)
    assert torch.equal(load_file(tmp_path / "bf16" / "ema.safetensors")[name], expected)
    convert(tmp_path / "int8", tmp_path / "nf4", "nf4")
    assert max(row.error for row in relative_errors(source, tmp_path / "nf4")) < 0.12


def test_shards_load_as_one_file(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "new", "nf4", shard_size=100_000)
    assert len(list((tmp_path / "new").glob("model-*-of-*.safetensors"))) > 3
    convert(source, tmp_path / "single", "nf4")
    first, second = (load_checkpoint(tmp_path / name).model.state_dict() for name in ("new", "single"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_matrix_that_a_format_does_not_take_stays(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = BagelConfig(
        decoder=DecoderConfig(
            hidden_size=48, num_layers=1, num_heads=4, num_kv_heads=2, intermediate_size=128, vocab_size=424
        ),
        vit=CONFIG.vit,
        vae=CONFIG.vae,
        max_latent_size=8,
        vit_max_num_patch_per_side=5,
    )
    write_random_checkpoint(tmp_path / "odd", config, tokenizer)
    convert(tmp_path / "odd", tmp_path / "new", "nf4")
    errors = {row.name: row.error for row in relative_errors(tmp_path / "odd", tmp_path / "new")}
    for expert in ("und", "gen"):
        assert errors[official_name(f"decoder.layers.0.{expert}.q.weight")] == 0  # rows of 48
        assert errors[official_name(f"decoder.layers.0.{expert}.down.weight")] > 0.05  # rows of 128


def test_errors_are_those_of_what_was_written(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "new", "fp8")
    errors = relative_errors(source, tmp_path / "new")
    assert {row.name for row in errors} == set(load_file(source / "ema.safetensors"))
    by_kind = mean_by_kind(errors)
    assert set(by_kind) == {
        *("q", "k", "v", "o", "gate", "up", "down", "norm", "bias", "embedding", "lm_head", "position table"),
        *("vit", "connector", "time_embedding", "latent_in", "latent_out"),
    }
    assert list(by_kind.values()) == sorted(by_kind.values(), reverse=True)
    assert {kind for kind, error in by_kind.items() if error} == {"q", "k", "v", "o", "gate", "up", "down"}
    # A bit that turns in the file is seen.
    path = tmp_path / "new" / "ema.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x40
    path.write_bytes(content)
    assert sum(a.error != b.error for a, b in zip(errors, relative_errors(source, tmp_path / "new"), strict=True)) == 1


def test_what_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="the format is 'int3': it must be bf16, int8"):
        convert(source, tmp_path / "new", "int3")
    with pytest.raises(SettingError, match="gguf-q8_0 is one file"):
        convert(source, tmp_path / "new", "gguf-q8_0", shard_size=1000)
    for same in (source, source / "ema.safetensors"):
        with pytest.raises(CheckpointError, match="is the checkpoint that is to be converted"):
            convert(same, source / ".." / source.name, "int8")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        convert(source, tmp_path / "other", "int8")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    assert (tmp_path / "other" / "file").read_text() == "mine"


def test_a_damaged_source_is_named(source: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(source, tmp_path / "broken"))
    (broken / "ema.safetensors").write_bytes((broken / "ema.safetensors").read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"ema.safetensors could not be read as safetensors"):
        convert(broken, tmp_path / "new", "int8")
    assert not (tmp_path / "new").exists()


def test_gguf_without_its_package(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointError, match=r"run pip install .*\[gguf\]\""):
        convert(source, tmp_path / "new", "gguf-q8_0")


def test_gguf_says_what_it_is(source: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    convert(source, tmp_path / "new", "gguf-q4_0")
    reader = gguf.GGUFReader(tmp_path / "new" / "ema.gguf")
    assert reader.get_field("general.architecture").contents() == "bagel"
    name = official_name("decoder.layers.0.gen.gate.weight")
    tensor = next(tensor for tensor in reader.tensors if tensor.name == name)
    assert tensor.tensor_type == gguf.GGMLQuantizationType.Q4_0
    assert tensor.shape.tolist() == [128, 256]
    weight = load_file(source / "ema.safetensors")[name].float().numpy()
    assert (tensor.data == gguf.quants.quantize(weight, tensor.tensor_type)).all()


@pytest.mark.parametrize("stored", ["int8", "gguf-q8_0"])
def test_an_exception_in_the_middle_leaves_nothing(
    source: Path, tmp_path: Path, stored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = module.as_tensor, []

    def fail(*arguments: Any) -> torch.Tensor:
        calls.append(arguments)
        if len(calls) > 20:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(module, "as_tensor", fail)
    with pytest.raises(OSError, match="No space left"):
        convert(source, tmp_path / "new", stored)
    assert list(tmp_path.iterdir()) == []


_SLOW = """
import sys, time
from pathlib import Path
from bagel_mot.checkpoint.convert import convert

def progress(done, total):
    if done > total // 2:
        print("half", flush=True)
        time.sleep(60)

convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], shard_size=int(sys.argv[4]) or None, progress=progress)
"""


@pytest.mark.skipif(os.name == "nt", reason="kills by signal")
@pytest.mark.parametrize(("stored", "shard_size"), [("int8", 0), ("int8", 50_000), ("gguf-q8_0", 0)])
def test_killed_it_leaves_no_file_under_its_name(source: Path, tmp_path: Path, stored: str, shard_size: int) -> None:
    command = [sys.executable, "-c", _SLOW, str(source), str(tmp_path / "new"), stored, str(shard_size)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "new").exists()
    convert(source, tmp_path / "new", stored, shard_size=shard_size or None)  # what was left is cleared away
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert json.loads((tmp_path / "new" / "config.json").read_text())["model_type"] == "bagel"
    assert load_checkpoint(tmp_path / "new").config == CONFIG
