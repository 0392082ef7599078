"""Making batches in the background, without losing track of where the data stands."""

from __future__ import annotations

import queue
import threading
from typing import Any, Generic, Protocol, TypeVar

from bagel_mot.errors import DataError

Item = TypeVar("Item")
Made = TypeVar("Made", covariant=True)


class Stream(Protocol[Made]):
    """An endless supply of batches that can be put back to any batch's end."""

    def next_batch(self) -> Made: ...

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands; later batches do not change what was returned."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Prefetcher(Generic[Item]):
    """Makes the batches of a stream in a thread, a few ahead of their use.

    The state it tells is that just after the last batch that was *handed out*: what has been made ahead is made again
    after resuming. The thread starts with the first `next_batch`, and the stream is the thread's alone from then on.
    """

    def __init__(self, stream: Stream[Item], ahead: int = 2) -> None:
        self._stream = stream
        self._state = stream.state_dict()
        self._queue: queue.Queue[tuple[Item, dict[str, Any]] | BaseException] = queue.Queue(ahead)
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    def next_batch(self) -> Item:
        """The next batch. An error in the thread is raised here, and again at every later call.

        Raises:
            DataError: after `close`.
        """
        if self._stop.is_set():
            raise DataError("the stream of data is closed: no batch can be taken from it")
        if self._failure is not None:
            raise self._failure
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name="prefetch")
            self._thread.start()
        made = self._queue.get()
        if isinstance(made, BaseException):
            self._failure = made
            raise made
        item, self._state = made
        return item

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stood just after the last batch that was handed out."""
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts the stream back there, before the first batch is taken.

        Raises:
            DataError: if a batch was taken already: what was made ahead would be of the old place.
        """
        if self._thread is not None:
            raise DataError("the stream of data has begun: its state can be set before the first batch alone")
        self._stream.load_state_dict(state)
        self._state = state

    def close(self) -> None:
        """Ends the thread, which finishes the batch at hand."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                made: tuple[Item, dict[str, Any]] | BaseException = (
                    self._stream.next_batch(),
                    self._stream.state_dict(),
                )
            except BaseException as error:
                made = error
            while not self._stop.is_set():
                try:
                    self._queue.put(made, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if isinstance(made, BaseException):
                return
