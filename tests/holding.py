"""An engine that stops where a test wants it to, so that no verdict depends on how fast the machine is."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bagel_mot.inference.engine.engine import Engine
from bagel_mot.inference.engine.ticket import Ticket


class Hold:
    """Stops the engine after some steps, until a test has seen what is to be seen meanwhile.

    Attributes:
        made: steps made so far.
    """

    def __init__(self) -> None:
        self._left, self._changed = sys.maxsize, threading.Condition()
        self.made = 0

    def after(self, steps: int) -> None:
        """Lets the engine make so many more steps before it waits."""
        with self._changed:
            self._left = steps
            self._changed.notify_all()

    def release(self) -> None:
        self.after(sys.maxsize)

    def before_step(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._left > 0, 120), "the engine was never released"
            self._left -= 1
            self.made += 1


@contextmanager
def held_engines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hold]:
    """Holds every engine as the yielded object says; at first it holds none."""
    hold, step_for = Hold(), Engine._step_for

    def held(engine: Engine, ticket: Ticket[Any]) -> None:
        hold.before_step()  # no thread has the engine meanwhile, so that what is cancelled ends at once
        step_for(engine, ticket)

    monkeypatch.setattr(Engine, "_step_for", held)
    yield hold
    hold.release()
