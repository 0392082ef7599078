"""A run that was stopped, or killed, ends with the very weights of one that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bagel_mot.errors import RecipeError
from bagel_mot.training import checkpoints
from bagel_mot.training.loop import train
from bagel_mot.training.recipe import BagelRecipe
from bagel_mot.training.tasks.bagel import BagelTask


class Quiet(BagelTask):
    """Without sample sheets: they are not what is tested, and take longest."""

    def write_samples(self, path: Path, checkpoint: Path) -> None:
        pass


def _state(run: Path) -> dict[str, Any]:
    state = checkpoints.load_latest(run)
    assert state is not None
    return state


def _assert_same(a: Any, b: Any, where: str = "state") -> None:
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            _assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            _assert_same(x, y, f"{where}[{index}]")
    else:
        assert a == b, where


Make = Callable[..., BagelRecipe]


@pytest.fixture
def uninterrupted(recipe: Make, tmp_path: Path) -> dict[str, Any]:
    whole = recipe(output=tmp_path / "whole", steps=6)
    train(whole, Quiet)
    return _state(whole.output)


def test_stopped_and_resumed(recipe: Make, tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    parts = recipe(output=tmp_path / "parts", steps=6)
    for stop_after in (1, 2, None):  # stops at steps 1 and 3
        train(parts, Quiet, stop_after=stop_after)
    _assert_same(_state(parts.output), uninterrupted)


@pytest.mark.slow
def test_stopped_and_resumed_with_accumulation_in_bfloat16(recipe: Make, tmp_path: Path) -> None:
    """Two packs a step: the data position, packing buffer and random state of both streams."""
    states = []
    for name, stops in (("whole", [None]), ("parts", [1, 2, None])):
        made = recipe(output=tmp_path / name, steps=4, packs_per_step=2, precision="bfloat16", save_every=100)
        for stop_after in stops:
            train(made, Quiet, stop_after=stop_after)
        states.append(_state(made.output))
    _assert_same(*states)
    assert [stream["slots"][0] for stream in states[0]["data"]] == [4 * 2 * 160] * 2  # steps, rows, und slots


def test_killed_in_a_save(
    recipe: Make, tmp_path: Path, uninterrupted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine stops while the second checkpoint is being written: the first one counts."""
    parts = recipe(output=tmp_path / "parts", steps=6)
    real, calls = os.rename, []

    def rename(source: Any, target: Any) -> None:
        calls.extend([target] if Path(target).name.startswith("step-") else [])
        if len(calls) == 2 and target is calls[-1]:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        train(parts, Quiet)
    assert [folder.name for folder in checkpoints.checkpoint_folders(parts.output)] == ["step-00000002"]
    train(parts, Quiet)
    _assert_same(_state(parts.output), uninterrupted)
    assert not list(parts.output.glob(".step-*"))


_TRAIN = """
import json, sys
from bagel_mot.config import parse
from bagel_mot.data.sources import mini
from bagel_mot.training.tasks import bagel as unified
from bagel_mot.training.loop import train
from bagel_mot.training.recipe import BagelRecipe

class Quiet(unified.BagelTask):
    def write_samples(self, path, checkpoint):
        pass

mini._TOKENIZER_TEXTS = 1000
train(parse(BagelRecipe, json.loads(sys.argv[1]), "recipe"), Quiet)
"""


def _process(recipe: BagelRecipe) -> subprocess.Popen[bytes]:
    raw = json.dumps({**recipe.stored(), "output": str(recipe.output)})
    return subprocess.Popen([sys.executable, "-c", _TRAIN, raw], stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_killed_at_any_moment(recipe: Make, tmp_path: Path) -> None:
    """A real SIGKILL, four times: in the middle of a save, and a while after one."""
    changes: dict[str, Any] = {"steps": 8, "save_every": 1, "precision": "bfloat16"}
    whole = recipe(output=tmp_path / "whole", **changes)
    assert _process(whole).wait(120) == 0
    parts = recipe(output=tmp_path / "parts", **changes)
    in_a_save = 0
    for number in range(4):
        before, stale = _names(parts.output), set(parts.output.glob(".step-*"))
        process, end = _process(parts), time.monotonic() + 120
        while process.poll() is None and time.monotonic() < end:
            if number % 2 == 0 and set(parts.output.glob(".step-*")) - stale:
                break
            if number % 2 == 1 and _names(parts.output) - before:
                time.sleep(0.05 * number)
                break
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "killed before it was done"
        in_a_save += bool(set(parts.output.glob(".step-*")) - stale)
    assert in_a_save >= 1
    assert _process(parts).wait(120) == 0
    _assert_same(_state(parts.output), _state(whole.output))


def _names(run: Path) -> set[str]:
    return {folder.name for folder in checkpoints.checkpoint_folders(run)}


def test_only_the_newest_checkpoints_are_kept(recipe: Make) -> None:
    made = recipe(keep=2)
    train(made, Quiet)
    assert [f.name for f in checkpoints.checkpoint_folders(made.output)] == ["step-00000004", "step-00000006"]


def test_a_run_goes_on_without_what_it_was_made_from(
    recipe: Make, tmp_path: Path, uninterrupted: dict[str, Any], autoencoder_folder: Path
) -> None:
    """The autoencoder's run may have moved on, or be gone: a run that has begun keeps its own."""
    source = Path(shutil.copytree(autoencoder_folder, tmp_path / "autoencoder"))
    parts = recipe(output=tmp_path / "parts", steps=6, autoencoder=str(source))
    train(parts, Quiet, stop_after=2)
    shutil.rmtree(source)
    train(parts, Quiet)
    resumed = _state(parts.output)
    assert resumed["recipe"].pop("autoencoder") == str(source)
    assert uninterrupted["recipe"].pop("autoencoder") == str(autoencoder_folder)
    _assert_same(resumed, uninterrupted)


def test_a_run_that_has_begun_refuses_another_model(recipe: Make) -> None:
    """It would go on with its own, and say nothing."""
    made = recipe(steps=4)
    train(made, Quiet, stop_after=1)
    with pytest.raises(RecipeError, match="model.decoder.hidden_size was 32 and is now 64"):
        train(recipe(model={"decoder": {"hidden_size": 64}}), Quiet)
    with pytest.raises(RecipeError, match="init was None and is now 'mini'"):
        train(recipe(model=None, init="mini"), Quiet)
    with pytest.raises(RecipeError, match="optimizer.name was 'muon' and is now 'adamw'"):
        train(recipe(optimizer={"name": "adamw"}), Quiet)
