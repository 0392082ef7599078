"""`bagel init`, `convert` and `download` as commands: results, messages, exit codes."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from bagel_mot.cli import app
from bagel_mot.config import NAMED_CONFIGS, BagelConfig, DecoderConfig, VaeConfig, VitConfig
from bagel_mot.evaluation.benchmarks.mini import Mini
from bagel_mot.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
MINI = ROOT / "bagel_mot" / "worlds" / "mini" / "weights"
SMALL = BagelConfig(
    decoder=DecoderConfig(hidden_size=64, num_layers=1, num_heads=4, num_kv_heads=2, intermediate_size=64),
    vit=VitConfig(hidden_size=32, num_layers=1, num_heads=2, intermediate_size=32, image_size=56),
    vae=VaeConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=4),
    max_latent_size=4,
    vit_max_num_patch_per_side=4,
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setitem(NAMED_CONFIGS, "small", SMALL)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def refused(*arguments: object, match: str) -> None:
    """Status 2, one sentence on standard error, nothing on standard output."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert re.search(match, result.stderr), result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr


# ------------------------------------------------------------------------------------------------------------- init


def test_init_makes_a_checkpoint_that_info_reads() -> None:
    result = run("init", "--config", "small", "--random", "new", "--seed", 3, "--shard-size", "4MB")
    assert result.exit_code == 0, result.output
    assert result.stdout == "new\n"
    assert len(list(Path("new").glob("model-*.safetensors"))) > 1
    facts = json.loads(run("info", "new", "--json", "-").stdout)
    assert facts["decoder"]["vocabulary"] == 152064
    assert Tokenizer.from_folder("new").vocab_size == Tokenizer.from_folder(MINI).vocab_size


def test_init_with_another_vocabulary() -> None:
    folder = ROOT / "tests" / "golden" / "checkpoint"
    assert run("init", "--config", "small", "--random", "new", "--tokenizer", folder).exit_code == 0
    assert Tokenizer.from_folder("new").encode("a red circle") == Tokenizer.from_folder(folder).encode("a red circle")


def test_init_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    refused("init", "--config", "8b", "--random", "x", match="there is no configuration '8b': give .*7b-mot.*0.5b")
    refused("init", "--config", "small", "x", match="only random weights can be made here: give --random")
    refused("init", "--config", "small", "--random", "x", "--shard-size", "5XB", match="'5XB' is not a size")
    refused("init", "--config", "small", "--random", "x", "--tokenizer", "none", match="none has no tokenizer.json")
    assert list(tmp_path.iterdir()) == []
    Path("full").mkdir()
    Path("full/file").write_text("mine")
    refused("init", "--config", "small", "--random", "full", match="full is not empty: give a new folder")
    refused("init", "--config", "small", "--random", "full/file", match="full/file is a file: give a new folder")
    assert Path("full/file").read_text() == "mine"


