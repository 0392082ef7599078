"""Weights & Biases offline: the run's file holds what was written, and a resumed run goes on with the same run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from bagel_mot.errors import RecipeError
from bagel_mot.training.wandb_board import WandbBoard, WandbConfig


def test_without_the_package_the_recipe_is_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(RecipeError, match=r"wandb: the package is missing: run pip install .*\[wandb\]"):
        WandbConfig().check()


@pytest.mark.slow
def test_offline_a_run_is_written_into_its_folder_and_gone_on_with(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    sheet = tmp_path / "sheet.png"
    Image.new("RGB", (8, 8)).save(sheet)
    config = WandbConfig(project="test", offline=True)
    for start in (0, 2):
        board = WandbBoard(config, tmp_path, {"steps": 4})
        board.add_scalars({"ce": 1.5 + start}, start + 1)
        board.add_sheet(sheet, start + 1)
        board.add_sheet(tmp_path / "missing.png", start + 1)
        board.close()
    runs = list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(runs) == 2
    assert len({run.name for run in runs}) == 1, "both parts have one id"
    assert len(list((tmp_path / "wandb").glob("offline-run-*/files/media/images/samples_*.png"))) == 2
    assert b"ce" in runs[0].read_bytes()
