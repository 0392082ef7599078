"""What requests to the engine are made of: pieces of work, what becomes of them, and the handle of a request."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

from torch import Tensor

from bagel_mot.model.cache import Context, KVReservation
from bagel_mot.sequence import Segment, segment_length

T = TypeVar("T")


class Output(Enum):
    """What a row of work results in."""

    NONE = "nothing"  # None: the context has grown
    LOGITS = "logits"  # (vocab,) of what follows the row's last token
    HIDDEN = "hidden"  # (N, hidden) of the last segment's latents, before the final norm


@dataclass(eq=False)
class Row:
    """Segments to be read behind a context.

    Attributes:
        context: what they follow. Within one step no context may stand in two rows that append.
        segments: what to read.
        output: what is wanted.
        tail: scratch to use; the context then stays as it is. None: the segments become part of the context.
        record: whether the context keeps an entry for each segment.
    """

    context: Context
    segments: tuple[Segment, ...]
    output: Output = Output.NONE
    tail: KVReservation | None = None
    record: bool = True

    @property
    def tokens(self) -> int:
        return sum(segment_length(segment) for segment in self.segments)


@dataclass(eq=False)
class Encode:
    """Pixels (3, H, W) in [-1, 1] -> scaled latent (z, h, w), float32 on the model's device."""

    pixels: Tensor


@dataclass(eq=False)
class Decode:
    """Scaled latent (z, h, w) -> pixels (3, H, W), float32 on the CPU."""

    latent: Tensor


Work = Row | Encode | Decode
Request = Generator[list[Work], list[Any], T]


@dataclass(eq=False)
class Piece:
    """One piece of a request's work, and what became of it."""

    owner: Handle[Any]
    work: Work
    committing: bool = False  # its context is being extended
    settled: bool = False  # the result or the error stands
    result: Any = None
    error: Exception | None = None

    def settle(self, result: Any = None, error: Exception | None = None) -> None:
        self.result, self.error, self.settled = result, error, True


class Handle(Generic[T]):
    """A submitted request."""

    def __init__(self, request: Request[T], cost: int, close_cancelled: Callable[[], None]) -> None:
        """
        Args:
            close_cancelled: closes all requests that were cancelled, or leaves it to the thread that has the engine.
        """
        self._request = request
        self._close_cancelled = close_cancelled
        self.cost = cost
        self.begun = False
        self.pieces: list[Piece] = []  # what it waits for
        self._running = False
        self.cancelled = False
        self._value: T | None = None
        self.error: BaseException | None = None
        self.done = False

    def result(self) -> T:
        """What the request returned.

        Raises:
            RuntimeError: it is not done yet.
            CancelledError: it was cancelled.
            Exception: what the request raised.
        """
        if not self.done:
            raise RuntimeError("the request is not done: run the engine first")
        if self.error is not None:
            raise self.error
        return self._value  # type: ignore[return-value]  # set when done without an error

    def cancel(self) -> None:
        """Ends the request at once; when called from inside it, or while another thread has the engine, by the end of
        the step. Its memory is free again then. Never waits.
        """
        self.cancelled = True
        self._close_cancelled()

    @property
    def overdue(self) -> bool:
        """Whether it was cancelled and only waits to be closed."""
        return self.cancelled and not self._running and not self.done

    def close_if_cancelled(self) -> None:
        """For whoever holds the engine's lock."""
        if self.overdue:
            self.close()

    def close(self) -> None:
        """Breaks the request off. For whoever holds the engine's lock."""
        self._request.close()
        self._finish(error=CancelledError())

    def _finish(self, value: T | None = None, error: BaseException | None = None) -> None:
        self.pieces = []
        self._value, self.error, self.done = value, error, True

    def advance(self) -> None:
        """Hands the request its results, the first time none, and runs it to its next work or its end.

        What it raises is kept in the handle.
        """
        begun, items = self.begun, self.pieces
        try:
            self._running = self.begun = True
            self.pieces = []  # whatever happens from here on, nothing is handed over twice
            error = next((item.error for item in items if item.error is not None), None)
            if error is not None:
                work = self._request.throw(error)
            elif begun:
                work = self._request.send([item.result for item in items])
            else:
                work = next(self._request)
            while not work:
                work = self._request.send([])
            self.pieces = [Piece(self, own) for own in work]
        except StopIteration as stop:
            self._finish(stop.value)
        except BaseException as raised:
            self._finish(error=_without_frames(raised))
            if not isinstance(raised, Exception):  # an interrupt ends this request, and everybody's step
                raise
        finally:
            self._running = False
        self.close_if_cancelled()


def _without_frames(error: BaseException) -> BaseException:
    """An error that no longer holds what the request held, such as its cache, which would stay for as long as the error
    is told. Where it was raised can still be read from it.
    """
    # The first frame is that of `Handle.advance`, which is still at work.
    error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__
    return error
