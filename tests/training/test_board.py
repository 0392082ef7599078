"""What TensorBoard shows of a run, read with TensorBoard's own reader."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bagel_mot.training.board import Board
from bagel_mot.training.metrics import Metrics

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def events_of(folder: Path) -> Any:
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return events


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("events.out.tfevents.*"))


def test_a_resumed_run_continues_one_file(tmp_path: Path) -> None:
    for start, steps in ((0, (2, 4, 6)), (4, (6, 8)), (8, (10,))):
        with Metrics(tmp_path, 10, start) as metrics:
            for step in steps:
                metrics.report(step, {"loss": 10.0 * start + step})
    assert len(files_of(tmp_path / "tensorboard")) == 1
    losses = events_of(tmp_path / "tensorboard").Scalars("loss")
    assert [(event.step, event.value) for event in losses] == [(2, 2), (4, 4), (6, 46), (8, 48), (10, 90)]
    assert [event.wall_time for event in losses] == sorted(event.wall_time for event in losses)


def test_a_run_that_writes_nothing_changes_nothing(tmp_path: Path) -> None:
    with Metrics(tmp_path, 4, 0):
        pass
    assert not (tmp_path / "tensorboard").exists()
    with Metrics(tmp_path, 4, 0) as metrics:
        metrics.report(4, {"loss": 1.0})
    before = [(path, path.read_bytes()) for path in files_of(tmp_path / "tensorboard")]
    with Metrics(tmp_path, 4, 4):
        pass
    assert before == [(path, path.read_bytes()) for path in files_of(tmp_path / "tensorboard")]


def test_a_file_that_was_cut_off_is_taken_over_as_far_as_it_goes(tmp_path: Path) -> None:
    board = Board(tmp_path, 0)
    board.add_scalars({"loss": 1.0}, 1)
    board.add_scalars({"loss": 2.0}, 2)
    board.close()
    (path,) = files_of(tmp_path)
    path.write_bytes(path.read_bytes()[:-5])
    board = Board(tmp_path, 2)
    board.add_scalars({"loss": 3.0}, 3)
    board.close()
    assert [event.step for event in events_of(tmp_path).Scalars("loss")] == [1, 3]


def test_samples_are_shown_with_their_texts(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    sheet = tmp_path / "step-00000004.png"
    Image.fromarray(pixels).save(sheet)
    sheet.with_suffix(".json").write_text(json.dumps([{"question": "a|b?", "right": 3, "said": "3"}]))
    with Metrics(tmp_path, 4, 0) as metrics:
        metrics.samples(4, sheet)
        metrics.samples(5, tmp_path / "none.png")  # a source that draws no samples
    events = events_of(tmp_path / "tensorboard")
    (image,) = events.Images("samples")
    assert image.step == 4
    with Image.open(io.BytesIO(image.encoded_image_string)) as shown:
        assert np.array_equal(np.asarray(shown), pixels)
    (text,) = events.Tensors("samples/text_summary")
    assert text.tensor_proto.string_val == [b"| question | right | said |\n| --- | --- | --- |\n| a\\|b? | 3 | 3 |"]
