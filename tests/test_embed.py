"""A run becomes the embedded model: weights change, settings stay, a foreign encoder is refused."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import pytest
import torch

from bagel_mot.checkpoint.official import load_autoencoder, load_checkpoint, save_checkpoint
from bagel_mot.config import BagelConfig
from bagel_mot.errors import CheckpointError

CHECKPOINT = Path(__file__).parent / "golden" / "checkpoint"
embed = runpy.run_path(str(Path(__file__).parent.parent / "tools" / "embed.py"))["embed"]


def _changed_autoencoder(folder: Path, part: str) -> Path:
    model = load_autoencoder(CHECKPOINT)
    state = {name: tensor + 0.25 if name.startswith(part) else tensor for name, tensor in model.state_dict().items()}
    save_checkpoint(folder, BagelConfig(vae=model.config), autoencoder=state)
    return folder


def test_weights_change_and_settings_stay(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    defaults = {"generate": {"num_timesteps": 7}}
    (folder / "bagel_defaults.json").write_text(json.dumps(defaults))
    run = shutil.copytree(CHECKPOINT, tmp_path / "run")
    (run / "bagel_defaults.json").write_text("{}")
    (run / "training_state.pt").write_bytes(b"large")
    sharper = _changed_autoencoder(tmp_path / "sharper", "decoder")
    embed(run, sharper, folder)
    assert json.loads((folder / "bagel_defaults.json").read_text()) == defaults
    assert not (folder / "training_state.pt").exists()
    embedded, trained = (
        load_checkpoint(folder, precision=torch.float32),
        load_checkpoint(CHECKPOINT, precision=torch.float32),
    )
    assert embedded.config == trained.config
    assert embedded.tokenizer.encode("a red car") == trained.tokenizer.encode("a red car")
    for name, tensor in trained.model.state_dict().items():
        assert torch.equal(embedded.model.state_dict()[name], tensor.bfloat16().float())
    for name, tensor in load_autoencoder(sharper).state_dict().items():
        assert torch.equal(embedded.autoencoder.state_dict()[name], tensor)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "sharper", "weights"]


def test_another_encoder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    with pytest.raises(CheckpointError, match="is not the one"):
        embed(CHECKPOINT, _changed_autoencoder(tmp_path / "other", "encoder"), folder)
    assert not list(folder.iterdir())