def test_init_says_how_much_room_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = type("Usage", (), {"free": 12_000_000_000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    refused(
        "init",
        "--config",
        "7b-mot",
        "--random",
        "x",
        match=r"x cannot be written \(29\.5 GB are needed in x, but only 12 GB are free there\): give another folder\.",
    )
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------- convert


@pytest.fixture(scope="module")
def tiny() -> Path:
    return ROOT / "tests" / "golden" / "checkpoint"


def test_convert_with_its_report(tiny: Path) -> None:
    result = run("convert", tiny, "new", "--format", "int8", "--check", "--json", "report.json")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip().splitlines()[-1] == "new"
    for words in ("worst tensors", "mean by kind", "language_model.model.layers.", "gate", "relative error"):
        assert words in result.stdout
    report = json.loads(Path("report.json").read_text())
    assert (report["format"], report["folder"]) == ("int8", "new")
    assert report["bytes"] == sum(path.stat().st_size for path in Path("new").iterdir())
    errors = {row["name"]: row["error"] for row in report["tensors"]}
    assert 0 < errors["language_model.model.layers.0.self_attn.q_proj_moe_gen.weight"] < 0.02
    assert report["error_by_kind"]["down"] > 0.001
    assert "evaluation" not in report
    assert json.loads(run("info", "new", "--json", "-").stdout)["decoder"]["layers"] == 3


def test_convert_compares_the_scores_of_mini(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def evaluate(mini: Mini, respondent: Any, *, progress: object) -> dict[str, object]:
        asked.append((respondent.bagel, mini.count))
        return {"rows": {"draw/one": {"share": 0.5 if respondent.bagel == "mini" else 0.25}}}

    monkeypatch.setattr("bagel_mot.cli.checkpoints.load", lambda weights: weights.checkpoint)
    monkeypatch.setattr("bagel_mot.evaluation.benchmarks.mini_report.evaluate", evaluate)
    monkeypatch.setattr("bagel_mot.evaluation.benchmarks.mini_report.side_of", lambda bagel: 64)
    result = run("convert", "mini", "new", "--format", "nf4", "--check", "--items", 7, "--json", "report.json")
    assert result.exit_code == 0, result.output
    assert asked == [("mini", 7), ("new", 7)]
    assert "-0.250" in result.stdout
    row = {"before": 0.5, "after": 0.25, "change": -0.25}
    assert json.loads(Path("report.json").read_text())["evaluation"] == {"items": 7, "rows": {"draw/one": row}}


def test_convert_refuses_what_it_cannot_do(tiny: Path, tmp_path: Path) -> None:
    refused("convert", tiny, "new", "--format", "int3", match="the format is 'int3': it must be bf16, ")
    refused("convert", "nowhere", "new", "--format", "int8", match="'nowhere' is not a checkpoint")
    refused("convert", tiny, tiny, "--format", "int8", match="is the checkpoint that is to be converted")
    refused("convert", tiny, tmp_path / "x", "--format", "gguf-f16", "--shard-size", "1MB", match="is one file")
    Path("other").mkdir()
    Path("other/file").write_text("mine")
    refused("convert", tiny, "other", "--format", "int8", match="other is not empty: give a new folder")
    refused("convert", tiny, "new", "--format", "int8", "--items", 7, match="--items 7 is for --check of mini")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    Path("link").symlink_to("nowhere")
    refused("convert", tiny, "link", "--format", "int8", match="link is a link to nowhere, which does not exist")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("convert", "owner/name", "new", "--format", "int9"), "the format is 'int9'"),
        (("convert", "owner/name", "full", "--format", "int8"), "full is not empty"),
        (("ask", "Hello?", "-c", "owner/name", "--precision", "in8"), "precision is 'in8'"),
        (("ask", "Hello?", "-c", "owner/name", "--device", "gpu"), "device is 'gpu'"),
        (("ask", "Hello?", "-c", "owner/name", "--memory", "foo"), "'foo' is not a size"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], match: str
) -> None:
    def fetch(*_: object, **__: object) -> Path:
        raise AssertionError("it was fetched")

    monkeypatch.setattr("bagel_mot.inference.loading.download", fetch)
    Path("full").mkdir()
    Path("full/file").touch()
    refused(*arguments, match=match)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_conversion_that_is_told_to_end_leaves_nothing(tmp_path: Path) -> None:
    """As it does where it is interrupted by Ctrl-C."""
    program = (
        "import os, signal, bagel_mot.checkpoint.convert as c, bagel_mot.cli\n"
        "c.write_model = lambda *arguments: os.kill(os.getpid(), signal.SIGTERM)\n"
        "bagel_mot.cli.main()"
    )
    command = [sys.executable, "-c", program, "convert", "mini", str(tmp_path / "new"), "--format", "int8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------------------------------------------------- paths


@pytest.mark.skipif(sys.platform == "win32", reason="homes are found by other variables there")
def test_homes_are_found_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    assert run("init", "--config", "small", "--random", "~/new").exit_code == 0
    assert (home / "new" / "ema.safetensors").is_file()
    result = run("convert", "~/new", "~/int8", "--format", "int8", "--json", "~/report.json")
    assert result.exit_code == 0, result.output
    assert (home / "int8" / "ema.safetensors").is_file()
    assert (home / "report.json").is_file()
    assert run("info", "~/int8", "--json", "-").exit_code == 0
    drawn = run("generate", "a red car", "-o", "~/pictures/x.png", "--num-timesteps", "2")
    assert drawn.exit_code == 0, drawn.output
    assert (home / "pictures" / "x.png").is_file()
    assert run("ask", "~/pictures/x.png", "What?", "--max-new-tokens", "2").exit_code == 0
    assert not Path("~").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "a red car", "-o", "{}"),
        ("generate", "a red car", "-c", "{}"),
        ("ask", "{}", "What?"),
        ("convert", "mini", "{}", "--format", "int8"),
        ("convert", "{}", "new", "--format", "int8"),
        ("info", "{}"),
        ("train", "{}"),
        ("verify", "{}"),
        ("eval", "mini", "--json", "{}"),
    ],
)
@pytest.mark.parametrize(
    ("path", "match"), [("~nobody7/x.png", "begins with ~nobody7"), ("x" * 5000, "cannot be a path: it is too long")]
)
def test_paths_that_cannot_be_are_refused(arguments: tuple[str, ...], path: str, match: str) -> None:
    refused(*(path if one == "{}" else one for one in arguments), match=match)


def test_a_damaged_weight_is_told_on_the_command_line(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(MINI, tmp_path / "damaged"))
    tensors = load_file(folder / "ema.safetensors")
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    tensors[name][0, 0] = float("nan")
    save_file(tensors, folder / "ema.safetensors")
    refused("ask", "What?", "-c", "damaged", match=f"{name} holds infinite values or values that are not numbers")
    refused("convert", "damaged", "new", "--format", "int8", match=f"{name} holds infinite values")
    assert not Path("new").exists()
