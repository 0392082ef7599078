"""`--workers`: the same command in several processes, which find one another as those of torchrun do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence


def is_worker() -> bool:
    """Whether this process is one of several already."""
    return int(os.environ.get("WORLD_SIZE", "1") or "1") > 1


def run_workers(arguments: Sequence[str], count: int) -> int:
    """Runs `bagel ARGUMENTS` in `count` processes; returns the largest of their exit statuses.

    Ctrl-C reaches all of them; they are waited for.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": str(port)}  # fmt: skip
    processes = []
    for rank in range(count):
        environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(subprocess.Popen([sys.executable, "-m", "bagel_mot", *arguments], env=environment))
    try:
        statuses = [process.wait() for process in processes]
    except KeyboardInterrupt:
        for process in processes:
            process.wait()
        raise
    return max(status if status >= 0 else 128 - status for status in statuses)
