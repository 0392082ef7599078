"""A submitted request: the handle to cancel it by, and the future of its result."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from typing import Any, TypeVar

from bagel_mot.inference.engine.ops import Op, Steps, VelocityOp, WaitOp

T = TypeVar("T")


class Ticket(Future[T]):
    """A submitted request. As every `Future` it has `done()`, `add_done_callback()` and `result()`, which runs the
    engine where nobody else does.

    Args:
        steps: the request, not yet begun.
        cost: tokens of cache that it holds at most, without its prompt.
        prompt: a key of its prompt, and the prompt's tokens: requests with equal keys hold it once.
        run_until: runs the engine until tickets are done.
        close_cancelled: closes all requests that were cancelled, or leaves it to the thread that has the engine.

    Attributes:
        begun: whether the engine has begun with it.
        ops: the ops that it waits for.
    """

    def __init__(
        self,
        steps: Steps[T],
        cost: int,
        prompt: tuple[Any, int],
        run_until: Callable[[Sequence[Ticket[Any]]], None],
        close_cancelled: Callable[[], None],
    ) -> None:
        super().__init__()
        self._steps = steps
        self._run_until, self._close_cancelled = run_until, close_cancelled
        self._unwanted = self._running = False
        self._reason: Exception | None = None
        self.cost, self.prompt = cost, prompt
        self.begun = False
        self.ops: Sequence[Op] = ()

    def result(self, timeout: float | None = None) -> T:
        """The result of the request, or the error that it raised.

        Args:
            timeout: seconds to wait while others run the engine; without it this thread runs it, too.
        """
        if timeout is None and not self.done():
            self._run_until([self])
        return super().result(timeout)

    def cancel(self, reason: Exception | None = None) -> bool:
        """Ends the request at once; when called from inside it, or while another thread has the engine, by the end of
        the step. Its memory is free again then. Never waits; without effect on a request that is done.

        Args:
            reason: the error that the ticket has then; without one it counts as cancelled.

        Returns: whether the request is cancelled by now.
        """
        self._unwanted, self._reason = True, self._reason or reason
        self._close_cancelled()
        return self.cancelled()

    @property
    def overdue(self) -> bool:
        """Whether it was cancelled and only waits to be closed."""
        return self._unwanted and not self._running and not self.done()

    @property
    def ready(self) -> bool:
        """Whether all ops that it waits for are settled."""
        return all(op.key not in op.under_way if isinstance(op, WaitOp) else op.settled for op in self.ops)

    @property
    def heads(self) -> Sequence[Op]:
        """Its ops, where none of them takes more than a head of the model."""
        return self.ops if all(isinstance(op, VelocityOp) for op in self.ops) else ()

    def close(self) -> None:
        """Breaks the request off. For whoever holds the engine's lock."""
        self._steps.close()
        self._finish(error=self._reason or CancelledError())

    def advance(self) -> None:
        """Lets the request go on with the results of its ops, to its next ops or its end. For whoever holds the
        engine's lock.

        Raises: an interrupt (a `BaseException` that is no `Exception`); it ends this request. What else the request
            raises is the ticket's.
        """
        begun, ops = self.begun, self.ops
        try:
            self._running = self.begun = True
            self.ops = ()  # whatever happens from here on, nothing is handed over twice
            error = next((op.error for op in ops if op.error is not None), None)
            if error is not None:
                wanted = self._steps.throw(error)
            else:
                wanted = self._steps.send(None) if begun else next(self._steps)
            while not wanted:
                wanted = next(self._steps)
            for op in wanted:
                op.begin(self)
            self.ops = wanted
        except StopIteration as stop:
            self._finish(stop.value)
        except BaseException as raised:
            self._finish(error=_without_frames(raised))
            if not isinstance(raised, Exception):
                raise
        finally:
            self._running = False
        if self.overdue:
            self.close()

    def _finish(self, value: T | None = None, error: BaseException | None = None) -> None:
        self.ops = ()
        with suppress(InvalidStateError):
            if isinstance(error, Exception) and not isinstance(error, CancelledError):
                self.set_exception(error)
            elif error is not None:  # cancelled, or interrupted
                super().cancel()
            else:
                self.set_result(value)  # type: ignore[arg-type]


def _without_frames(error: BaseException) -> BaseException:
    """An error that no longer holds what the request held, such as its cache, which would stay for as long as the error
    is kept. Where it was raised can still be read from it.
    """
    # The first frame is that of `Ticket.advance`, which is still running.
    error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__
    return error
