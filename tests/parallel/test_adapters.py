"""LoRA and QLoRA over FSDP2: two processes take the steps that one takes, and keep float32 adapters in parts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bagel_mot.checkpoint.official import load_autoencoder, save_checkpoint
from bagel_mot.checkpoint.side_files import DEFAULTS_FILE
from bagel_mot.config import load_config
from bagel_mot.inference.loading import MINI_FOLDER
from bagel_mot.model.bagel import BagelModel
from bagel_mot.tokenizer import Tokenizer
from tests.parallel.processes import run

pytestmark = pytest.mark.slow
CASES: dict[str, dict[str, Any]] = {
    "lora": {"lora": {"rank": 4, "alpha": 8, "gen": {"rank": 2}}},
    "qlora": {"lora": {"rank": 2, "base": "nf4", "use_dora": True, "use_rslora": True, "dropout": 0.1}},
    # A bfloat16 base and float32 adapters in one unit.
    "bfloat16": {"lora": {"rank": 2}, "precision": "bfloat16"},
}


@pytest.fixture(scope="module")
def base(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained checkpoint of mini's world, with matrices that NF4 takes."""
    folder = tmp_path_factory.mktemp("base")
    config = load_config(MINI_FOLDER)
    decoder = replace(config.decoder, hidden_size=64, num_layers=2, intermediate_size=128, head_dim=16)
    vit = replace(config.vit, hidden_size=32, num_layers=1, num_heads=2, intermediate_size=48)
    autoencoder = load_autoencoder(tiny["autoencoder"])
    made = replace(config, decoder=decoder, vit=vit, vae=autoencoder.config)
    torch.manual_seed(0)
    save_checkpoint(
        folder,
        made,
        model=BagelModel(made).state_dict(),
        autoencoder=autoencoder.state_dict(),
        tokenizer=Tokenizer.from_folder(MINI_FOLDER),
    )
    shutil.copy(MINI_FOLDER / DEFAULTS_FILE, folder)
    return folder


@pytest.fixture(scope="module")
def results(tiny: dict[str, Any], base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The folders of results by the number of processes."""
    recipe = {**tiny, "init": str(base), "trainable": "lora", "packs_per_step": 2}
    del recipe["model"], recipe["autoencoder"]
    script, folders = str(Path(__file__).with_name("equal.py")), {}
    for count in (1, 2):
        folders[count] = tmp_path_factory.mktemp(f"results-{count}")
        run(count, script, json.dumps(recipe), json.dumps(CASES), str(folders[count]))
    return folders


@pytest.mark.parametrize("name", CASES)
def test_two_processes_do_what_one_does(results: dict[int, Path], name: str) -> None:
    ours, theirs = (torch.load(results[count] / f"{name}.pt", weights_only=False) for count in (2, 1))
    exact = name != "bfloat16"
    assert len(ours["steps"]) == len(theirs["steps"]) == 2
    for found, expected in zip(ours["steps"], theirs["steps"], strict=True):
        assert found.keys() == expected.keys()
        for key, value in found.items():
            # The norm of all gradients is summed in float32, in another order.
            limit = (1e-5 if key == "grad_norm" else 1e-6) if exact else 0.02
            assert value == pytest.approx(expected[key], rel=limit), key
    assert ours["tensors"].keys() == theirs["tensors"].keys()
    assert all("lora_" in key for key in ours["tensors"] if not key.endswith("step"))
    moved = 0
    for key, tensor in ours["tensors"].items():
        other = theirs["tensors"][key]
        scale = other.double().abs().max().clamp_min(1e-9)
        error = (tensor.double() - other.double()).abs().max() / scale
        if key.startswith("module."):
            assert tensor.dtype == torch.float32
            moved += bool(key.endswith("lora_B.default.weight") and tensor.abs().max() > 0)
        if exact:
            assert error < (1e-5 if key.startswith("optimizer.") else 1e-6), key
    assert moved > 0
    assert {weight.dtype for weight in ours["weights"].values()} == {torch.float32}
