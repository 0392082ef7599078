"""`--workers`: the same command in several processes, which find one another as those of torchrun do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from bagel_mot.errors import EvaluationError

_PARENT = "BAGEL_WORKERS_PARENT"  # the process that started this one
_POLL = 0.1  # seconds
_PATIENCE = 10.0  # seconds that a process has to end by itself


def is_worker() -> bool:
    """Whether this process is one of several already."""
    return int(os.environ.get("WORLD_SIZE", "1") or "1") > 1


def run_workers(arguments: Sequence[str], count: int) -> int:
    """Runs `bagel ARGUMENTS` in `count` processes; returns the largest of their exit statuses.

    None of them outlives this process, however it ends, nor one of the others that is killed: they would wait for it.

    Raises: EvaluationError if one of them was ended from outside.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": str(port), _PARENT: str(os.getpid())}  # fmt: skip
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(count):
            environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(subprocess.Popen([sys.executable, "-m", "bagel_mot", *arguments], env=environment))
        while True:
            statuses = [process.poll() for process in processes]
            for rank, status in enumerate(statuses):
                if status is not None and status < 0:
                    raise EvaluationError(
                        f"process {rank} of {count} was ended from outside ({signal.Signals(-status).name}): what is "
                        "done is kept, and the same command goes on from there."
                    )
            if None not in statuses:
                return max(status for status in statuses if status is not None)
            time.sleep(_POLL)
    except KeyboardInterrupt:  # Ctrl-C reaches all of them, but a signal to this process alone does not
        _wait(processes, _PATIENCE / 2)
        raise
    finally:
        _end(processes)


def _wait(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Waits until all have ended, but no longer than some seconds."""
    end = time.monotonic() + seconds
    while any(process.poll() is None for process in processes) and time.monotonic() < end:
        time.sleep(_POLL)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends those that still run: they are asked first, then killed."""
    for process in processes:
        process.terminate()
    _wait(processes, _PATIENCE)
    for process in processes:
        process.kill()
        process.wait()


def end_with_parent() -> None:
    """Ends this process soon after the one that started it as a worker is gone."""
    parent = int(os.environ.get(_PARENT, "0"))
    if parent:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(5 * _POLL)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_PATIENCE)  # the main thread may be within a long computation
    os._exit(1)
