"""Figures of a busy machine are not stored, or are marked, as the user wishes; how busy it is, is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bagel_mot.bench import busy
from bagel_mot.bench.busy import OtherProcesses
from bagel_mot.cli import app


def report(share: float) -> dict[str, Any]:
    machine = {"processor": "a processor", "threads": 2, "others_share": share, "busy": share > busy.QUIET_SHARE}
    memory: dict[str, int] = {}
    return {
        "machine": machine, "layers": 2, "of_layers": 2, "dtype": "float32", "device": "cpu", "results": [],
        "tasks": [], "summary": {}, "weights_bytes": 10, "peak_memory_bytes": memory,
    }  # fmt: skip


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What others take before the measurement and during it."""
    found = {"before": 0.02, "during": 0.02}
    monkeypatch.setattr("bagel_mot.bench.busy.share_of_others", lambda: found["before"])
    monkeypatch.setattr("bagel_mot.bench.bench", lambda *_, **__: report(found["during"]))
    return found


def run(*options: str) -> Any:
    return CliRunner().invoke(app, ["bench", "--config", "golden", *options])


def test_figures_of_a_quiet_machine_are_stored(shares: dict[str, float], tmp_path: Path) -> None:
    assert run("--json", str(tmp_path / "found.json")).exit_code == 0
    assert json.loads((tmp_path / "found.json").read_text())["machine"]["busy"] is False


@pytest.mark.parametrize("when", ["before", "during"])
def test_figures_of_a_busy_machine_are_refused(shares: dict[str, float], tmp_path: Path, when: str) -> None:
    shares[when] = 0.63
    result = run("--json", str(tmp_path / "found.json"))
    assert result.exit_code == 2
    assert "63% of the cores" in result.stderr
    assert "--allow-busy" in result.stderr
    assert not (tmp_path / "found.json").exists()
    printed = "whole tasks" in result.stdout or "memory:" in result.stdout
    assert printed == (when == "during")  # what was measured is shown


def test_they_are_stored_and_marked_where_that_is_allowed(shares: dict[str, float], tmp_path: Path) -> None:
    shares |= {"before": 0.63, "during": 0.63}
    result = run("--allow-busy", "--json", str(tmp_path / "found.json"))
    assert result.exit_code == 0
    assert json.loads((tmp_path / "found.json").read_text())["machine"]["busy"] is True
    assert "other processes took 63% of the cores" in result.stdout


def test_a_busy_machine_may_be_measured_for_a_look(shares: dict[str, float]) -> None:
    shares |= {"before": 0.63, "during": 0.63}
    assert run().exit_code == 0


def test_the_time_of_others_is_that_of_all_without_our_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    own = [0.0]
    monkeypatch.setattr(busy, "_STAT", stat)
    monkeypatch.setattr(busy.os, "sysconf", lambda _: 100)

    class Times:
        system = children_user = children_system = 0.0

        @property
        def user(self) -> float:
            return own[0]

    monkeypatch.setattr(busy.os, "times", Times)
    stat.write_text("cpu  1000 0 0 5000 0 0 0 0 0 0\ncpu0 …\n")
    others = OtherProcesses()
    own[0] = 2.0
    stat.write_text("cpu  1500 0 100 5300 100 0 0 0 0 0\ncpu0 …\n")
    assert others.share() == pytest.approx((6.0 - 2.0) / 10.0)  # of ten seconds of all cores six busy, two our own
    assert others.facts()["busy"] is True
    own[0] = 6.0
    assert others.share() == 0.0
    assert others.facts()["busy"] is False


def test_elsewhere_the_load_average_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(busy, "_STAT", tmp_path / "there is none")
    monkeypatch.setattr(busy.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(busy.os, "getloadavg", lambda: (2.0, 1.0, 1.0))
    assert OtherProcesses().share() == 0.5
    monkeypatch.delattr(busy.os, "getloadavg")
    assert OtherProcesses().facts() == {"load_before": None, "load_after": None, "others_share": None, "busy": False}
