"""Making batches in the background, without losing track of where the data stands."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

from bagel_mot.errors import DataError

Item = TypeVar("Item")
Made = TypeVar("Made", covariant=True)


class Stream(Protocol[Made]):
    """An endless supply of batches that can be put back to any batch's end.

    Later batches do not change a state that was returned.
    """

    def next_batch(self) -> Made: ...

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any) -> None: ...


class StreamGroup(Generic[Item]):
    """The logical streams of one process as one stream, whose batches have one batch of each.

    Args:
        streams: the streams by their numbers in the run.
    """

    def __init__(self, streams: Mapping[int, Stream[Item]]) -> None:
        self.streams = dict(streams)

    def next_batch(self) -> list[Item]:
        """The next batch of each stream, in their order."""
        return [stream.next_batch() for stream in self.streams.values()]

    def state_dict(self) -> dict[int, Any]:
        """The state of each stream, by its number."""
        return {number: stream.state_dict() for number, stream in self.streams.items()}

    def load_state_dict(self, state: dict[int, Any]) -> None:
        """Puts each stream back to its state."""
        for number, stream in self.streams.items():
            stream.load_state_dict(state[number])


class Prefetcher(Generic[Item]):
    """Makes the batches of a stream in a thread, a few ahead of their use.

    Its state is that just after the last batch that was *handed out*: batches made ahead are made again after resuming.
    The thread starts with the first `next_batch`, and the stream is the thread's alone from then on.
    """

    def __init__(self, stream: Stream[Item], ahead: int = 2) -> None:
        self._stream, self._ahead = stream, ahead
        self._state = stream.state_dict()
        self._thread = ThreadPoolExecutor(1, "prefetch")
        self._made: deque[Future[tuple[Item, Any]]] = deque()
        self._closed = False

    def _make(self) -> tuple[Item, Any]:
        return self._stream.next_batch(), self._stream.state_dict()

    def next_batch(self) -> Item:
        """The next batch. An error in the thread is raised here, and again at every later call.

        Raises:
            DataError: after `close`.
        """
        if self._closed:
            raise DataError("the stream of data is closed: no batch can be taken from it")
        while len(self._made) <= self._ahead:
            self._made.append(self._thread.submit(self._make))
        item, self._state = self._made[0].result()  # one that failed stays the first
        self._made.popleft()
        return item

    def state_dict(self) -> Any:
        """The stream's state just after the last batch that was handed out."""
        return self._state

    def load_state_dict(self, state: Any) -> None:
        """Puts the stream back there, before the first batch is taken.

        Raises:
            DataError: if a batch was taken already: those made ahead would be of the old place.
        """
        if self._made:
            raise DataError("the stream of data has begun: its state can be set before the first batch alone")
        self._stream.load_state_dict(state)
        self._state = state

    def close(self) -> None:
        """Ends the thread, which finishes the batch at hand."""
        self._closed = True
        self._thread.shutdown(cancel_futures=True)
