"""The time that the embedded model takes on a busy machine, beside that on a quiet one."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from bagel_mot.threads import usable_cores

AIM = 3.0
"""The busy time as a multiple of the quiet time, at most."""


def threads_check(rounds: int = 5) -> dict[str, Any]:
    """Draws with `mini` by its defaults, quiet and then beside as many busy processes as there are cores.

    Args:
        rounds: images drawn in each of the two; the median time counts.

    Returns: cores, threads, the seconds of both and their ratio.
    """
    from bagel_mot.inference.api import Bagel

    with Bagel.from_pretrained("mini", device="cpu") as bagel:
        bagel.generate("a red car", seed=0)
        quiet = _seconds(bagel, rounds)
        with _busy(usable_cores()):
            busy = _seconds(bagel, rounds)
        threads = bagel.engine.threads.count
    return {
        "cores": usable_cores(),
        "threads": threads,
        "quiet_seconds": quiet,
        "busy_seconds": busy,
        "ratio": busy / quiet,
        "aim": AIM,
    }


def _seconds(bagel: Any, rounds: int) -> float:
    times = []
    for seed in range(rounds):
        started = time.perf_counter()
        bagel.generate("a red car", seed=seed)
        times.append(time.perf_counter() - started)
    return median(times)


@contextmanager
def _busy(count: int) -> Iterator[None]:
    """Keeps `count` processes computing."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(0.5)
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()
