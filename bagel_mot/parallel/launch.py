"""The processes of a run: found by the environment that torchrun or SLURM sets, connected, and ended together.

The first process that fails says why, in one sentence; the others end without a word. They learn of it by a key in the
store through which they found one another, which a thread looks at, or because a connection breaks. Whoever waits for a
process that will never come is ended by that thread. The first process, which has the store, goes last: without it the
others could not tell its failure from its death.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from bagel_mot.errors import BagelError, SettingError, TrainingError

_FAILURE, _HEARD = "bagel/failure", "bagel/heard/"
_PATIENCE = 5.0  # seconds that a process has to notice by itself that another one failed
_TIMEOUT = timedelta(minutes=30)
_SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}


@dataclass
class Launch:
    """This process among those of the run.

    Attributes:
        rank, world: its number, and how many there are.
        local_rank, local_world: the same on its machine.
        store: the key-value store that all of them reach; None for one process.
        report: a folder for the traceback of an error that nobody expected; None for nowhere.
        failed: the number of the process that failed first; None as far as this one knows of none.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    store: Any = None
    report: Path | None = None
    failed: int | None = None

    def claim(self) -> bool:
        """Whether this process is the first to fail, and so the one that says why."""
        try:
            self._learn(self.store.compare_set(_FAILURE, "", str(self.rank)), self.store)
        except Exception:  # the store went down with the process that had it
            if self.failed is None:  # which was ended from outside
                return self.rank == 1
        return self.failed == self.rank

    def wait_for_all(self, name: str) -> None:
        """Waits, however long it takes, until every process has called this with a name, which serves once. One that
        fails meanwhile ends all.
        """
        if self.world == 1:
            return
        keys = [f"bagel/{name}/{rank}" for rank in range(self.world)]
        self.store.set(keys[self.rank], "")
        while not self.store.check(keys):
            time.sleep(0.2)

    def failed_elsewhere(self, store: Any) -> bool:
        """Whether another process has failed.

        Args:
            store: the connection to the store of the thread that asks.
        """
        with suppress(Exception):  # the store is gone: the connections tell
            if self.failed is None and store.check([_FAILURE]):
                self._learn(store.get(_FAILURE), store)
        return self.failed is not None and self.failed != self.rank

    def _learn(self, rank: bytes, store: Any) -> None:
        self.failed = int(rank)
        store.set(f"{_HEARD}{self.rank}", "")

    def go_last(self) -> None:
        """In the first process, after a failure: waits until all others know of it, or are not there to be told."""
        if self.rank:
            return
        end = time.monotonic() + _PATIENCE
        with suppress(Exception):
            while not self.store.check([f"{_HEARD}{rank}" for rank in range(self.world)]) and time.monotonic() < end:
                time.sleep(0.02)


_current: Launch | None = None


def current() -> Launch:
    """The launch that this process is in; a launch of one process outside any."""
    return _current or Launch()


@contextmanager
def launched() -> Iterator[Launch]:
    """Connects the processes of a run, if there are several. What fails inside ends all of them.

    Raises:
        SettingError: a variable of the environment is missing or no number, or the first process is not reached.
        TrainingError: this process was the first to fail, for a reason that is no `BagelError`.
        SystemExit: another process failed.
    """
    global _current
    numbers = _numbers(os.environ)
    if _current is not None or numbers["WORLD_SIZE"] == 1:
        yield current()
        return
    _current = launch = _connect(numbers)
    done = threading.Event()
    threading.Thread(target=_watch, args=(launch, done), daemon=True).start()
    try:
        yield launch
        _leave()
    except SystemExit:
        raise
    except BaseException as error:
        _end_soon()
        reason = _reason(error, launch)
        launch.go_last()
        raise reason from error
    finally:
        done.set()
        _current = None


def _numbers(environment: Mapping[str, str]) -> dict[str, int]:
    """RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE, from what torchrun sets, or SLURM for each of its tasks."""
    found = dict(environment)
    if "RANK" not in found and "MASTER_ADDR" in found:
        found |= {ours: found[theirs] for ours, theirs in _SLURM.items() if theirs in found}
    if "WORLD_SIZE" not in found:
        return {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    numbers = {}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        default = {"LOCAL_RANK": found.get("RANK"), "LOCAL_WORLD_SIZE": found["WORLD_SIZE"]}.get(name)
        text = found.get(name, default)
        if text is None or not text.isdecimal():
            raise SettingError(
                f"the environment variable {name} is {text!r}, beside WORLD_SIZE={found['WORLD_SIZE']}: start the "
                "processes with torchrun, or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
            )
        numbers[name] = int(text)
    return numbers


def _connect(numbers: Mapping[str, int]) -> Launch:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        os.environ[name] = str(numbers[name])
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise SettingError(
            f"the environment variable {missing[0]} is missing, beside WORLD_SIZE={numbers['WORLD_SIZE']}: start the "
            "processes with torchrun, or set it to the address of the first process"
        )
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, world = next(iter(rendezvous("env://", timeout=_TIMEOUT)))
    except Exception as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = str(error).partition("\n")[0]
        raise SettingError(f"process {numbers['RANK']} could not reach the first one at {where} ({reason})") from error
    store.set_timeout(_TIMEOUT)
    return Launch(rank, world, numbers["LOCAL_RANK"], numbers["LOCAL_WORLD_SIZE"], store)


def _leave() -> None:
    """Waits for all processes, so that none loses the store, and parts from them."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _reason(error: BaseException, launch: Launch) -> BaseException:
    """The exception with which this process ends."""
    interrupted = isinstance(error, KeyboardInterrupt)
    if not launch.claim():
        return SystemExit(130 if interrupted else 1)
    if interrupted or isinstance(error, BagelError):
        return error
    first = str(error).strip().partition("\n")[0]
    if _is_of_connections(error):
        return TrainingError(
            f"process {launch.rank} lost its connection to the others ({first}): one of them was ended from outside; "
            "the same command goes on from the last checkpoint"
        )
    where = _write_report(launch)
    return TrainingError(f"process {launch.rank} of {launch.world} failed: {type(error).__name__}: {first}{where}")


def _is_of_connections(error: BaseException) -> bool:
    import torch.distributed as dist

    text = str(error).lower()
    lost = any(words in text for words in ("connection", "closed by peer", "timed out", "timeout", "broken pipe"))
    return isinstance(error, dist.DistError | ConnectionError) or (isinstance(error, RuntimeError) and lost)


def _write_report(launch: Launch) -> str:
    """Keeps the traceback of an unexpected error; returns where it is, as the end of a sentence."""
    if launch.report is None:
        return ""
    path = launch.report / f"failure-{launch.rank}.txt"
    try:
        path.write_text(traceback.format_exc(), encoding="utf-8")
    except OSError:
        return ""
    return f" (the traceback is in {path})"


def _end_soon() -> None:
    """Ends the process if it has not ended by itself soon: threads may wait for processes that are gone."""

    def end() -> None:
        time.sleep(2 * _PATIENCE)
        sys.stderr.flush()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _watch(launch: Launch, done: threading.Event) -> None:
    """Ends this process when another one has failed and it does not notice, as in a collective that never ends."""
    store = launch.store.clone() if hasattr(launch.store, "clone") else launch.store
    while not done.wait(0.5):
        if launch.failed_elsewhere(store) and not done.wait(_PATIENCE):
            os._exit(1)
