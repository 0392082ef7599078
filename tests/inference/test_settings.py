"""Settings: official values, validation with one sentence, lists for batches, and a checkpoint's own defaults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bagel_mot.checkpoint.side_files import DEFAULTS_FILE
from bagel_mot.config import BagelConfig
from bagel_mot.errors import CheckpointError, SettingError, SizeError
from bagel_mot.images import VAE_TRANSFORM, VIT_TRANSFORM
from bagel_mot.inference.defaults import check_size, official_defaults, read_defaults, save_defaults
from bagel_mot.inference.settings import (
    SETTING_GROUPS,
    SETTINGS,
    TASKS,
    GenerationSettings,
    parse_settings,
    per_request,
    resolve,
    task_settings,
)

OFFICIAL = BagelConfig()


def test_official_values() -> None:
    generate, edit = resolve("generate", {}), resolve("edit", {})
    assert (generate.cfg_text_scale, generate.cfg_image_scale, generate.cfg_interval) == (4.0, 1.0, (0.4, 1.0))
    assert (edit.cfg_text_scale, edit.cfg_image_scale, edit.cfg_interval) == (4.0, 2.0, (0.0, 1.0))
    assert (generate.cfg_renorm_type, edit.cfg_renorm_type) == ("global", "text_channel")
    for settings in (generate, edit):
        assert (settings.num_timesteps, settings.timestep_shift, settings.cfg_renorm_min) == (50, 3.0, 0.0)
        assert (settings.max_think_tokens, settings.temperature, settings.do_sample) == (1024, 0.3, False)
    defaults = official_defaults(OFFICIAL)
    assert (defaults.vae_transform, defaults.vit_transform) == (VAE_TRANSFORM, VIT_TRANSFORM)
    assert defaults.of("generate")["size"] == (1024, 1024)


@pytest.mark.parametrize("task", TASKS)
def test_every_default_is_in_its_own_range(task: Any) -> None:
    for setting in task_settings(task):
        assert setting.parse(setting.default(task)) == setting.default(task)


def test_every_setting_says_what_it_does() -> None:
    for setting in SETTINGS.values():
        assert setting.about.endswith(".")
        assert setting.when.endswith(".")
        assert setting.range
        assert setting.tasks


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("cfg_text_scale", [0, 1, 7.5, 20], [-0.1, 21, "4", True, float("nan"), float("inf"), 10**400, None]),
        (
            "cfg_interval",
            [(0, 1), [0.4, 1.0]],
            [(1, 0), (0.5, 0.5), (0, 1.1), (0.5,), 0.4, "01", (0, 1, 1), (0, 10**400)],
        ),
        ("eta", [0, 0.5, 1.0], [-0.1, 1.01, "1", None]),
        ("timestep_shift", [0.01, 0.5, 100], [0, 1e-9, -1, 101]),
        ("num_timesteps", [2, 1000, 50.0], [1, 1001, 2.5, "50", float("nan"), float("inf"), 10**400]),
        ("cfg_renorm_type", ["global", "channel", "text_channel"], ["Global", "", 1, np.array(["global", "channel"])]),
        ("cfg_renorm_min", [0, 1], [-0.01, 1.01]),
        ("enable_taylorseer", [True, False], [1, "yes", None]),
        ("top_k", [0, 5, 10**400], [-1, 2.5, float("inf"), -(10**5000)]),
        ("top_p", [0.01, 1], [0, 1.01]),
        ("repetition_penalty", [0.5, 1.2], [0, -1]),
        ("seed", [0, 2**63 - 1, None], [-1, 2**63, 1.5, int("9" * 401), 10**5000]),
        (
            "size",
            [(64, 32), [64, 32], "64x32", " 64 × 32 ", None],
            [64, "64", (64,), (64.0, 32), (True, 32), (10**5000, 32), "ax b"],
        ),
        ("stop", ["a", ("a", "b"), ["a"], ()], [("",), 3, [1]]),
        ("max_new_tokens", [1], [0]),
    ],
)
def test_ranges(name: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        SETTINGS[name].parse(value)
    for value in bad:
        with pytest.raises(SettingError, match=f"^{name} is .*: it must be .*\\.$"):
            SETTINGS[name].parse(value)


def test_parsed_values_have_their_type() -> None:
    parsed = parse_settings(
        "generate", {"size": "64x32", "cfg_interval": [0, 1], "num_timesteps": 9.0, "cfg_text_scale": 3}
    )
    assert parsed == {"size": (64, 32), "cfg_interval": (0.0, 1.0), "num_timesteps": 9, "cfg_text_scale": 3.0}
    assert isinstance(parsed["num_timesteps"], int)
    assert parse_settings("ask", {"stop": "x"}) == {"stop": ("x",)}


def test_a_long_value_is_shown_in_part() -> None:
    with pytest.raises(SettingError, match="^seed is 9{60}…: it must be 0 to 2⁶³ − 1 or none.$"):
        SETTINGS["seed"].parse(int("9" * 401))


@pytest.mark.filterwarnings("error")
def test_numbers_of_numpy_are_numbers() -> None:
    given = {
        "seed": np.int64(1),
        "num_timesteps": np.uint8(9),
        "cfg_text_scale": np.float32(2.5),
        "cfg_interval": (np.float64(0.5), np.int32(1)),
        "size": (np.int16(64), np.int64(32)),
        "top_k": np.float16(3),
    }
    parsed = parse_settings("generate", given)
    assert parsed == {
        "seed": 1, "num_timesteps": 9, "cfg_text_scale": 2.5, "cfg_interval": (0.5, 1.0), "size": (64, 32), "top_k": 3,
    }  # fmt: skip
    flat = [parsed["seed"], parsed["num_timesteps"], parsed["top_k"], *parsed["size"]]
    assert {type(value) for value in flat} == {int}
    assert {type(value) for value in (parsed["cfg_text_scale"], *parsed["cfg_interval"])} == {float}
    assert SETTINGS["seed"].parse(np.float16(3)) == 3
    for value in (np.int64(-1), np.float32("nan"), np.float64("inf"), np.float32(0.5)):
        with pytest.raises(SettingError, match="seed is"):
            SETTINGS["seed"].parse(value)
    assert per_request("size", [np.int64(64), np.int64(32)]) is None


def test_unknown_and_foreign_names() -> None:
    with pytest.raises(SettingError, match="no setting 'cfg_img_scale': did you mean cfg_image_scale"):
        resolve("generate", {"cfg_img_scale": 2})
    with pytest.raises(SettingError) as long:
        parse_settings("generate", {"a" * 10_000: 1})
    assert len(str(long.value)) < 500
    with pytest.raises(SettingError, match="no setting 'zzz'"):
        resolve("generate", {"zzz": 2})
    with pytest.raises(SettingError, match="stop is no setting of 'generate'"):
        resolve("generate", {"stop": "x"})
    with pytest.raises(SettingError, match="cfg_text_scale is no setting of 'ask'"):
        resolve("ask", {"cfg_text_scale": 4})


def test_given_goes_before_checkpoint_before_official() -> None:
    defaults = {"cfg_image_scale": 1.3, "num_timesteps": 25}
    settings = resolve("edit", {"num_timesteps": 10}, defaults)
    assert (settings.num_timesteps, settings.cfg_image_scale, settings.cfg_renorm_type) == (10, 1.3, "text_channel")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("seed", 1, None),
        ("seed", [1, 2], [1, 2]),
        ("size", (64, 64), None),
        ("size", [64, 64], None),
        ("size", [(64, 64), "32x32", None], [(64, 64), "32x32", None]),
        ("cfg_interval", [0.4, 1.0], None),
        ("cfg_interval", [[0.4, 1.0], (0, 1)], [[0.4, 1.0], (0, 1)]),
        ("stop", ["a", "b"], None),
        ("stop", [["a"], ["b", "c"]], [["a"], ["b", "c"]]),
    ],
)
def test_lists_for_batches(name: str, value: Any, expected: Any) -> None:
    assert per_request(name, value) == expected


def test_as_dict_can_be_given_again() -> None:
    settings = resolve("edit", {"seed": 3, "size": (32, 32)})
    assert resolve("edit", settings.as_dict("edit")) == settings
    assert "stop" not in settings.as_dict("edit")
    assert isinstance(settings, GenerationSettings)


def write(folder: Path, content: Any) -> Path:
    (folder / DEFAULTS_FILE).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_a_checkpoints_own_defaults(tmp_path: Path) -> None:
    assert read_defaults(tmp_path, OFFICIAL) == official_defaults(OFFICIAL)
    write(
        tmp_path,
        {
            "generate": {"size": [64, 64], "num_timesteps": 25},
            "ask": {"max_new_tokens": 64},
            "vae_transform": {"max_size": 64, "min_size": 64},
        },
    )
    defaults = read_defaults(tmp_path, OFFICIAL)
    assert defaults.of("generate") == {"size": (64, 64), "num_timesteps": 25}
    assert defaults.of("edit") == {}
    assert defaults.of("ask") == {"max_new_tokens": 64}
    assert (defaults.vae_transform.max_size, defaults.vae_transform.stride) == (64, 16)
    assert defaults.vit_transform == VIT_TRANSFORM


@pytest.mark.parametrize(
    "content",
    [
        "{",
        [1],
        {"draw": {}},
        {"generate": 3},
        {"generate": {"cfg": 1}},
        {"generate": {"num_timesteps": 1}},
        {"generate": {"size": [63, 64]}},
        {"vae_transform": {"max": 3}},
        {"vit_transform": {"max_size": "big"}},
    ],
    ids=str,
)
def test_damaged_defaults(tmp_path: Path, content: Any) -> None:
    with pytest.raises(CheckpointError, match=DEFAULTS_FILE):
        read_defaults(write(tmp_path, content), OFFICIAL)


def test_files_that_other_libraries_know_hold_the_same_facts(tmp_path: Path) -> None:
    content = {"ask": {"do_sample": True, "top_k": 7}, "vit_transform": {"max_size": 448}}
    save_defaults(tmp_path, OFFICIAL, content)
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    preprocessor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (generation["do_sample"], generation["top_k"], generation["temperature"]) == (True, 7, 0.3)
    assert (preprocessor["size"], preprocessor["patch_size"]) == ({"shortest_edge": 224, "longest_edge": 448}, 14)
    expected = read_defaults(tmp_path, OFFICIAL)
    assert expected.of("ask")["top_k"] == 7
    (tmp_path / DEFAULTS_FILE).unlink()
    defaults = read_defaults(tmp_path, OFFICIAL)
    assert resolve("ask", {}, defaults.of("ask")) == resolve("ask", {}, expected.of("ask"))
    assert defaults.vit_transform == expected.vit_transform
    write(tmp_path, {"ask": {"top_k": 5}, "vit_transform": {"max_size": 560}})  # which comes first
    defaults = read_defaults(tmp_path, OFFICIAL)
    assert (defaults.of("ask")["top_k"], defaults.of("ask")["do_sample"]) == (5, True)
    assert (defaults.vit_transform.max_size, defaults.vit_transform.min_size) == (560, 224)


def test_the_generation_config_of_official_weights_changes_nothing(tmp_path: Path) -> None:
    """It is that of the language model that they began with, and the published system does not read it."""
    qwen = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}
    (tmp_path / "generation_config.json").write_text(json.dumps(qwen))
    siglip = {"size": {"longest_edge": 384, "shortest_edge": 384}, "patch_size": 16}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(siglip))
    assert read_defaults(tmp_path, OFFICIAL) == official_defaults(OFFICIAL)


def test_damage_in_files_that_other_libraries_know(tmp_path: Path) -> None:
    save_defaults(tmp_path, OFFICIAL, {})
    (tmp_path / "generation_config.json").write_text('{"top_p": 7, "written_by": "bagel-mot"}')
    with pytest.raises(CheckpointError, match=r"generation_config.json.*top_p is 7"):
        read_defaults(tmp_path, OFFICIAL)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config.json could not be read as JSON"):
        read_defaults(tmp_path, OFFICIAL)


def test_small_tables_get_small_defaults() -> None:
    small = BagelConfig(max_latent_size=8)
    assert official_defaults(small).of("generate")["size"] == (128, 128)
    assert official_defaults(small).vae_transform.size(2000, 2000) == (128, 128)


def test_sizes() -> None:
    check_size((1024, 576), OFFICIAL)
    with pytest.raises(SizeError, match="1000×1024: the width 1000 must be a multiple of 16, at most 1024, as 992 is"):
        check_size((1000, 1024), OFFICIAL)
    with pytest.raises(SizeError, match="the height 2048 .*at most 1024, as 1024 is"):
        check_size((1024, 2048), OFFICIAL)
    for width in (0, -16, 8):
        with pytest.raises(SizeError, match="as 16 is"):
            check_size((width, 64), OFFICIAL)
    check_size((2048, 64), BagelConfig(interpolate_pos=True))


def test_every_setting_is_in_one_group() -> None:
    grouped = [name for names in SETTING_GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(SETTINGS)
