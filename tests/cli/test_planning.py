"""`bagel info --plan`, `--offload` and `--memory`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bagel_mot.cli import app

runner = CliRunner()


def planned(*arguments: str) -> dict[str, Any]:
    result = runner.invoke(app, ["info", *arguments, "--plan", "--json", "-"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_gpu_that_is_not_here_can_be_planned_for() -> None:
    found = planned("7b-mot", "--memory", "12GB", "--ram", "64GB")
    assert found["devices"] == {"cuda:0": 12 * 10**9}
    (chosen,) = (plan for plan in found["plans"] if plan["chosen"])
    assert chosen["fits"]
    assert chosen["offload"] == "cpu"
    assert max(chosen["device_bytes"].values()) < 12 * 10**9
    assert chosen["device_bytes"].keys() == {"generate 1024×1024", "edit 2 of 1024×1024", "understand 980×980"}
    assert chosen["where"] in found["chosen"]


def test_without_enough_memory_it_says_so() -> None:
    found = planned("7b-mot", "--ram", "3GB")
    assert found["chosen"] is None
    assert "does not fit" in found["reason"]


def test_the_table_marks_what_is_chosen() -> None:
    result = runner.invoke(app, ["info", "mini", "--plan"])
    assert result.exit_code == 0
    assert "→" in result.stdout
    assert "chosen: float32 on cpu" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "mini", "--memory", "12GB"], "for --plan"),
        (["info", "mini", "--plan", "--memory", "lots"], "'lots' is not a size"),
        (["generate", "a star", "--offload", "moon"], "offload is 'moon'"),
        (["generate", "a star", "--device", "cpu", "--memory", "1MB"], "does not fit"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = runner.invoke(app, [*arguments, *(["-o", str(tmp_path / "x.png")] if "generate" in arguments else [])])
    assert result.exit_code == 2
    assert message in result.output
    assert not list(tmp_path.iterdir())


def test_what_was_chosen_is_said(tmp_path: Path) -> None:
    target = str(tmp_path / "star.png")
    result = runner.invoke(app, ["generate", "a star", "--device", "cpu", "--memory", "4GB", "-o", target])
    assert result.exit_code == 0
    assert "running in float32 on cpu: at most" in result.output


def test_plans_are_in_the_order_that_is_preferred() -> None:
    machine = ("7b-mot", "--memory", "12GB", "--ram", "32GB")
    chosen = {}
    for prefer in ("quality", "speed", "memory"):
        found = planned(*machine, "--prefer", prefer)
        fitting = [plan for plan in found["plans"] if plan["fits"]]
        chosen[prefer] = next(plan for plan in fitting if plan["chosen"])
        assert found["why"]
        if prefer == "speed":
            assert chosen[prefer]["relative_seconds"] == min(plan["relative_seconds"] for plan in fitting)
    assert not chosen["quality"]["lossy"]
    assert chosen["speed"]["relative_seconds"] < chosen["quality"]["relative_seconds"]
    assert "int4" in planned(*machine)["why"] or "nf4" in planned(*machine)["why"]
    assert "loses accuracy" in planned(*machine)["why"]
    result = runner.invoke(app, ["info", "7b-mot", "--plan", "--prefer", "looks"])
    assert result.exit_code == 2
    assert "'quality', 'speed', 'memory'" in result.stderr
