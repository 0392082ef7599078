"""Checkpoints of a run: whole or not there at all.

A checkpoint is a folder `step-00001000` in the official layout (weights averaged by EMA, ready for
`Bagel.from_pretrained`) plus `training_state.pt`, which holds what resuming needs. It is written under a hidden name,
flushed to the disk, and renamed when complete; it is removed by the same way back. So whatever ends the program or the
machine, and whenever, a folder with a checkpoint's name is whole. One process at a time trains in a run's folder: two
would remove each other's checkpoints.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from bagel_mot.errors import CheckpointError, RecipeError, TrainingError
from bagel_mot.files import locked, make_writable_folder, user_path
from bagel_mot.inference.loading import MINI, find_checkpoint
from bagel_mot.training.packaged import maker_of

_NAME = re.compile(r"step-(\d{8})")
STATE_FILE = "training_state.pt"
_PARTS = {"recipe", "step", "module", "optimizers", "ema", "streams", "data", "averages"}


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Makes the folder of a run where there is none, and keeps other processes out of it until this one ends.

    Raises:
        TrainingError: if the folder cannot be made or written to, or a run is being trained in it.
    """
    with ExitStack() as stack:
        try:
            make_writable_folder(folder)
            stack.enter_context(locked(folder, folder))
        except BlockingIOError as error:
            raise TrainingError(
                f"a run is being trained in {folder} already: wait for its end, or give another output"
            ) from error
        except OSError as error:
            raise TrainingError(
                f"the folder {folder} cannot be made or written to ({error.strerror or error}): give another output"
            ) from error
        yield


def checkpoint_folders(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted(p for p in run.glob("step-*") if _NAME.fullmatch(p.name) and (p / STATE_FILE).exists())


def latest(folder: Path) -> Path:
    """The newest checkpoint of a run's folder; a folder that is no run's is taken as a checkpoint itself."""
    folders = checkpoint_folders(folder)
    return folders[-1] if folders else folder


def find(name: str, output: Path) -> Path:
    """The checkpoint that a recipe starts from: "mini", a run's folder, a checkpoint's, or a hub id.

    Args:
        name: the name in the recipe. One that begins as `output` does, or is the output of a packaged recipe, is a
            path, and never a hub id.
        output: the output of the recipe.

    Raises:
        CheckpointError: there is none, or it cannot be downloaded.
    """
    place = user_path(name, CheckpointError)
    is_there = place.exists() and not (place.is_dir() and not any(place.iterdir()))
    if not is_there and name != MINI:
        maker = maker_of(place)
        if maker is not None:
            raise CheckpointError(f"there is no checkpoint in {name} yet: train it first, with `bagel train {maker}`.")
        if not place.is_absolute() and len(place.parts) > 1 and place.parts[0] == output.parts[0]:
            raise CheckpointError(f"there is no checkpoint in {name}: train it first, or give another.")
    return latest(find_checkpoint(name))


def save(run: Path, step: int, state: dict[str, Any], write_weights: Callable[[Path], None], keep: int) -> Path:
    """Writes the checkpoint of `step`, then removes all but the newest `keep`.

    Raises:
        TrainingError: if it could not be written; the earlier ones are untouched.
    """
    final = run / f"step-{step:08d}"
    temporary = _hidden(final)
    try:
        run.mkdir(parents=True, exist_ok=True)
        for stale in run.glob(".step-*"):
            shutil.rmtree(stale, ignore_errors=True)
        temporary.mkdir()
        write_weights(temporary)
        torch.save(state, temporary / STATE_FILE)
        _flush_tree(temporary)
        if final.exists():  # no checkpoint, only called like one: a run goes on after its newest, and saves later ones
            shutil.rmtree(final)
        os.rename(temporary, final)
        _flush(run)
    except (OSError, RuntimeError, SafetensorError) as error:  # raised by writes to full disks and lost mounts
        shutil.rmtree(temporary, ignore_errors=True)
        raise TrainingError(f"the checkpoint of step {step} could not be written to {run}: {error}") from error
    for old in checkpoint_folders(run)[:-keep]:
        with suppress(OSError):  # files held open, a mount that is lost: it is tried again after the next save
            _remove(old)
    return final


def _hidden(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}")


def _remove(folder: Path) -> None:
    """Under a hidden name first: a checkpoint must not lose its files one by one."""
    os.rename(folder, _hidden(folder))
    shutil.rmtree(_hidden(folder))


def _flush_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _flush(path)
    _flush(folder)


def _flush(path: Path) -> None:
    """Has the system write a file, or the names in a folder, to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders, and writes their names in order
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load_latest(run: Path) -> dict[str, Any] | None:
    """The training state of the newest complete checkpoint, or None for a fresh run."""
    folders = checkpoint_folders(run)
    if not folders:
        return None
    path = folders[-1] / STATE_FILE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        missing = sorted(_PARTS - dict(state).keys())
        if missing:
            raise ValueError(f"it lacks {missing[0]!r}")
        return state
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise RecipeError(
            f"{path} could not be read ({reason}); remove {folders[-1]} to resume from the one before"
        ) from error
