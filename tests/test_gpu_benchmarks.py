"""The measurements for GPUs run in miniature on the CPU, so that they run where they are meant for."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu.py"


def run(tmp_path: Path, command: str, *more: str) -> dict[str, Any]:
    target = tmp_path / "found.json"
    subprocess.run(
        [sys.executable, str(SCRIPT), command, "--smoke", "--device", "cpu", "--json", str(target), *more],
        check=True,
        capture_output=True,
        timeout=3600,  # nothing is judged by how long it takes
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
    for seconds in (24, 60, *[120] * 6):  # the first has no time left to train; a busy machine needs more of them
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
    found = run(tmp_path, "fast", "--budget", "3000")
    assert found["complete"] is True
    assert not [row for row in found["rows"] if "error" in row]
    cells = {(row["task"], row["precision"], row["way"], row["batch"]) for row in found["rows"]}
    wanted = {("generate", "bfloat16", "graphs", 2), ("edit", "int8", "eager", 1), ("ask", "nf4", "compiled", 2)}
    assert wanted | {("small", "bfloat16", "compiled", 1), ("write", "int8", "graphs", 4)} <= cells
    drawn = [row for row in found["rows"] if row["task"] in ("generate", "small", "edit")]
    assert all(row["seconds"] > 0 for row in drawn)
    assert all(row["share_of_matmul_rate"] > 0 for row in drawn if row["task"] != "small")
    assert not any(row["graphs_on"] for row in found["rows"]), "there are none on the CPU"
    assert found["targets"]["generate, bfloat16, batch 1"]["met"] in (True, False)
    assert found["targets"]["generate, fp8-dynamic, batch 1"]["met"] is None, "nor is there float8"
    assert found["summary"]["met: generate, fp8-dynamic, batch 1"] is None
    assert all(row["tokens_per_second"] > 0 for row in found["rows"] if row not in drawn)
    assert found["plain"]["branches"] == 3
    assert found["attention"]["default, 64×64"]["seconds"] > 0
    assert "error" in found["attention"]["cudnn, 32×32"]
    assert found["summary"]["text to image: plain loop / ours, bfloat16, compiled"] > 0


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Gives a module of the benchmarks."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module


class Pretended:
    """Tasks that take seconds of a clock of their own, ten for each request, in two precisions; one of them fails."""

    def __init__(self, fast: ModuleType, monkeypatch: pytest.MonkeyPatch, fails: str = "") -> None:
        self.now, self.calls = 0.0, 0
        self.before: Callable[[], None] = lambda: None  # each of them
        monkeypatch.setattr(fast, "time", SimpleNamespace(perf_counter=lambda: self.now))
        monkeypatch.setattr(fast, "PRECISIONS", ("bfloat16", "int8"))
        for name in fast.TASKS:
            monkeypatch.setitem(fast.TASKS, name, self._task(name == fails, name in ("generate", "small", "edit")))

    def _task(self, fails: bool, draws: bool) -> Callable[..., dict[str, Any]]:
        def run(bagel: object, scale: object, device: torch.device, batch: int) -> dict[str, Any]:
            self.before()
            self.now += 10 * batch
            self.calls += 1
            if fails:
                raise RuntimeError("no such kernel\nfor this device")
            if not draws:
                return {"seconds_per_token": 1.0 / batch, "tokens_per_second": 100.0 * batch}
            return {"seconds_per_step": {"2": 1.0}, "seconds": 7.0, "side": 64}

        return lambda *given: {**run(*given), "measured_seconds": 10.0 * given[-1]}


def measured(fast: ModuleType, budget: float) -> dict[str, Any]:
    found: dict[str, Any] = fast.measure(
        torch.device("cpu"), smoke=True, budget=budget, say=print, keep=lambda report: None
    )
    return found


def named(rows: list[dict[str, Any]], precision: str) -> list[str]:
    return [f"{row['task']} {row['way']} {row['batch']}" for row in rows if row["precision"] == precision]


ORDER = ("generate", "small", "write", "edit", "ask")
ALONE = [f"{task} {way} 1" for task in ORDER for way in ("graphs", "compiled", "eager")]


def test_fast_measures_the_most_important_first(
    parts: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = parts("gpu_parts.fast")
    Pretended(fast, monkeypatch)
    found = measured(fast, 340)
    assert named(found["rows"], "bfloat16") == ALONE, "in its half of the time a batch of two would not end"
    assert named(found["rows"], "int8") == [*ALONE, "write graphs 2"], "what the first left over is its own"
    assert "generate, bfloat16, compiled, batch 2: no time left" in found["left_out"]
    assert "write, int8, graphs, batch 4: no time left" in found["left_out"]
    assert len(found["rows"]) + len(found["left_out"]) == 2 * (2 * 15 + 1)
    assert found["summary"]["text to image: plain loop / ours, int8, compiled"] > 0


def test_fast_has_the_headline_of_every_precision_however_little_time_there_is(
    parts: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = parts("gpu_parts.fast")
    Pretended(fast, monkeypatch)
    found = measured(fast, 50)
    assert named(found["rows"], "bfloat16") == named(found["rows"], "int8") == ALONE[:3]


@pytest.mark.slow
def test_fast_goes_on_after_a_failure_and_writes_after_each_measurement(
    parts: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fast, target = parts("gpu_parts.fast"), tmp_path / "found.json"
    pretended = Pretended(fast, monkeypatch, fails="edit")

    def look() -> None:
        so_far = json.loads(target.read_text())
        assert len(so_far["rows"]) == pretended.calls
        assert so_far["plain"]["branches"] == 3
        assert so_far["complete"] is False

    pretended.before = look
    parts("gpu").fast(device="cpu", smoke=True, budget=10_000, target=target)
    found = json.loads(target.read_text())
    assert found["complete"] is True
    failed = [row for row in found["rows"] if "error" in row]
    assert [(row["task"], row["error"]) for row in failed] == [("edit", "RuntimeError: no such kernel")] * 6
    assert {row["batch"] for row in found["rows"] if row["task"] not in ("edit", "write")} == {1, 2}
    assert "edit, int8, eager, batch 2: batch 1 was not measured" in found["left_out"]
    assert "text to image: plain loop / ours, int8, eager" in found["summary"]


def test_what_ends_fast_early_leaves_what_it_had(
    parts: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fast, target = parts("gpu_parts.fast"), tmp_path / "found.json"
    pretended = Pretended(fast, monkeypatch)

    def interrupt() -> None:
        if pretended.calls == 3:
            raise KeyboardInterrupt

    pretended.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        parts("gpu").fast(device="cpu", smoke=True, budget=10_000, target=target)
    found = json.loads(target.read_text())
    assert named(found["rows"], "bfloat16") == ALONE[:3]
    assert found["complete"] is False
    assert "text to image: plain loop / ours, bfloat16, compiled" in found["summary"]


def test_targets_are_beside_what_is_measured(
    parts: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = parts("gpu_parts.fast")
    Pretended(fast, monkeypatch)
    found = measured(fast, 10_000)
    rows = {(row["task"], row["precision"], row["way"], row["batch"]): row for row in found["rows"]}
    drawn = rows["generate", "bfloat16", "graphs", 1]
    assert (drawn["target"], drawn["met"]) == ("seconds ≤ 8", True)
    small = rows["small", "int8", "eager", 1]
    assert (small["target"], small["met"]) == ("seconds ≤ 0.95", False)
    assert "target" not in rows["generate", "bfloat16", "graphs", 2]
    assert "target" not in rows["generate", "int8", "graphs", 1], "its target is that of FP8"
    text = rows["write", "bfloat16", "graphs", 1]
    assert (text["target"], text["met"]) == ("tokens_per_second ≥ 130", False)
    assert found["targets"]["generate, fp8-dynamic, batch 1"] == {"target": "seconds ≤ 4.8", "met": None}
    assert found["summary"]["met: generate, bfloat16, batch 1"] is True


def test_the_best_of_several_rows_decides_on_a_target(parts: Callable[[str], ModuleType]) -> None:
    targets = parts("gpu_parts.targets")
    row = {"task": "write", "batch": 32, "precision": "int8"}
    rows = [{**row, "way": way, "tokens_per_second": rate} for way, rate in (("eager", 900.0), ("graphs", 2600.0))]
    found = next(entry for name, entry in targets.reached(rows).items() if name.startswith("write") and "32" in name)
    best = {"best": 2600.0, "precision": "int8", "way": "graphs"}
    assert found == {"target": "tokens_per_second ≥ 2500", "met": True, **best}
    failed = targets.reached([{**row, "way": "graphs", "error": "RuntimeError: none"}])
    assert {entry["met"] for entry in failed.values()} == {None}


@pytest.mark.slow
def test_limits(tmp_path: Path) -> None:
    found = run(tmp_path, "limits", "--checkpoint", str(tmp_path / "random"))
    assert not found["left_out"]
    assert len(found["rows"]) == 9
    assert [row["asked"] for row in found["rows"]][:3] == ["auto"] * 3
    for row in found["rows"]:
        assert row["completed"], row
        assert all(row[job]["seconds"] > 0 for job in ("generate", "edit", "understand"))
    assert "1 of 1 layers on disk" in found["summary"]["12 GB, bfloat16, disk"]["plan"]


@pytest.mark.slow
def test_limits_go_on_after_a_failure(
    parts: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    limits = parts("gpu_parts.limits")

    def fail(*args: object, **settings: object) -> None:
        raise RuntimeError("CUDA error: an illegal access\nsomewhere")

    monkeypatch.setattr(limits, "Bagel", SimpleNamespace(from_pretrained=fail))
    kept: list[int] = []
    found = limits.measure(
        torch.device("cpu"),
        smoke=True,
        budget=100,
        checkpoint=tmp_path,
        say=print,
        keep=lambda report: kept.append(len(report["rows"])),
    )
    assert kept == list(range(1, 10))
    assert {row["error"] for row in found["rows"]} == {"RuntimeError: CUDA error: an illegal access"}
    assert not any(row["completed"] for row in found["rows"])


def test_limits_compare_predictions_with_what_is_taken_of_the_device(
    parts: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = parts("gpu_parts.limits")
    for name, value in {
        "mem_get_info": (70, 100),  # free, in all: 30 taken, 20 of them by the allocator
        "memory_reserved": 20,
        "max_memory_reserved": 40,
        "max_memory_allocated": 35,
        "reset_peak_memory_stats": None,
        "empty_cache": None,
        "synchronize": None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *device, value=value: value)
    found = limits._measured(lambda: None, torch.device("cuda"))
    assert found["context_bytes"] == 10
    assert found["device_bytes"] == 50
    row = {"generate": found, "edit": found, "plan": "bfloat16 on cuda"}
    ratios = limits.compared({"generate 64×64": 54, "edit 2 of 64×64": 46, "understand 28×28": 56}, row)
    assert ratios == {"generate": 1.08, "edit": 0.92}, "what was not measured has no ratio"
    shown = {"plan": row["plan"], "predicted / measured": ratios, "within 10%": True}
    assert limits.outcome({**row, "predicted_over_measured": ratios}) == shown
    assert limits.outcome({**row, "predicted_over_measured": {"edit": 0.89}})["within 10%"] is False


@pytest.mark.slow
def test_train(tmp_path: Path) -> None:
    target = tmp_path / "train.json"
    command = [sys.executable, str(SCRIPT.parent / "train.py"), "--smoke", "--json", str(target)]
    for words in ("eager", "qlora", "main memory"):
        command += ["--only", words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(target.read_text())
    assert found["complete"]
    assert not found["left_out"]
    names = {row["case"] for row in found["rows"]}
    assert {"sdpa, eager", "qlora, flex, full checkpointing", "optimiser in main memory"} <= names
    assert all(row["tokens_per_second_per_device"] > 0 and row["peak_memory_bytes"] > 0 for row in found["rows"])


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one here")
    ran = subprocess.run([sys.executable, str(SCRIPT), "right"], capture_output=True, text=True)
    assert ran.returncode == 2
    assert "there is no CUDA device here" in ran.stderr
