"""Worker processes: they decode, resize, tokenize and cut into patches what the main process has read.

Tasks are handed out one by one and their results are taken in any order by whoever asked, so the number of processes
changes nothing but the speed. Processes are started apart from the trainer (`forkserver`, or `spawn` where there is
none), so they hold none of its memory, threads or devices. They end with the process that began them, however it ends.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from bagel_mot.errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")

_function: Callable[[Any], Any] | None = None  # the work of this process, if it is a worker


class Pending(Generic[Result]):
    """A result that is being made, or will be when it is asked for."""

    def __init__(self, result: Callable[[], Result]) -> None:
        self._result = result

    def result(self) -> Result:
        """The result, waited for.

        Raises:
            DataError: the worker process has ended, or failed unexpectedly.
        """
        return self._result()


class Workers(Generic[Task, Result]):
    """Applies a function to tasks in other processes; without any, in this one when a result is asked for."""

    def __init__(self, function: Callable[[Task], Result], count: int) -> None:
        """Makes them; the processes start with the first task.

        Args:
            function: makes the result of a task. It, its tasks and its results can be pickled.
            count: the number of processes.
        """
        self.function, self.count = function, count
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, task: Task) -> Pending[Result]:
        """Hands out a task.

        Raises:
            DataError: a worker process has ended.
        """
        if not self.count:
            return Pending(lambda: self.function(task))
        if self._pool is None:
            self._pool = self._start()
        try:
            future = self._pool.submit(_work, task)
        except BrokenProcessPool as error:
            raise _ended() from error
        return Pending(lambda: _taken(future))

    def _start(self) -> ProcessPoolExecutor:
        can_fork = "forkserver" in multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if can_fork else "spawn")
        if can_fork:  # the modules of a worker are imported once, by the process that all are forked from
            context.set_forkserver_preload(["bagel_mot.data.feed"])
        return ProcessPoolExecutor(
            self.count,
            mp_context=context,
            initializer=_begin,
            initargs=(pickle.dumps(self.function),),
        )

    def close(self) -> None:
        """Ends the processes, once each has done the task at hand."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _taken(future: Future[bytes]) -> Any:
    try:
        made = pickle.loads(future.result())
    except BrokenProcessPool as error:
        raise _ended() from error
    if isinstance(made, _Failure):
        raise made.error()
    return made


def _ended() -> DataError:
    return DataError(
        "a worker process of the data has ended abruptly, as when memory runs out or it is killed: lower data.workers, "
        "or give the machine more memory"
    )


class _Failure:
    """An error of a worker, to be raised where its result is asked for."""

    def __init__(self, error: Exception) -> None:
        self.is_ours, self.text = isinstance(error, DataError), str(error)
        self.kind = type(error).__name__

    def error(self) -> DataError:
        return DataError(
            self.text if self.is_ours else f"a worker process of the data failed: {self.kind}: {self.text}"
        )


def _begin(function: bytes) -> None:
    """Makes this process a worker."""
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the main process ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _function = pickle.loads(function)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _work(task: Any) -> bytes:
    assert _function is not None
    try:
        return packed(_function(task))
    except Exception as error:
        return packed(_Failure(error))


class _Pickler(pickle.Pickler):
    """Pickles tensors as their bytes, which is quicker than the general way; nothing is shared between processes, so
    neither the room for shared memory nor the number of open files matters.
    """

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented


def packed(value: Any) -> bytes:
    """A value as bytes that `pickle.loads` takes."""
    _Pickler(out := io.BytesIO(), protocol=5).dump(value)
    return out.getvalue()
