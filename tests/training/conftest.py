"""Tiny recipes, and an untrained autoencoder for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bagel_mot.checkpoint.official import save_checkpoint
from bagel_mot.config import BagelConfig, VaeConfig, parse
from bagel_mot.data.sources import mini
from bagel_mot.errors import RecipeError
from bagel_mot.model.vae import Autoencoder
from bagel_mot.training.recipe import BagelRecipe


@pytest.fixture(scope="session")
def autoencoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("autoencoder")
    torch.manual_seed(3)
    vae = VaeConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=4, scale_factor=1.0, shift_factor=0.0)
    save_checkpoint(folder, BagelConfig(vae=vae), autoencoder=Autoencoder(vae).state_dict())
    return folder


def _changed(raw: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`raw` with changes at any depth."""
    inner = {
        key: _changed(raw[key], value) if isinstance(raw.get(key), dict) and isinstance(value, dict) else value
        for key, value in changes.items()
    }
    return {**raw, **inner}


@pytest.fixture
def recipe(tmp_path: Path, autoencoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., BagelRecipe]:
    """Makes a recipe that trains in about a second a step or less, with a tokenizer made of few texts."""
    monkeypatch.setattr(mini, "_TOKENIZER_TEXTS", 1000)

    def make(**changes: Any) -> BagelRecipe:
        raw: dict[str, Any] = {
            "kind": "bagel",
            "output": tmp_path / "run",
            "autoencoder": str(autoencoder_folder),
            "seed": 5,
            "steps": 6,
            "precision": "float32",
            "device": "cpu",
            "model": {
                "decoder": {
                    "hidden_size": 32,
                    "num_layers": 2,
                    "num_heads": 2,
                    "num_kv_heads": 1,
                    "intermediate_size": 48,
                    "vocab_size": 700,
                },
                "vit": {
                    "hidden_size": 32,
                    "num_layers": 1,
                    "num_heads": 2,
                    "intermediate_size": 48,
                    "patch_size": 16,
                    "image_size": 64,
                },
                "max_latent_size": 4,
            },
            "data": {"kind": "mini"},
            "pack": {"rows": 2, "und": 160, "gen": 128, "buffer": 8},
            "optimizer": {"name": "muon", "lr": 1e-3, "muon_lr": 1e-3},
            "ema": 0.9,
            "log_every": 2,
            "save_every": 2,
            "sample_every": 1000000,
        }
        return parse(BagelRecipe, _changed(raw, changes), "recipe", RecipeError)

    return make
