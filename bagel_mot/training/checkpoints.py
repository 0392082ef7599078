"""Checkpoints of a run: whole or not there at all.

A checkpoint is a folder `step-00001000` in the official layout (weights averaged by EMA, ready for
`Bagel.from_pretrained`) with what resuming needs beside it: `training_state.json` (recipe, step, places in the data)
and the folder `training_state` (weights, averages and moments in float32, in the layout of PyTorch's distributed
checkpoints, each process's part in a file). Any number of processes reads what any other number wrote.

It is written under a hidden name, flushed to the disk, and renamed when complete; it is removed by the same way back.
So whatever ends the program or the machine, and whenever, a folder with a checkpoint's name is whole. One run at a time
trains in a folder: two would remove each other's checkpoints.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from bagel_mot.errors import CheckpointError, RecipeError, TrainingError
from bagel_mot.files import locked, make_writable_folder, user_path
from bagel_mot.inference.loading import MINI, find_checkpoint
from bagel_mot.parallel.ranks import Ranks
from bagel_mot.training.packaged import maker_of

# PyTorch tells every time that a checkpoint is of one process.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

_NAME = re.compile(r"step-(\d{8})")
STATE_FILE = "training_state.json"
STATE_FOLDER = "training_state"
_EARLIER = "training_state.pt"  # written by earlier versions
_PARTS = {"recipe", "step", "updates", "streams", "data", "averages"}


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
    return sorted(p for p in run.glob("step-*") if _NAME.fullmatch(p.name) and _is_whole(p))


def _is_whole(folder: Path) -> bool:
    return (folder / STATE_FILE).exists() or (folder / _EARLIER).exists()


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
    refuse_untrained(name, output)
    return latest(find_checkpoint(name))


def refuse_untrained(name: str, output: Path) -> None:
    """Checks that a checkpoint is not one that is still to be trained; the hub is not asked. The arguments are those of
    `find`.

    Raises:
        CheckpointError: it is.
    """
    place = user_path(name, CheckpointError)
    is_there = place.exists() and not (place.is_dir() and not any(place.iterdir()))
    if not is_there and name != MINI:
        maker = maker_of(place)
        if maker is not None:
            raise CheckpointError(f"there is no checkpoint in {name} yet: train it first, with `bagel train {maker}`.")
        if not place.is_absolute() and len(place.parts) > 1 and place.parts[0] == output.parts[0]:
            raise CheckpointError(f"there is no checkpoint in {name}: train it first, or give another.")


class Saver:
    """Writes the checkpoints of a run, one at a time, beside the training if that is wanted.

    All processes call the same methods in the same order; the first one writes what is not sharded.

    Attributes:
        newest: the newest whole checkpoint; None before the first.
    """

    def __init__(self, run: Path, keep: int, ranks: Ranks, newest: Path | None, *, background: bool) -> None:
        self.run, self.keep, self.ranks, self.newest = run, keep, ranks, newest
        self.background = background
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[Path] | None = None
        self._given_up = False

    def save(
        self, step: int, tensors: dict[str, Tensor], state: Mapping[str, Any], write_weights: Callable[[Path], None]
    ) -> None:
        """Writes the checkpoint of `step`, then removes all but the newest `keep`.

        Args:
            step: the step.
            tensors: weights, averages and moments, sharded ones as DTensors; changes after this call are not written.
            state: everything else, as JSON.
            write_weights: writes the official layout into a folder; called in the first process alone.

        Raises:
            TrainingError: it, or the one before it, could not be written; the earlier ones are untouched.
        """
        self.wait()
        final = self.run / f"step-{step:08d}"
        with self._told(step):
            self.ranks.from_first(lambda: self._begin(_hidden(final)))
            written = self._write_tensors(tensors, _hidden(final) / STATE_FOLDER)
            text = json.dumps(state)
        if self.background:
            self._pending = self._thread.submit(self._finish, final, text, write_weights, written)
        else:
            self.newest = self._finish(final, text, write_weights, written)

    def poll(self) -> None:
        """Looks whether the save at hand has ended.

        Raises:
            TrainingError: it could not be written.
        """
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Waits for the save at hand.

        Raises:
            TrainingError: it could not be written.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self.newest = pending.result()

    def close(self) -> None:
        """Ends the save at hand without its checkpoint, as after an error; what is written of it is removed later."""
        self._given_up = True
        self._thread.shutdown()

    def _begin(self, temporary: Path) -> None:
        self.run.mkdir(parents=True, exist_ok=True)
        for stale in self.run.glob(".step-*"):
            shutil.rmtree(stale, ignore_errors=True)
        temporary.mkdir()

    def _write_tensors(self, tensors: dict[str, Tensor], folder: Path) -> Future[Any] | None:
        from torch.distributed.checkpoint import state_dict_saver as dcp

        options: dict[str, Any] = {"checkpoint_id": folder, "no_dist": self.ranks.world == 1}
        if self.ranks.world > 1:
            options["process_group"] = self.ranks.checkpoint_group
        if self.background:
            # PyTorch copies the tensors first.
            return dcp.async_save(tensors, **options)  # type: ignore[return-value]
        dcp.save(tensors, **options)
        return None

    def _finish(
        self, final: Path, state: str, write_weights: Callable[[Path], None], written: Future[Any] | None
    ) -> Path:
        temporary = _hidden(final)
        with self._told(int(final.name[5:])):
            if written is not None:
                written.result()  # in the first process: all have written
            if not self.ranks.first:
                return final
            write_weights(temporary)
            (temporary / STATE_FILE).write_text(state, encoding="utf-8")
            _flush_tree(temporary)
            if self._given_up:
                raise TrainingError(f"the checkpoint {final} was given up")
            if final.exists():  # no checkpoint, only called like one: a run goes on after its newest, and saves later
                shutil.rmtree(final)
            os.rename(temporary, final)
            _flush(self.run)
        for old in checkpoint_folders(self.run)[: -self.keep]:
            with suppress(OSError):  # files held open, a mount that is lost: it is tried again after the next save
                _remove(old)
        return final

    @contextmanager
    def _told(self, step: int) -> Iterator[None]:
        """Makes one sentence of what writes to full disks and lost mounts raise, and leaves nothing behind."""
        from torch.distributed.checkpoint.api import CheckpointException

        try:
            yield
        except (OSError, RuntimeError, SafetensorError, CheckpointException) as error:
            if self.ranks.world > 1 and not isinstance(error, OSError | SafetensorError | CheckpointException):
                raise  # another process is gone
            if self.ranks.first:
                shutil.rmtree(_hidden(self.run / f"step-{step:08d}"), ignore_errors=True)
            reason = _first_failure(error) if isinstance(error, CheckpointException) else error
            raise TrainingError(
                f"the checkpoint of step {step} could not be written to {self.run}: {reason}"
            ) from error


def _first_failure(error: Any) -> str:
    """The first failure of any process, on one line."""
    failures: dict[int, Any] = error.failures
    failure, _ = failures[min(failures)]
    return str(failure).partition("\n")[0] or type(failure).__name__


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


def read_state(folder: Path) -> dict[str, Any]:
    """The part of a checkpoint's state that is no tensor: recipe, step, places in the data.

    Raises:
        RecipeError: it is damaged, or an earlier version wrote it.
    """
    if not (folder / STATE_FILE).exists():
        raise RecipeError(
            f"{folder} holds a training state of an earlier version, which this one does not go on from: give another "
            f"output, and the folder as init, and the weights are those of its averages"
        )
    path = folder / STATE_FILE
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        missing = sorted(_PARTS - dict(state).keys())
        if missing:
            raise ValueError(f"it lacks {missing[0]!r}")
        return state
    except (OSError, ValueError, TypeError) as error:
        raise _unreadable(path, error) from error


def stored_tensors(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and type of each tensor that a checkpoint's state holds.

    Raises:
        RecipeError: it is damaged.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    try:
        metadata = FileSystemReader(folder / STATE_FOLDER).read_metadata().state_dict_metadata
        return {name: (part.size, part.properties.dtype) for name, part in metadata.items()}  # type: ignore[union-attr]
    except Exception as error:
        raise _unreadable(folder / STATE_FOLDER, error) from error


def load_tensors(folder: Path, room: dict[str, Tensor], ranks: Ranks) -> None:
    """Reads tensors of a checkpoint's state into the memory that is given, each process its parts.

    Args:
        folder: the checkpoint.
        room: tensors by their names in the state; sharded ones as DTensors. Processes may want different ones.
        ranks: the processes.

    Raises:
        RecipeError: they are damaged, or of another shape.
    """
    from torch.distributed.checkpoint import state_dict_loader as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with torch.no_grad():
            dcp.load(room, checkpoint_id=folder / STATE_FOLDER, no_dist=ranks.world == 1)
    except (Exception, CheckpointException) as error:
        raise _unreadable(folder / STATE_FOLDER, error) from error


def load_latest(run: Path) -> dict[str, Any] | None:
    """The whole state of the newest complete checkpoint, tensors by their names among it; None for a fresh run.

    Raises:
        RecipeError: it is damaged, or an earlier version wrote it.
    """
    folders = checkpoint_folders(run)
    if not folders:
        return None
    state = read_state(folders[-1])
    tensors = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in stored_tensors(folders[-1]).items()}
    load_tensors(folders[-1], tensors, Ranks.alone())
    return state | tensors


def _unreadable(path: Path, error: BaseException) -> RecipeError:
    reason = _first_failure(error) if hasattr(error, "failures") else str(error).partition("\n")[0]
    return RecipeError(f"{path} could not be read ({reason}); remove {path.parent} to resume from the one before")
