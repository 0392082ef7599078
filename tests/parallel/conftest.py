"""A tiny recipe for processes, as plain data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bagel_mot.checkpoint.official import save_checkpoint
from bagel_mot.config import BagelConfig, VaeConfig
from bagel_mot.model.vae import Autoencoder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe of four streams, without its output."""
    folder: Path = tmp_path_factory.mktemp("autoencoder")
    torch.manual_seed(3)
    vae = VaeConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=4, scale_factor=1.0, shift_factor=0.0)
    save_checkpoint(folder, BagelConfig(vae=vae), autoencoder=Autoencoder(vae).state_dict())
    return {
        "kind": "bagel",
        "autoencoder": str(folder),
        "seed": 5,
        "steps": 2,
        "packs_per_step": 4,
        "precision": "float32",
        "device": "cpu",
        "model": {
            "decoder": {
                "hidden_size": 32,
                "num_layers": 2,
                "num_heads": 4,
                "num_kv_heads": 2,
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
        "pack": {"rows": 1, "und": 160, "gen": 64, "buffer": 8},
        # A step that is smooth in the gradient: with a small ε, AdamW makes as much of rounding errors as of gradients.
        "optimizer": {"lr": 1e-2, "eps": 1e-2, "clip": 100.0},
        "ema": 0.9,
        "log_every": 1,
        "save_every": 1,
        "sample_every": 1000000,
    }
