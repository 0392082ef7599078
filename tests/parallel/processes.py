"""Runs of several processes on one machine, connected as torchrun connects them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import bagel_mot

ROOT = Path(bagel_mot.__file__).parents[1]
LIMIT = 900.0
"""Seconds after which processes hang: many times what any run takes, so that a busy machine is not taken for it."""


def start(count: int, *arguments: str) -> list[subprocess.Popen[str]]:
    """Starts `python ARGUMENTS` so many times, as the processes of one run."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Waits for processes: the exit status, output and errors of each."""
    try:
        said = [process.communicate(timeout=LIMIT) for process in processes]
        return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]
    finally:
        for process in processes:
            process.kill()


def run(count: int, *arguments: str) -> list[str]:
    """Runs processes that are to succeed; the output of each."""
    found = finish(start(count, *arguments))
    wrong = [f"process {n}: status {status}\n{out}\n{err}" for n, (status, out, err) in enumerate(found) if status]
    assert not wrong, "\n".join(wrong)[-6000:]
    return [out for _, out, _ in found]
