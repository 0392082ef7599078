"""A thread that works on requests for those that cannot wait in the engine themselves, such as coroutines."""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from bagel_mot.inference.engine.engine import Engine
from bagel_mot.inference.engine.ops import Handle, Request

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Job(Generic[T]):
    """A request that the driver works on.

    Attributes:
        handle: the engine's.
        future: is set, from the thread that drives the engine, as soon as the request has ended.
    """

    handle: Handle[T]
    future: Future[T]

    @property
    def begun(self) -> bool:
        """Whether the engine has begun with it."""
        return self.handle.begun

    def cancel(self) -> None:
        """Ends the request, by the end of the step at the latest. Never waits; without effect on one that is over."""
        self.handle.cancel()
        self.future.cancel()


class Driver:
    """Runs an engine in one thread, which begins with the first request.

    One thread for all: the others would only wake at every step to find that there is nothing to do for them. Threads
    that wait in the engine on their own may do so beside it.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._changed = threading.Condition()
        self._jobs: dict[Job[Any], None] = {}  # not over, in order
        self._ending = False
        self._thread: threading.Thread | None = None

    def submit(self, request: Request[T], cost: int = 0) -> Job[T]:
        """Takes a request in, as `Engine.submit`. Never waits."""
        future: Future[T] = Future()
        job = Job(self._engine.submit(_reporting(request, future), cost), future)
        with self._changed:
            self._jobs[job] = None
            self._ending = False
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="bagel-engine", daemon=True)
                self._thread.start()
        future.add_done_callback(lambda _: self._forget(job))
        return job

    def stop(self) -> None:
        """Ends the thread once it has done what it was given."""
        with self._changed:
            thread, self._ending = self._thread, True
            self._changed.notify()
        if thread is not None:
            thread.join()

    def _forget(self, job: Job[Any]) -> None:
        with self._changed:
            del self._jobs[job]

    def _next(self) -> Job[Any] | None:
        """The oldest job; None: there will be no more, and the thread is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._ending)
            job = next(iter(self._jobs), None)
            if job is None:
                self._thread = None
            return job

    def _run(self) -> None:
        # Whichever request it waits for, a step advances all of them; each reports its own end.
        while (job := self._next()) is not None:
            try:
                self._engine.run_until([job.handle])
            except BaseException as error:  # a step itself broke, not a request in it: the thread must live on
                _log.error("a step of the engine failed: %s", type(error).__name__)
                with suppress(InvalidStateError):
                    job.future.set_exception(error if isinstance(error, Exception) else CancelledError())
            if not job.future.done():  # it was closed before it began, and so could not report
                job.future.cancel()


def _reporting(request: Request[T], future: Future[T]) -> Generator[list[Any], list[Any], T]:
    """A request that tells how it ended, there and then."""
    try:
        result = yield from request
    except GeneratorExit:
        future.cancel()
        raise
    except BaseException as error:
        with suppress(InvalidStateError):  # cancelled meanwhile
            future.set_exception(error if isinstance(error, Exception) else CancelledError())
        raise
    with suppress(InvalidStateError):
        future.set_result(result)
    return result
