"""`bagel bench`: both sides compute the same, work is counted right, and the report holds every quantity."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from bagel_mot.bench import BenchSettings, bench, config_named, layers_that_fit, ours, plain, random_model
from bagel_mot.bench.busy import threads_check
from bagel_mot.bench.machine import peak_allocated
from bagel_mot.bench.roofline import ForwardTokens, flops, matmul_flops, roofline
from bagel_mot.bench.settings import grid_of
from bagel_mot.cli import app
from bagel_mot.config import BagelConfig, VaeConfig
from bagel_mot.errors import SettingError
from bagel_mot.inference.engine.engine import Engine
from bagel_mot.model.vae import Autoencoder
from bagel_mot.sequence import table_index
from bagel_mot.threads import usable_cores
from bagel_mot.tokenizer import SpecialTokens

SMALL = BenchSettings(
    prefill=24, images=(12,), contexts=(16, 48), rounds=2, decoded=2, train_samples=2, train_text=12, train_image=16,
    side=32, timesteps=3, answer=3, text=40, following=3, task_rounds=1,
)  # fmt: skip

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def engine() -> Engine:
    config = config_named("golden")
    model = random_model(config, torch.float32, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # larger than bench's, so that a difference would show
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    stub = Autoencoder(VaeConfig(ch=32, ch_mult=(1,), num_res_blocks=1, z_channels=config.vae.z_channels))
    return Engine(model, stub, SpecialTokens(1, 2, 3, 4))


@torch.inference_mode()
def test_the_plain_loop_computes_the_same(engine: Engine) -> None:
    model = engine.model
    ids = [5, 9, 100, 7, 42]
    context = engine.new_context()
    cache = plain.PlainCache.empty(len(model.decoder.layers))
    mine = ours.read_text(engine, ids, context)
    theirs = model.logits(plain.plain_text(model, torch.tensor(ids), 0, cache))[-1]
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)

    latents, markers = torch.randn(12, model.config.latent_dim), torch.tensor([3, 4])
    index = table_index(3, 4, model.config.max_latent_size)
    empty = engine.new_context()
    (full, without) = ours.Denoising(engine, [context, empty], (3, 4)).velocities(latents, 0.7)
    caches = (cache, 5), (plain.PlainCache.empty(len(model.decoder.layers)), 0)
    for velocity, (own, position) in zip((full, without), caches, strict=True):
        expected = plain.plain_velocity(model, markers, latents, index, 0.7, position, own)
        torch.testing.assert_close(velocity, expected, rtol=1e-4, atol=1e-4)
    assert (full - without).abs().max() > 1e-2  # the context matters
    assert cache.length == context.length == 5  # denoising leaves no trace

    for token in (11, 12):
        mine = ours.read_text(engine, [token], context, record=False)
        theirs = model.logits(plain.plain_text(model, torch.tensor([token]), cache.length, cache))[-1]
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backward", [False, True])
def test_work_is_counted_as_it_is_done(engine: Engine, backward: bool) -> None:
    work = ForwardTokens(und=6, gen=10, logits=3, latents=10, backward=backward)
    counter = FlopCounterMode(display=False)
    with counter:
        roofline(engine.model, work)()
    assert matmul_flops(engine.model, work) == counter.get_total_flops()
    attention = dataclasses.replace(work, attended=100)
    config = engine.model.config.decoder
    extra = 4 * 100 * config.hidden_size * config.num_layers * (3 if backward else 1)
    assert flops(engine.model, attention) == flops(engine.model, work) + extra


@torch.inference_mode()
def test_the_counted_matmuls_are_those_of_a_denoising_step(engine: Engine) -> None:
    run = ours.Denoising(engine, [engine.new_context()], (4, 4))
    counter = FlopCounterMode(display=False)
    with counter:
        run.velocities(torch.randn(16, engine.model.config.latent_dim), 0.5)
    ran = counter.get_flop_counts()["Global"]
    linear = sum(count for kernel, count in ran.items() if str(kernel) in ("aten.mm", "aten.addmm"))
    expected = matmul_flops(engine.model, ForwardTokens(und=2, gen=16, latents=16))
    time_embedding = 2 * 16 * (256 + 64) * 64
    assert linear == expected + time_embedding


@pytest.mark.slow
def test_the_report_holds_every_quantity_and_is_json() -> None:
    report = bench(config_named("golden"), settings=SMALL, layers=2)
    assert json.loads(json.dumps(report))["layers"] == 2
    names = [result["name"] for result in report["results"]]
    assert names == [
        "prefill of 24 text tokens",
        "denoising step, 12 image tokens, 1 branch",
        "denoising step, 12 image tokens, 2 branches",
        "denoising step, 12 image tokens, 3 branches",
        "decoded token at context 16",
        "decoded token at context 48",
        "training step, 2 × (12 text and 16 image tokens), 2 layers",
    ]
    assert [task["name"].split(",")[0] for task in report["tasks"]] == [
        "text to image",
        "edit",
        "ask about an image",
        "text of 40 tokens",
    ]
    machine = report["machine"]
    assert machine["cores"] == usable_cores()
    assert machine["instructions"] == sorted(flag for flag in machine["instructions"] if flag[:3] in ("avx", "amx"))
    assert {"governor", "load_before", "load_after", "others_share", "busy"} <= machine.keys()
    for result in report["results"]:
        seconds = result["seconds"]
        assert seconds["ours"] == min(result["runs"]["ours"])
        assert len(result["runs"]["ours"]) == 2
        assert all(0 < seconds[way] <= result["median_seconds"][way] for way in seconds)
        assert result["share"] == pytest.approx(result["gflops"] / result["matmul_gflops"])
        if "training" not in result["name"]:
            assert result["speedup"] == pytest.approx(seconds["plain"] / seconds["ours"])
            assert result["full_depth_seconds"] >= seconds["ours"] * 0.99
    assert len(report["summary"]) == 2
    short, long = (result for result in report["results"] if "context" in result)
    reading = [result["seconds"]["reading the cache"] * 3 / 2 for result in (short, long)]  # 2 of 3 layers ran
    ratio = (long["full_depth_seconds"] - reading[1] + reading[0]) / short["full_depth_seconds"]
    assert list(report["summary"].values())[1] == pytest.approx(ratio)
    peak = report["peak_memory_bytes"]
    assert peak["training"] >= peak["inference"] > report["weights_bytes"] > 0


def test_peak_memory_is_what_a_call_holds_at_once() -> None:
    mebi = 1 << 20
    kept: list[torch.Tensor] = [torch.ones(8 * mebi, dtype=torch.uint8)]

    def call() -> None:
        kept.clear()
        for _ in range(5):
            kept.append(torch.ones(3 * mebi, dtype=torch.uint8))
            torch.ones(4 * mebi, dtype=torch.uint8)
            kept.clear()

    assert 0 <= peak_allocated(torch.device("cpu"), lambda: None) < 1000
    assert 0 <= peak_allocated(torch.device("cpu"), call) < 8 * mebi
    assert 7 * mebi <= peak_allocated(torch.device("cpu"), call) < 7.1 * mebi


def test_grids_are_as_square_as_may_be() -> None:
    assert [grid_of(tokens, 64) for tokens in (1, 16, 1024, 4096)] == [(1, 1), (4, 4), (32, 32), (64, 64)]
    assert [grid_of(tokens, 64) for tokens in (2, 12, 1000, 2304)] == [(1, 2), (3, 4), (25, 40), (48, 48)]
    for tokens in (0, 67, 4097):
        with pytest.raises(SettingError, match=str(tokens)):
            grid_of(tokens, 64)


def test_names_and_folders_of_configurations(tmp_path: Path) -> None:
    assert config_named("0.5b").decoder.num_layers == 24
    assert config_named("7b-mot") == BagelConfig()
    assert config_named(str(Path(__file__).parent / "golden" / "checkpoint")).decoder.vocab_size == 424
    with pytest.raises(SettingError, match=r"13b.*0\.5b"):
        config_named("13b")
    cpu = torch.device("cpu")
    assert layers_that_fit(config_named("golden"), torch.float32, cpu) == 3
    assert 1 <= layers_that_fit(config_named("7b-mot"), torch.float32, cpu) <= 28


@pytest.mark.slow
def test_the_command_prints_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bagel_mot.bench.QUICK", SMALL)
    target = tmp_path / "bench.json"
    arguments = ["bench", "--config", "golden", "--quick", "--rounds", "1", "--no-plain", "--allow-busy"]
    arguments += ["--json", str(target)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(target.read_text())
    assert report["config"] == "golden"
    assert all("plain" not in entry["seconds"] for entry in report["results"])
    assert "prefill" in result.stdout
    assert "whole tasks" in result.stdout
    result = CliRunner().invoke(app, [*arguments, "--only", "decoded token"])
    assert result.exit_code == 0, result.output
    report = json.loads(target.read_text())
    assert [entry["name"][:13] for entry in report["results"]] == ["decoded token"] * 2
    assert report["tasks"] == []
    nothing = CliRunner().invoke(app, [*arguments, "--only", "flying"])
    assert nothing.exit_code == 2
    assert "flying" in nothing.stderr
    assert CliRunner().invoke(app, ["bench", "--config", "13b"]).exit_code == 2


def test_measuring_memory_writes_nothing_to_the_terminal() -> None:
    """PyTorch's profiler reports its beginning and end on standard error, unless it is told not to."""
    code = "import torch; from bagel_mot.bench.machine import peak_allocated as peak; "
    code += "print(peak(torch.device('cpu'), lambda: torch.ones(1000)))"
    environment = {name: value for name, value in os.environ.items() if name != "KINETO_LOG_LEVEL"}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, cwd=ROOT
    )
    assert int(found.stdout) >= 4000
    assert found.stderr == ""


def test_the_threads_check_measures_mini_by_its_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BAGEL_THREADS", raising=False)
    found = threads_check(rounds=1)
    assert found["threads"] == 1
    assert found["cores"] == usable_cores()
    assert found["ratio"] == found["busy_seconds"] / found["quiet_seconds"] > 0


@pytest.mark.parametrize(("ratio", "status"), [(2.9, 0), (3.1, 1)])
def test_the_threads_check_ends_with_its_verdict(ratio: float, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"cores": 2, "threads": 1, "quiet_seconds": 1.0, "busy_seconds": ratio, "ratio": ratio, "aim": 3.0}
    monkeypatch.setattr("bagel_mot.bench.busy.threads_check", lambda: found)
    result = CliRunner().invoke(app, ["bench", "--threads-check"])
    assert result.exit_code == status
    assert f"{ratio:.1f} times as long" in result.stdout
