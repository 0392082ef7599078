"""The official JSON files and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bagel.config import NAMED_CONFIGS, BagelConfig, DecoderConfig, VaeConfig, VitConfig, dump_config, load_config
from bagel.errors import CheckpointError


def _write(folder: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


ODD = BagelConfig(
    decoder=DecoderConfig(
        hidden_size=96, num_layers=5, num_heads=6, num_kv_heads=3, intermediate_size=100, head_dim=32
    ),
    vit=VitConfig(hidden_size=48, num_layers=2, num_heads=3, patch_size=8, image_size=80),
    vae=VaeConfig(ch=64, ch_mult=(1, 3), z_channels=5, scale_factor=0.7, shift_factor=-0.2),
    max_latent_size=11,
    interpolate_pos=True,
    timestep_shift=4.0,
)


@pytest.mark.parametrize("config", [*NAMED_CONFIGS.values(), ODD], ids=[*NAMED_CONFIGS, "odd"])
def test_round_trip(tmp_path: Path, config: BagelConfig) -> None:
    _write(tmp_path, dump_config(config))
    assert load_config(tmp_path) == config


def test_the_vit_runs_one_layer_fewer_than_its_file_says(golden: Any) -> None:
    raw = json.loads((golden.checkpoint / "vit_config.json").read_text())
    assert load_config(golden.checkpoint).vit.num_layers == raw["num_hidden_layers"] - 1


def test_what_a_file_leaves_out_is_official(tmp_path: Path) -> None:
    _write(tmp_path, {"config.json": {}, "llm_config.json": {}, "vit_config.json": {}})
    config = load_config(tmp_path)
    assert config == BagelConfig()
    assert (config.latent_dim, config.latent_stride, config.vit.side) == (64, 16, 70)


def test_nested_configs_serve_where_the_files_are_missing(tmp_path: Path) -> None:
    _write(tmp_path, {"config.json": dump_config(ODD)["config.json"]})
    assert load_config(tmp_path) == ODD


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        ("llm_config.json", "hidden_act", "relu", "hidden_act is 'relu'"),
        ("llm_config.json", "num_key_value_heads", 5, "num_key_value_heads 5"),
        ("llm_config.json", "hidden_size", 3583, "3583"),
        ("vit_config.json", "hidden_act", "gelu", "'gelu'"),
        ("config.json", "vae_config", {"downsample": 16}, "downsample is 16"),
    ],
)
def test_what_the_model_has_not_is_refused(tmp_path: Path, file: str, key: str, value: Any, message: str) -> None:
    files = dump_config(BagelConfig())
    files[file][key] = value
    _write(tmp_path, files)
    with pytest.raises(CheckpointError, match=message):
        load_config(tmp_path)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a folder"):
        load_config(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="has no config.json"):
        load_config(tmp_path)
    _write(tmp_path, {"config.json": {}})
    with pytest.raises(CheckpointError, match="llm_config.json is missing"):
        load_config(tmp_path)
    _write(tmp_path, dump_config(BagelConfig()))
    (tmp_path / "llm_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="could not be read as JSON"):
        load_config(tmp_path)
    (tmp_path / "llm_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="list"):
        load_config(tmp_path)
