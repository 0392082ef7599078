"""The effect of other processes on measurements: the share of the cores that they take, and how much longer the
embedded model takes on a busy machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from bagel_mot.threads import usable_cores

AIM = 3.0
"""The busy time as a multiple of the quiet time, at most."""
QUIET_SHARE = 0.1
"""The share of all cores that other processes may take while figures are measured that are to be stored."""
_STAT = Path("/proc/stat")


class OtherProcesses:
    """The work of other processes from the moment that this is made on.

    Where the system counts the time of its cores (Linux), it is what they were busy with beyond this process and those
    that it has waited for; elsewhere the load average at the beginning, by which time this process has hardly worked.
    """

    def __init__(self) -> None:
        self._load = _load()
        self._began = self._now()

    def _now(self) -> tuple[float, float] | None:
        """(seconds of all cores that others were busy, seconds of all cores), since the system was started."""
        try:
            times = [int(count) for count in _STAT.read_text(encoding="utf-8").split("\n", 1)[0].split()[1:9]]
            tick = os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, AttributeError):
            return None
        idle = times[3] + times[4]  # waiting for a disk is idle
        own = os.times()
        mine = own.user + own.system + own.children_user + own.children_system
        return (sum(times) - idle) / tick - mine, sum(times) / tick

    def share(self) -> float | None:
        """The share of all cores that other processes have taken, from 0 to 1; None where no system tells."""
        now = self._now()
        if self._began is None or now is None:
            return None if self._load is None else min(1.0, self._load / (os.cpu_count() or 1))
        (busy, whole), (busy_before, whole_before) = now, self._began
        if whole <= whole_before:
            return 0.0
        return min(1.0, max(0.0, (busy - busy_before) / (whole - whole_before)))

    def facts(self) -> dict[str, Any]:
        """Load averages at the beginning and now, and the share; `busy` says that figures are not to be trusted."""
        share = self.share()
        return {
            "load_before": self._load,
            "load_after": _load(),
            "others_share": share,
            "busy": share is not None and share > QUIET_SHARE,
        }


def busy_sentence(share: float) -> str:
    """The sentence that refuses figures of a busy machine, whose others take `share` of its cores."""
    return (
        f"other processes take {share:.0%} of the cores, and figures are stored where they take {QUIET_SHARE:.0%} at "
        "most: end them or wait, or give --allow-busy, which stores the figures marked as those of a busy machine."
    )


def share_of_others(seconds: float = 0.5) -> float | None:
    """The share of all cores that other processes take, watched for some seconds; None where no system tells."""
    others = OtherProcesses()
    time.sleep(seconds)
    return others.share()


def _load() -> float | None:
    """The load average of the last minute; None on systems that have none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


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
