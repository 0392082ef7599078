"""Worker processes: they decode, resize, tokenize and cut into patches what the main process has read.

Tasks are handed out one by one and their results are taken in any order by whoever asked, so the number of processes
changes nothing but the speed. Processes are started apart from the trainer (`forkserver`, or `spawn` where there is
none), so they hold none of its memory, threads or devices. They end with the process that began them, however it ends.

A free process takes the next task from the queue of all, and makes the one after it while a thread of its own sends the
result: it waits when there is no task left, and for nothing else. The main process reads results when it wants one.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import threading
from collections.abc import Callable
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

import torch

from bagel_mot.allocator import LARGEST_KEPT_IN_TRAINING, keep_freed_memory
from bagel_mot.data.transfer import receive, send
from bagel_mot.errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")


class Pending(Generic[Result]):
    """A result that is being made, or will be when it is asked for."""

    def __init__(self, result: Callable[[], Result]) -> None:
        self._result = result

    def result(self) -> Result:
        """The result, waited for; it can be asked for once.

        Raises:
            DataError: the worker process has ended, or failed unexpectedly.
        """
        return self._result()


class Workers(Generic[Task, Result]):
    """Applies a function to tasks in other processes; without any, in this one when a result is asked for.

    One thread at a time uses it.
    """

    def __init__(self, function: Callable[[Task], Result], count: int) -> None:
        """Makes them; the processes start with the first task.

        Args:
            function: makes the result of a task. It, its tasks and its results can be pickled.
            count: the number of processes.
        """
        self.function, self.count = function, count
        self._pool: _Pool | None = None

    @property
    def processes(self) -> tuple[int, ...]:
        """The numbers by which the system knows the processes; none before the first task."""
        return () if self._pool is None else tuple(process.pid or 0 for process in self._pool.processes)

    def submit(self, task: Task) -> Pending[Result]:
        """Hands out a task.

        It is pickled at once, so it may be changed afterwards.
        """
        if not self.count:
            return Pending(lambda: self.function(task))
        if self._pool is None:
            self._pool = _Pool(self.function, self.count)
        pool, number = self._pool, self._pool.hand_out(task)
        return Pending(lambda: pool.take(number))

    def close(self) -> None:
        """Ends the processes, whatever they are at."""
        if self._pool is not None:
            self._pool.close()


class _Pool:
    """The processes, the queue of tasks that all of them take from, and a pipe from each for its results."""

    def __init__(self, function: Callable[[Any], Any], count: int) -> None:
        can_fork = "forkserver" in multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("forkserver" if can_fork else "spawn")
        if can_fork:  # the modules of a worker are imported once, by the process that all are forked from
            context.set_forkserver_preload(["bagel_mot.data.feed"])
        self._tasks = context.Queue()
        self._tasks.cancel_join_thread()  # tasks that nobody takes any more need not be sent
        self._made: dict[int, Any] = {}
        self._handed_out = 0
        self._closed = False
        self.processes: list[BaseProcess] = []
        self._results: list[connection.Connection] = []
        pickled = pickle.dumps(function)
        for _ in range(count):
            results, writes = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(pickled, self._tasks, writes), daemon=True)
            process.start()
            writes.close()  # so that the process alone holds it, and its end is the end of the pipe
            self.processes.append(process)
            self._results.append(results)

    def hand_out(self, task: Any) -> int:
        """Puts a task into the queue; the number of its result."""
        self._handed_out += 1
        self._tasks.put((self._handed_out, pickle.dumps(task)))  # here, where it fails if it cannot be pickled
        return self._handed_out

    def take(self, number: int) -> Any:
        """A result, waited for."""
        while number not in self._made:
            if self._closed:
                raise DataError("the worker processes of the data are closed: no result can be taken from them")
            for ready in connection.wait(self._results):
                assert isinstance(ready, connection.Connection)
                try:
                    made, value = receive(ready)
                except (EOFError, OSError) as error:
                    raise self._ended() from error
                self._made[made] = value
        result = self._made.pop(number)
        if isinstance(result, _Failure):
            raise result.error()
        return result

    def _ended(self) -> DataError:
        return DataError(
            "a worker process of the data has ended abruptly, as when memory runs out or it is killed: lower "
            "data.workers, or give the machine more memory"
        )

    def close(self) -> None:
        """Ends the processes."""
        if self._closed:
            return
        self._closed = True
        for process in self.processes:
            process.terminate()
        for process, results in zip(self.processes, self._results, strict=True):
            process.join()
            results.close()
        self._tasks.close()


class _Failure:
    """An error of a worker, to be raised where its result is asked for."""

    def __init__(self, error: Exception) -> None:
        self.is_ours, self.text = isinstance(error, DataError), str(error)
        self.kind = type(error).__name__

    def error(self) -> DataError:
        return DataError(
            self.text if self.is_ours else f"a worker process of the data failed: {self.kind}: {self.text}"
        )


def _work(pickled: bytes, tasks: Any, results: connection.Connection) -> None:
    """Makes results of tasks, as a worker process, until it is ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the main process ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    keep_freed_memory(LARGEST_KEPT_IN_TRAINING)  # each image takes the same blocks again
    function = pickle.loads(pickled)
    made: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    threading.Thread(target=_send_all, args=(results, made), daemon=True).start()
    while True:
        number, task = tasks.get()
        try:
            made.put((number, function(pickle.loads(task))))
        except Exception as error:
            made.put((number, _Failure(error)))


def _send_all(results: connection.Connection, made: queue.SimpleQueue[tuple[int, Any]]) -> None:
    while True:
        number, value = made.get()
        try:
            send(results, (number, value))
        except OSError:  # nobody reads any more
            os._exit(1)
        except Exception as error:  # it cannot be pickled
            send(results, (number, _Failure(error)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
