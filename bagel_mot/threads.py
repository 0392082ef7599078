"""The number of threads that compute: as many as the work gains from, and no more than the process may use.

PyTorch takes one thread for each core by default, and all of them wait for the last one at the end of every operation.
Where another program, or the quota of a container, keeps one of them from running, all wait: a small model, whose
operations take microseconds, then takes ten times as long as with one thread. The number is therefore chosen:

1. `--threads` of the command line, else the argument `threads` (`Bagel.from_pretrained`, or a recipe), else the
   environment variable BAGEL_THREADS: just so many.
2. Otherwise one thread for each 25 million weights of the model (in training, where one step works on thousands of
   tokens, as many as there are cores), but no more than the cores that the process may use: by its CPU affinity and by
   the CPU quota of its control groups. What PyTorch itself is set to is the upper limit, so that OMP_NUM_THREADS and
   `torch.set_num_threads` can lower the number; PyTorch leaves out the second threads of a core.

It holds while the model computes, in the thread that computes. Afterwards PyTorch is as it was, so that other models of
the same program keep their number. Only a thread that calls PyTorch for the first time in the meantime begins with the
number in use.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

from bagel_mot.errors import SettingError
from bagel_mot.system_files import control_groups

VARIABLE = "BAGEL_THREADS"
MOST_THREADS = 1024
WEIGHTS_PER_THREAD = 25_000_000
"""Weights of a model for which one more thread pays."""

_from_command_line: int | None = None


@dataclass(frozen=True)
class Threads:
    """A number of threads.

    Attributes:
        count: the number.
        asked: whether the user gave it; otherwise it is an upper limit beside PyTorch's own number.
    """

    count: int
    asked: bool = False

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Lets PyTorch compute with so many threads in the calling thread, and with as many as before at the end."""
        import torch  # here, because the command line needs the rest of this file before it needs PyTorch

        before = torch.get_num_threads()
        count = self.count if self.asked else min(self.count, before)
        if count == before:
            yield
            return
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def choose_threads(weights: int | None = None, asked: int | None = None, processes: int = 1) -> Threads:
    """The number of threads for some work, by the rule above.

    Args:
        weights: the number of weights of the model; None for work that gains from every core.
        asked: the number that the user gave as an argument, if any.
        processes: the number of processes that do the work together on this machine, and share its cores.

    Raises:
        SettingError: the number that was asked for is not a whole number from 1 to 1024.
    """
    if _from_command_line is not None:
        return Threads(_from_command_line, asked=True)
    if asked is not None:
        return Threads(_checked(asked, "threads"), asked=True)
    if text := os.environ.get(VARIABLE, "").strip():
        return Threads(_checked(int(text) if text.isdecimal() and len(text) < 10 else text, VARIABLE), asked=True)
    cores = max(1, usable_cores() // processes)
    return Threads(cores if weights is None else max(1, min(cores, weights // WEIGHTS_PER_THREAD)))


def set_from_command_line(count: int | None) -> None:
    """Sets the number for the whole process, as `--threads` does; None lets it be chosen again."""
    global _from_command_line
    _from_command_line = None if count is None else _checked(count, "--threads")


def _checked(value: object, name: str) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or not 1 <= int(value) <= MOST_THREADS:
        raise SettingError(f"{name} is {value!r}: it must be a whole number from 1 to {MOST_THREADS}.")
    return int(value)


def usable_cores() -> int:
    """The cores that this process may use: by its CPU affinity, and by the quota of its control groups, rounded down;
    at least one.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    cores = (os.cpu_count() or 1) if affinity is None else len(affinity(0))
    quotas = (_quota(hierarchy, group) for hierarchy, group in control_groups("cpu"))
    return max(1, int(min((cores, *(quota for quota in quotas if quota is not None)))))


def _quota(hierarchy: str, group: Path) -> float | None:
    """The cores' worth of time that a control group may take; None without a limit."""
    try:
        if hierarchy:
            allowed, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        else:
            allowed, period = (group / "cpu.max").read_text().split()
        quota = None if allowed == "max" else int(allowed) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return quota if quota is not None and quota > 0 else None  # version 1 has -1 for no limit
