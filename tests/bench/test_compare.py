"""`benchmarks/compare.py`: verdicts by noise, what can be compared, and its status."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "compare.py"
ROW = "prefill of 256 text tokens"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def row(name: str, runs: Sequence[float], matmul: float | None = None) -> dict[str, Any]:
    times = {"ours": sorted(runs)} | ({} if matmul is None else {"matmul": [matmul, matmul]})
    return {
        "name": name,
        "seconds": {way: found[0] for way, found in times.items()},
        "median_seconds": {way: found[len(found) // 2] for way, found in times.items()},
        "runs": times,
    }


def report(*results: dict[str, Any], tasks: Sequence[dict[str, Any]] = (), **machine: Any) -> dict[str, Any]:
    about = {"processor": "a processor", "threads": 2, **machine}
    shape = {"config": "0.5b", "dtype": "bfloat16", "device": "cpu", "layers": 24}
    return {"machine": about, **shape, "results": list(results), "tasks": list(tasks)}


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ((1.0, 1.01, 1.02), (1.0, 1.0, 1.0), "same"),
        ((1.0, 1.0, 1.0), (1.02, 1.02, 1.02), "same"),  # less than any machine's noise
        ((1.0, 1.0, 1.0), (1.05, 1.05, 1.05), "slower"),
        ((1.05, 1.05, 1.05), (1.0, 1.0, 1.0), "faster"),
        ((1.0, 1.06, 1.3), (1.05, 1.08, 1.1), "same"),  # the old runs lie that far apart
        ((1.0, 1.06, 1.3), (1.2, 1.2, 1.2), "slower"),
        ((1.0,), (1.08,), "same"),  # single runs, of which no noise is known
        ((1.0,), (0.7,), "faster"),
    ],
)
def test_a_verdict_goes_beyond_noise(script: ModuleType, old: Any, new: Any, word: str) -> None:
    (found,) = script.compare(report(row(ROW, old)), report(row(ROW, new)))
    assert found.word == word


def test_a_comparison_with_itself_finds_all_the_same(script: ModuleType) -> None:
    path = SCRIPT.parent / "results" / "bench-0.5b-cpu-bfloat16.json"  # an older one, without its single runs
    old = script.read_report(path)
    verdicts = script.compare(old, old)
    assert len(verdicts) == len(old["results"]) > 5
    assert {found.word for found in verdicts} == {"same"}


def test_two_machines_are_compared_by_their_matmuls(script: ModuleType) -> None:
    old = report(row(ROW, (2.0, 2.0), matmul=1.0), tasks=[row("edit", (9.0, 9.0))], processor="a slow one")
    new = report(row(ROW, (1.2, 1.2), matmul=0.5), tasks=[row("edit", (5.0, 5.0))], processor="a fast one")
    (found,) = script.compare(old, new, relative=True)
    assert (found.old, found.new, found.word) == (2.0, 2.4, "slower")
    with pytest.raises(script.SettingError, match=r"processor.*--relative"):
        script.check_comparable(old, new, relative=False)
    script.check_comparable(old, new, relative=True)


def run(script: ModuleType, folder: Path, old: Any, new: Any, *options: str) -> Result:
    for name, content in (("old", old), ("new", new)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    app = typer.Typer()
    app.command()(script.main)
    return CliRunner().invoke(app, [str(folder / "old.json"), str(folder / "new.json"), *options])


def test_the_status_says_whether_a_row_is_slower(script: ModuleType, tmp_path: Path) -> None:
    good, bad = row(ROW, (1.0, 1.0)), row(ROW, (2.0, 2.0))
    extra = row("text of 1000 tokens", (1.0, 1.0))
    result = run(script, tmp_path, report(good), report(bad, tasks=[extra], busy=True))
    assert result.exit_code == 0
    assert "slower" in result.stdout
    assert "+100.0%" in result.stdout
    assert "only in new.json: text of 1000 tokens" in result.stdout
    assert "new.json was measured on a busy machine" in result.stdout
    assert run(script, tmp_path, report(good), report(bad), "--fail-on-slower").exit_code == 1
    assert run(script, tmp_path, report(bad), report(good), "--fail-on-slower").exit_code == 0


def test_what_cannot_be_compared_is_refused_in_a_sentence(script: ModuleType, tmp_path: Path) -> None:
    good = report(row(ROW, (1.0, 1.0)))
    for new, word in (
        ({**good, "dtype": "float32"}, "float32"),
        ({**good, "layers": 3}, "layers"),
        (report(row("another", (1.0, 1.0))), "no row in common"),
        ([], "no result of bagel bench"),
    ):
        result = run(script, tmp_path, good, new)
        assert result.exit_code == 2
        assert word in result.stderr
        assert "Traceback" not in result.stderr
