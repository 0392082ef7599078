"""Checkpoints of a run: whole or not there at all.

A checkpoint is a folder `step-00001000` in the official layout (weights averaged by EMA, ready for
`Bagel.from_pretrained`) plus `training_state.pt`, which holds what resuming needs. It is written under a temporary
name and renamed when complete.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bagel.errors import RecipeError

_NAME = re.compile(r"step-(\d{8})")
STATE_FILE = "training_state.pt"


def checkpoint_folders(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted(p for p in run.glob("step-*") if _NAME.fullmatch(p.name) and (p / STATE_FILE).exists())


def latest(folder: Path) -> Path:
    """The newest checkpoint of a run's folder; a folder that is no run's is taken as a checkpoint itself."""
    folders = checkpoint_folders(folder)
    return folders[-1] if folders else folder


def save(run: Path, step: int, state: dict[str, Any], write_weights: Callable[[Path], None], keep: int) -> Path:
    """Writes the checkpoint of `step`, then removes all but the newest `keep`."""
    run.mkdir(parents=True, exist_ok=True)
    for stale in run.glob(".step-*"):
        shutil.rmtree(stale)
    final = run / f"step-{step:08d}"
    temporary = run / f".{final.name}"
    temporary.mkdir()
    write_weights(temporary)
    with open(temporary / STATE_FILE, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    if final.exists():  # the very same step, saved before: resuming from it and saving again
        shutil.rmtree(final)
    os.rename(temporary, final)
    for old in checkpoint_folders(run)[:-keep]:
        shutil.rmtree(old)
    return final


def load_latest(run: Path) -> dict[str, Any] | None:
    """The training state of the newest complete checkpoint, or None for a fresh run."""
    folders = checkpoint_folders(run)
    if not folders:
        return None
    path = folders[-1] / STATE_FILE
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise RecipeError(
            f"{path} could not be read ({error}); remove {folders[-1]} to resume from the one before"
        ) from error
