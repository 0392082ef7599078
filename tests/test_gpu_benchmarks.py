"""The measurements for GPUs run in miniature on the CPU, so that they run where they are meant for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu.py"


def run(tmp_path: Path, command: str, *more: str) -> dict[str, Any]:
    target = tmp_path / "found.json"
    subprocess.run(
        [sys.executable, str(SCRIPT), command, "--smoke", "--device", "cpu", "--json", str(target), *more],
        check=True,
        capture_output=True,
        timeout=300,
    )
    found: dict[str, Any] = json.loads(target.read_text())
    assert found["smoke"] is True
    return found


@pytest.mark.slow
def test_right(tmp_path: Path) -> None:
    found = run(tmp_path, "right")
    assert found["verify float32"]["passed"] is True
    assert found["batch_error"] < 1e-5
    assert all(error < (1e-5 if "float32" in name else 0.02) for name, error in found["attention"].items())
    assert found["seed_error"] < 1e-5
    assert 0 < found["precisions"]["int8"]["logits_error"] < 0.1
    assert "compute capability" in found["precisions"]["fp8-dynamic"]["left_out"]


@pytest.mark.slow
def test_learn_goes_on_from_call_to_call(tmp_path: Path) -> None:
    work, export = tmp_path / "work", tmp_path / "export"
    calls = []
    for seconds in (24, 60, 120, 120):  # the first has no time left to train
        calls.append(run(tmp_path, "learn", "--work", str(work), "--export", str(export), "--seconds", str(seconds)))
        if "scores" in calls[-1]:
            break
    first, last = calls[0], calls[-1]
    assert all(row["tokens_per_second"] > 0 and row["share_of_matmul_rate"] > 0 for row in first["sizes"])
    assert last["sizes"] == first["sizes"], "measured once"
    assert last["model_reached"] == last["model"]["steps"]
    assert last["autoencoder_reached"] == last["autoencoder_steps"]
    assert set(last["scores"]) == {"draw/one_thing", "edit/recolour"}
    assert 0 <= last["summary"]["of the embedded model"] <= 1
    assert (export / "model.safetensors.index.json").exists() or list(export.glob("*.index.json"))


@pytest.mark.slow
def test_fast(tmp_path: Path) -> None:
    found = run(tmp_path, "fast")
    cells = {(row["task"], row["precision"], row["compiled"], row["batch"]) for row in found["rows"]}
    assert {("generate", "bfloat16", True, 2), ("edit", "int8", False, 1), ("ask", "nf4", True, 1)} <= cells
    assert all(row["seconds"] > 0 and row["share_of_matmul_rate"] > 0 for row in found["rows"] if row["task"] != "ask")
    assert found["plain"]["branches"] == 3


@pytest.mark.slow
def test_limits(tmp_path: Path) -> None:
    found = run(tmp_path, "limits", "--checkpoint", str(tmp_path / "random"))
    assert not found["left_out"]
    assert len(found["rows"]) == 9
    for row in found["rows"]:
        assert row["completed"], row
        assert all(row[job]["seconds"] > 0 for job in ("generate", "edit", "understand"))
    assert "1 of 1 layers on disk" in found["summary"]["12 GB, bfloat16, disk"]


@pytest.mark.slow
def test_train(tmp_path: Path) -> None:
    found = run(tmp_path, "train")
    ways = {(row["attention"], row["activation_checkpointing"], row["compiled"]) for row in found["rows"]}
    assert ways >= {("sdpa", False, False), ("sdpa", True, True)}
    assert all(row["tokens_per_second"] > 0 and row["peak_memory_bytes"] > 0 for row in found["rows"])
    assert all("'flex'" in reason for reason in found["left_out"])


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one here")
    ran = subprocess.run([sys.executable, str(SCRIPT), "right"], capture_output=True, text=True)
    assert ran.returncode == 2
    assert "there is no CUDA device here" in ran.stderr
