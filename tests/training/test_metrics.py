"""Reports by themselves; those of a run are in test_loop.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bagel_mot.errors import TrainingError
from bagel_mot.training.metrics import METRICS_FILE, Averages, Metrics


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
    assert first.settle() == [{"loss": 1.0}]
    second = Averages()
    second.load_state_dict(first.state_dict())
    second.add({"loss": torch.tensor(4.0)})
    second.add({"other": 7.0})
    assert second.settle() == [{"loss": 4.0}, {"other": 7.0}]
    assert second.settle() == []
    assert second.take() == {"loss": 2.5, "other": 7.0}
    assert second.take() == {}


def test_a_line_that_lost_its_end_is_not_glued_to_the_next(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_text('{"step": 20}')
    with Metrics(tmp_path, 40, 20) as metrics:
        metrics.report(30, {"loss": 1.0})
    assert [json.loads(line)["step"] for line in (tmp_path / METRICS_FILE).read_text().splitlines()] == [20, 30]


def test_where_no_metrics_can_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).mkdir()
    with pytest.raises(TrainingError, match=r"metrics.jsonl cannot be written: Is a directory"):
        Metrics(tmp_path, 10, 0)


def test_tensorboard_that_cannot_be_written_ends_no_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    with Metrics(tmp_path, 10, 0) as metrics:
        metrics.report(1, {"loss": 1.0})
    (tmp_path / "tensorboard").unlink()
    with Metrics(tmp_path, 10, 1) as metrics:
        board = metrics._board
        metrics.report(1, {"loss": 1.0})

        def full(*arguments: object) -> None:
            raise OSError(28, "No space left on device")

        board._writer.add_scalar = full
        metrics.report(2, {"loss": 1.0})
        metrics.report(3, {"loss": 1.0})
    board._writer.close()
    told = capsys.readouterr().out
    assert told.count("TensorBoard's file cannot be written") == 2
    assert "step 3/10" in told


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
