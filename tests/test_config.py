"""The official JSON files and back."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bagel_mot.config import (
    NAMED_CONFIGS,
    BagelConfig,
    DecoderConfig,
    VaeConfig,
    VitConfig,
    dump_config,
    load_config,
    parse,
)
from bagel_mot.errors import CheckpointError


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


# What no tensor tells, and every official file says.
REQUIRED = {
    "llm_config.json": {"rope_theta": 1e6, "rms_norm_eps": 1e-6, "max_position_embeddings": 32768},
    "vit_config.json": {"num_attention_heads": 16},
}


def test_what_a_file_leaves_out_is_official(tmp_path: Path) -> None:
    _write(tmp_path, {"config.json": {"vae_config": None}, **REQUIRED})
    config = load_config(tmp_path)
    assert config == BagelConfig()
    assert (config.latent_dim, config.latent_stride, config.vit.side) == (64, 16, 70)


@pytest.mark.parametrize(("file", "key"), [(file, key) for file, content in REQUIRED.items() for key in content])
def test_what_nothing_else_tells_is_not_guessed(tmp_path: Path, golden: Any, file: str, key: str) -> None:
    assert key in json.loads((golden.checkpoint / file).read_text())
    for content in ({}, {key: None}):
        own = {name: value for name, value in REQUIRED[file].items() if name != key}
        _write(tmp_path, {"config.json": {}, **REQUIRED, file: own | content})
        with pytest.raises(CheckpointError, match=f"{file}: {key} is missing; it must be a"):
            load_config(tmp_path)


@pytest.mark.parametrize(
    ("file", "key", "value", "wanted"),
    [
        ("llm_config.json", "num_hidden_layers", "8", "a whole number from 1"),
        ("llm_config.json", "num_hidden_layers", 8.0, "a whole number"),
        ("llm_config.json", "num_hidden_layers", True, "a whole number"),
        ("llm_config.json", "num_key_value_heads", 0, "a whole number"),
        ("llm_config.json", "num_attention_heads", -4, "a whole number"),
        ("llm_config.json", "vocab_size", [152064], "a whole number"),
        ("llm_config.json", "head_dim", 0, "a whole number"),
        ("llm_config.json", "hidden_size", 10**400, "a whole number"),
        ("llm_config.json", "rope_theta", "1e6", "a number above 0"),
        ("llm_config.json", "rope_theta", 10**400, "a number above 0"),
        ("llm_config.json", "rms_norm_eps", 0, "a number above 0"),
        ("llm_config.json", "rms_norm_eps", float("nan"), "a number above 0"),
        ("vit_config.json", "num_hidden_layers", "4", "a whole number"),
        ("vit_config.json", "num_attention_heads", {}, "a whole number"),
        ("vit_config.json", "layer_norm_eps", False, "a number above 0"),
        ("config.json", "interpolate_pos", "no", "true or false"),
        ("config.json", "max_latent_size", 64.5, "a whole number"),
        ("config.json", "timestep_shift", float("inf"), "a number above 0"),
        ("config.json", "vae_config", [1], "an object"),
        ("config.json", "vae_config", [], "an object"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_values_of_the_wrong_kind(tmp_path: Path, file: str, key: str, value: Any, wanted: str) -> None:
    files = dump_config(BagelConfig())
    files[file][key] = value
    _write(tmp_path, files)
    message = re.escape(f"{file}: {key} is {value!r}; it must be {wanted}")
    with pytest.raises(CheckpointError, match=message):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("ch", "128"), ("ch_mult", 4), ("ch_mult", []), ("ch_mult", [1, "2"]), ("shift_factor", "0"), ("scale_factor", 0)],
)
def test_values_of_the_wrong_kind_within_the_autoencoder(tmp_path: Path, key: str, value: Any) -> None:
    files = dump_config(BagelConfig())
    files["config.json"]["vae_config"][key] = value
    _write(tmp_path, files)
    with pytest.raises(CheckpointError, match=re.escape(f"config.json, vae_config: {key} is {value!r}; it must be a")):
        load_config(tmp_path)


def test_nested_configs_serve_where_the_files_are_missing(tmp_path: Path) -> None:
    _write(tmp_path, {"config.json": dump_config(ODD)["config.json"]})
    assert load_config(tmp_path) == ODD
    top = dump_config(ODD)["config.json"]
    for nested, message in (
        ([], "llm_config is \\[\\]; it must be an object"),
        ({}, "config.json, llm_config: rope_theta"),
    ):
        _write(tmp_path, {"config.json": {**top, "llm_config": nested}})
        with pytest.raises(CheckpointError, match=message):
            load_config(tmp_path)


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        ("llm_config.json", "hidden_act", "relu", "hidden_act is 'relu'"),
        ("llm_config.json", "num_key_value_heads", 5, "28; it must be a multiple of num_key_value_heads, 5"),
        ("llm_config.json", "hidden_size", 3583, "3583"),
        ("llm_config.json", "rope_scaling", {"type": "yarn"}, "rope_scaling is {'type': 'yarn'}"),
        (
            "vit_config.json",
            "num_attention_heads",
            5,
            "hidden_size is 1152; it must be a multiple of num_attention_heads, 5",
        ),
        ("vit_config.json", "patch_size", 981, "patch_size is 981; it must be at most image_size, 980"),
        ("vit_config.json", "num_hidden_layers", 1, "num_hidden_layers is 1; it must be more"),
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


def test_a_width_without_a_position_table_is_refused() -> None:
    with pytest.raises(CheckpointError, match="^here: hidden_size is 6; the position tables need a multiple of 4$"):
        parse(DecoderConfig, {"hidden_size": 6, "num_heads": 3, "num_kv_heads": 3}, "here")
    with pytest.raises(ValueError, match="hidden_size is 6; the position tables need a multiple of 4"):
        DecoderConfig(hidden_size=6, num_heads=3, num_kv_heads=3)


def test_an_unknown_key_is_told_with_the_one_that_was_meant() -> None:
    with pytest.raises(CheckpointError, match="^vit: num_layer is not known; did you mean num_layers?"):
        parse(BagelConfig, {"vit": {"num_layer": 3}}, "")
    with pytest.raises(ValueError, match="zzz is not known; there are resolution, in_channels"):
        VaeConfig(zzz=1)  # type: ignore[arg-type]


def test_configurations_are_read_without_torch() -> None:
    code = "import sys, bagel_mot.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


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
    for damaged in ('{"hidden_size": ' + "9" * 5000 + "}", "[" * 100_000):
        (tmp_path / "llm_config.json").write_text(damaged)
        with pytest.raises(CheckpointError, match="could not be read as JSON"):
            load_config(tmp_path)
    (tmp_path / "llm_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="list"):
        load_config(tmp_path)
