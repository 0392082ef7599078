"""Checkpoints with random weights: the official layout, the same bytes for a seed, sane numbers, little memory."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from bagel_mot import Bagel
from bagel_mot.checkpoint import random_weights
from bagel_mot.checkpoint.names import official_name
from bagel_mot.checkpoint.official import load_checkpoint
from bagel_mot.checkpoint.random_weights import normal, write_random_checkpoint
from bagel_mot.checkpoint.shapes import model_shapes
from bagel_mot.config import NAMED_CONFIGS, BagelConfig, DecoderConfig, VaeConfig, VitConfig, load_config
from bagel_mot.errors import CheckpointError
from bagel_mot.tokenizer import Tokenizer

SMALL = BagelConfig(
    decoder=DecoderConfig(
        hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=128, vocab_size=424
    ),
    vit=VitConfig(hidden_size=32, num_layers=2, num_heads=2, intermediate_size=48, image_size=70),
    vae=VaeConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=4),
    max_latent_size=8,
    vit_max_num_patch_per_side=5,
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(Path(__file__).parent.parent / "golden" / "checkpoint")


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("random") / "new"
    write_random_checkpoint(folder, SMALL, tokenizer, seed=1)
    return folder


def sums(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_the_official_layout(folder: Path, golden: Any) -> None:
    assert {path.name for path in folder.iterdir()} == {
        path.name for path in golden.checkpoint.iterdir() if path.is_file()
    }
    assert load_config(folder) == SMALL
    official = load_file(golden.checkpoint / "ema.safetensors")
    weights = load_file(folder / "ema.safetensors")
    of_layers = {name for name in official if ".layers." not in name or ".layers.0." in name}
    assert {name for name in weights if ".layers." not in name or ".layers.0." in name} == of_layers
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in load_file(folder / "ae.safetensors").values()} == {torch.float32}


def test_it_runs_and_its_outputs_are_not_constant(folder: Path) -> None:
    bagel = Bagel.from_pretrained(folder, device="cpu")
    images = [bagel.generate("a red circle", size=(32, 32), num_timesteps=3, seed=seed) for seed in (0, 1)]
    assert images[0].tobytes() != images[1].tobytes()
    assert len(set(images[0].tobytes())) > 20
    assert bagel.ask(images[0], "What is it?", max_new_tokens=4) != bagel.ask(images[1], "Why?", max_new_tokens=4)


def test_numbers_are_those_of_a_fresh_model(folder: Path) -> None:
    model = load_checkpoint(folder).model
    for name, tensor in model.state_dict().items():
        if "norm" in name:
            assert torch.equal(tensor.float(), torch.full_like(tensor.float(), float(name.endswith("weight")))), name
        elif name.endswith(".weight"):
            wanted = (
                0.5 if name.endswith(("embed_tokens.weight", "position_embedding.weight")) else tensor.shape[1] ** -0.5
            )
            if name.endswith((".o.weight", ".down.weight")):
                wanted /= 2  # √(2 · 2 layers)
            sure = 5 * tensor.numel() ** -0.5  # five deviations of the mean, seven of the deviation
            assert tensor.float().std().item() == pytest.approx(wanted, rel=sure), name
            assert abs(tensor.float().mean().item()) < sure * wanted, name
            assert len({tuple(row.tolist()) for row in tensor}) == len(tensor), f"rows of {name} repeat"
    und, gen = model.decoder.layers[0].und, model.decoder.layers[0].gen
    assert not torch.equal(und.q.weight, gen.q.weight)
    assert not torch.equal(und.gate.weight, und.up.weight)


def test_the_seed_decides_however_it_is_sharded(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "again", SMALL, tokenizer, seed=1)
    write_random_checkpoint(tmp_path / "other", SMALL, tokenizer, seed=2)
    write_random_checkpoint(tmp_path / "sharded", SMALL, tokenizer, seed=1, shard_size=200_000)
    assert sums(tmp_path / "again") == sums(folder)
    changed = {name for name, value in sums(tmp_path / "other").items() if value != sums(folder)[name]}
    assert changed == {"ema.safetensors", "ae.safetensors"}
    whole, files = load_file(folder / "ema.safetensors"), sorted((tmp_path / "sharded").glob("model-*"))
    assert len(files) > 2
    pieces = [load_file(path) for path in files]
    assert sum(map(len, pieces)) == len(whole)
    assert all(torch.equal(tensor, whole[name]) for piece in pieces for name, tensor in piece.items())
    assert load_checkpoint(tmp_path / "sharded").config == SMALL


def test_blocks_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_weights, "_BLOCK", 1000)
    monkeypatch.setattr(random_weights, "_PIECE", 300)
    monkeypatch.setenv("BAGEL_THREADS", "5")
    many = normal((70, 101), 2.0, 3, "x", torch.float32)
    monkeypatch.setenv("BAGEL_THREADS", "1")
    assert torch.equal(normal((70, 101), 2.0, 3, "x", torch.float32), many)
    assert many.std().item() == pytest.approx(2.0, rel=0.05)
    flat = many.flatten()
    blocks = flat[:7000].view(7, 1000)
    assert (torch.corrcoef(blocks) - torch.eye(7)).abs().max() < 0.15


def test_the_official_size_has_29_gigabytes() -> None:
    """Bytes of the published file, ema.safetensors (29.2 GB)."""
    shapes = model_shapes(NAMED_CONFIGS["7b-mot"])
    entries = list(random_weights._entries(shapes, 0, torch.bfloat16, 1.0, official_name))
    assert sum(entry.nbytes for entry in entries) == pytest.approx(29.2e9, rel=0.005)


def test_a_vocabulary_that_is_too_large_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = BagelConfig(decoder=DecoderConfig(vocab_size=100))
    with pytest.raises(CheckpointError, match=f"the tokenizer has {tokenizer.vocab_size} tokens.*only 100 rows"):
        write_random_checkpoint(tmp_path / "x", config, tokenizer)
    assert not (tmp_path / "x").exists()


def test_interrupted_it_leaves_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_random_checkpoint(tmp_path / "x", SMALL, tokenizer, progress=interrupt, shard_size=100_000)
    assert list(tmp_path.iterdir()) == []


_MEASURE = """
import sys
from pathlib import Path
from bagel_mot.checkpoint.shapes import model_shapes
from bagel_mot.checkpoint.random_weights import write_random_checkpoint
from bagel_mot.config import BagelConfig, DecoderConfig, VaeConfig, VitConfig
from bagel_mot.tokenizer import Tokenizer

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024

config = BagelConfig(
    decoder=DecoderConfig(hidden_size=1024, num_layers=16, num_heads=8, num_kv_heads=2, intermediate_size=4096,
                          vocab_size=32768),
    vit=VitConfig(hidden_size=64, num_layers=1, num_heads=2, intermediate_size=64),
    vae=VaeConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=4),
)
tokenizer = Tokenizer.from_folder(sys.argv[1])
before = peak()
write_random_checkpoint(Path(sys.argv[2]), config, tokenizer)
print((peak() - before) / 1e6)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_model(golden: Any, tmp_path: Path) -> None:
    """Of a model of 1.1 GB the largest tensor has 67 MB; blocks in float32 come on top."""
    command = [sys.executable, "-c", _MEASURE, str(golden.checkpoint), str(tmp_path / "x")]
    grown = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert (tmp_path / "x" / "ema.safetensors").stat().st_size > 1.0e9
    assert grown < 250
    with safe_open(tmp_path / "x" / "ema.safetensors", framework="pt") as file:
        assert file.get_slice("language_model.lm_head.weight").get_shape() == [32768, 1024]
    assert json.loads((tmp_path / "x" / "config.json").read_text())["model_type"] == "bagel"
