"""Adapters on the command line: `--adapter`, and `bagel convert --merge-adapter`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from bagel_mot.checkpoint.adapters import write_adapter
from bagel_mot.checkpoint.official import load_checkpoint
from bagel_mot.checkpoint.opening import open_checkpoint
from bagel_mot.checkpoint.source import as_stored
from bagel_mot.cli import app
from bagel_mot.inference.loading import MINI_FOLDER
from bagel_mot.model.adapters import merge
from bagel_mot.model.quant import FORMATS
from tests.adapters import random_adapter

GOLDEN = Path(__file__).parents[1] / "golden" / "checkpoint"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def refused(*arguments: object, match: str) -> None:
    """Status 2, one sentence on standard error, nothing on standard output."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert re.search(match, result.stderr), result.stderr
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr


def test_commands_load_adapters_by_their_strengths() -> None:
    config = load_checkpoint(MINI_FOLDER).config
    for seed, name in enumerate(("one", "two")):
        write_adapter(Path(name), random_adapter(config, seed=seed, deviation=4))
    answers = []
    for adapters in ((), ("one:0", "two:0"), ("one:0.5",), ("one", "two:-1")):
        options = [part for adapter in adapters for part in ("--adapter", adapter)]
        result = run(
            "ask", "How many red circles are there?", *options, "--max-new-tokens", 8, "--precision", "float32"
        )
        assert result.exit_code == 0, result.output
        answers.append(result.stdout)
    assert answers[0] == answers[1]
    assert len(set(answers)) == 3


def test_adapters_that_cannot_be_loaded_are_refused_in_a_sentence() -> None:
    write_adapter(Path("small"), random_adapter(load_checkpoint(GOLDEN).config))
    refused("ask", "what?", "--adapter", "nowhere", match=r"'nowhere' is not an adapter: there is no such folder")
    refused("ask", "what?", "--adapter", "small", match=r"the adapter is of another model")
    refused("ask", "what?", "--adapter", "small:inf", match=r"the strength of adapter 'small' is 'inf'")
    refused("ask", "what?", "--checkpoint", "small", match=r"small is an adapter, which goes with a checkpoint")
    refused("convert", GOLDEN, "new", "--merge-adapter", "nowhere", match=r"'nowhere' is not an adapter")
    assert not Path("new").exists()


@pytest.mark.parametrize("stored", ["bf16", "int8", "gguf-f16"])
def test_converted_checkpoints_have_adapters_merged_into_them(stored: str) -> None:
    config = load_checkpoint(GOLDEN).config
    adapters = [(random_adapter(config, seed=1), 1.0), (random_adapter(config, seed=2, dora=True), 0.5)]
    for name, (adapter, _) in zip("ab", adapters, strict=True):
        write_adapter(Path(name), adapter)
    merging = ("--merge-adapter", "a", "--merge-adapter", "b:0.5")
    result = run("convert", GOLDEN, "new", "--format", stored, *merging, "--check", "--json", "report.json")
    assert result.exit_code == 0, result.output
    report = json.loads(Path("report.json").read_text())
    assert report["adapters"] == ["a", "b:0.5"]
    assert max(row["error"] for row in report["tensors"]) < 0.02  # compared with the merged weights
    before, after = open_checkpoint(GOLDEN), open_checkpoint("new")
    for name in ("self_attn.q_proj_moe_gen", "mlp.up_proj"):
        official = f"language_model.model.layers.1.{name}.weight"
        ours = {"self_attn.q_proj_moe_gen": "decoder.layers.1.gen.q", "mlp.up_proj": "decoder.layers.1.und.up"}[name]
        wanted = merge(as_stored(before.read(official)), ours, adapters)
        if stored in FORMATS:
            wanted = FORMATS[stored].quantise(wanted).dequantise(torch.float32)
        else:
            wanted = wanted.to(torch.bfloat16 if stored == "bf16" else torch.float16).float()
        assert torch.equal(as_stored(after.read(official)).float(), wanted)
    assert run("ask", "what?", "--checkpoint", "new", "--max-new-tokens", 2).exit_code == 0


def test_without_adapters_nothing_else_is_written() -> None:
    assert run("convert", GOLDEN, "one").exit_code == 0
    write_adapter(Path("a"), random_adapter(load_checkpoint(GOLDEN).config))
    assert run("convert", GOLDEN, "two", "--format", "bf16", "--merge-adapter", "a:0").exit_code == 0
    assert (Path("one") / "ema.safetensors").read_bytes() == (Path("two") / "ema.safetensors").read_bytes()
