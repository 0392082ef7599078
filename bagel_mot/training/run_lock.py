"""One process to a run: two would remove each other's checkpoints."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from bagel_mot.errors import TrainingError

LOCK_FILE = ".lock"


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Makes the folder of a run where there is none, and keeps other processes out of it.

    The lock ends with the process, however that ends; its file stays and says nothing.

    Raises:
        TrainingError: if the folder cannot be made or written to, or a run is being trained in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK_FILE, "a", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise TrainingError(
            f"the folder {folder} cannot be made or written to ({error.strerror or error}): give another output"
        ) from error
    with file:
        if not _lock(file):
            raise TrainingError(f"a run is being trained in {folder} already: wait for its end, or give another output")
        yield


def _lock(file: IO[str]) -> bool:
    """False where somebody else holds the lock. Where the system or the file system has no locks, all is let in."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
