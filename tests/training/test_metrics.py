"""Reports by themselves; those of a run are in test_loop.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from bagel.training.metrics import METRICS_FILE, Averages, Metrics


def test_a_run_begun_anew_keeps_no_old_metrics(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_text('{"step": 3}\n{"step": 6}\nnot a report\n')
    with Metrics(tmp_path, 10, 0):
        pass
    assert (tmp_path / METRICS_FILE).read_text() == ""
    (tmp_path / METRICS_FILE).write_text('{"step": 3}\n{"step": 6}\n')
    with Metrics(tmp_path, 10, 3):
        pass
    assert (tmp_path / METRICS_FILE).read_text() == '{"step": 3}\n'


def test_averages_are_over_the_steps_since_they_were_taken() -> None:
    first = Averages()
    first.add({"loss": 1.0})
    second = Averages()
    second.load_state_dict(first.state_dict())
    second.add({"loss": 4.0})
    assert second.take() == {"loss": 2.5}
    assert second.take() == {}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_ends_no_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Metrics(tmp_path, 10, 0) as metrics:
        metrics._file.close()
        metrics._file = open("/dev/full", "a", encoding="utf-8")  # noqa: SIM115
        metrics.report(1, {"loss": 1.0})
        metrics.report(2, {"loss": 0.5})
    told = capsys.readouterr().out
    assert told.count("cannot be written: No space left on device") == 2
    assert "step 2/10" in told
