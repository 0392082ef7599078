"""`bagel info --plan`, `--offload` and `--memory`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from bagel_mot.cli import app
from bagel_mot.cli.planning import _duration

runner = CliRunner()


@pytest.fixture(autouse=True)
def _measured_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bagel_mot.placement.rates._BUDGET", 0.0)


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


@pytest.mark.slow
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


def test_seconds_are_predicted_for_what_is_here_and_for_nothing_else() -> None:
    found = planned("7b-mot", "--memory", "24GB", "--ram", "64GB")
    assert list(found["measured"]) == ["cpu"]
    assert found["measured"]["cpu"]["memory_bytes_per_second"] > 0
    for plan in found["plans"]:
        if plan["where"] == "cpu":
            assert all(seconds > 0 for seconds in plan["predicted_seconds"].values())
            assert list(plan["predicted_seconds"]) == [*plan["host_bytes"], "token of an answer"]
        else:
            assert plan["predicted_seconds"] is None, "an imagined GPU, or layers on the disk"
    shown = runner.invoke(app, ["info", "7b-mot", "--plan", "--ram", "64GB"]).stdout
    assert "predicted: generate" in shown
    assert "predicted: edit" in shown
    assert "predicted: token" in shown
    assert "predicted from rates of the cpu measured just now: drawings with 50 timesteps" in shown
    small = runner.invoke(app, ["info", "mini", "--plan"]).stdout
    assert "predicted" not in small, "its time does not follow from them"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.3512, "0.35 s"), (119, "120 s"), (1740, "29 min"), (15000, "4.2 h"), (None, "")]
)
def test_durations_are_read_at_a_glance(seconds: float | None, text: str) -> None:
    assert _duration(seconds) == text


def test_every_command_that_loads_weights_chooses_by_the_same_preference() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    loading = {name for name, one in commands.items() if any(param.name == "offload" for param in one.params)}
    assert loading == {"generate", "edit", "ask", "chat", "app", "serve", "demo", "eval"}
    for name in (*loading, "info"):
        (prefer,) = (param for param in commands[name].params if param.name == "prefer")
        assert (prefer.opts, prefer.default) == (["--prefer"], "quality"), name


@pytest.mark.parametrize(("prefer", "precision"), [("quality", "float32"), ("speed", "bfloat16")])
def test_what_is_preferred_is_what_runs(prefer: str, precision: str, tmp_path: Path) -> None:
    report = tmp_path / "answer.json"
    arguments = ["ask", "what is red?", "--max-new-tokens", "1", "--device", "cpu", "--prefer", prefer]
    result = runner.invoke(app, [*arguments, "--json", str(report)])
    assert result.exit_code == 0, result.output
    (chosen,) = (plan for plan in planned("mini", "--prefer", prefer)["plans"] if plan["chosen"])
    assert chosen["precision"] == precision
    assert (f"running in {precision} on cpu" in result.stderr) == (prefer != "quality")
    refused = runner.invoke(app, [*arguments[:-1], "looks"])
    assert refused.exit_code == 2
    assert "prefer is 'looks': it must be 'quality', 'speed', 'memory'" in refused.stderr
