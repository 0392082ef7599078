"""A thread that works on requests for those that cannot wait in the engine themselves, such as coroutines."""

from __future__ import annotations

import logging
import threading
from typing import Any, TypeVar

from bagel_mot.inference.engine.engine import Engine
from bagel_mot.inference.engine.ops import Steps
from bagel_mot.inference.engine.ticket import Ticket

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Driver:
    """Runs an engine in one thread, which begins with the first request.

    One thread for all: the others would only wake at every step to find that there is nothing to do for them. Threads
    that wait in the engine on their own may do so beside it.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._changed = threading.Condition()
        self._tickets: dict[Ticket[Any], None] = {}  # not done, in order
        self._ending = False
        self._thread: threading.Thread | None = None

    def submit(self, steps: Steps[T], cost: int = 0, prompt: tuple[Any, int] = (None, 0)) -> Ticket[T]:
        """Takes a request in, as `Engine.submit`. Never waits."""
        ticket = self._engine.submit(steps, cost, prompt)
        with self._changed:
            self._tickets[ticket] = None
            self._ending = False
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="bagel-engine", daemon=True)
                self._thread.start()
        ticket.add_done_callback(self._forget)
        return ticket

    def stop(self) -> None:
        """Ends the thread once it has done what it was given."""
        with self._changed:
            thread, self._ending = self._thread, True
            self._changed.notify()
        if thread is not None:
            thread.join()

    def _forget(self, ticket: Any) -> None:
        with self._changed:
            self._tickets.pop(ticket, None)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._tickets or self._ending)
                # Whichever request it waits for, a step advances all of them.
                ticket = next(iter(self._tickets), None)
                if ticket is None:
                    self._thread = None
                    return
            try:
                self._engine.run_until([ticket])
            except BaseException as error:  # a step itself broke, not a request in it: the thread must live on
                _log.error("a step of the engine failed: %s", type(error).__name__)
