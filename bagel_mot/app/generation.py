"""A generation that one click of the page starts, and its progress until the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any

from PIL import Image

from bagel_mot.inference.engine.ticket import Ticket
from bagel_mot.inference.request import Listener, Request
from bagel_mot.inference.result import Result
from bagel_mot.serving.service import Service

_POLL = 0.08  # seconds between two updates: a page need not follow faster
_MAX_SILENCE = 1.0  # seconds without any news after which the page is updated all the same


@dataclass
class ResultProgress:
    """ResultProgress of one result.

    Attributes:
        done, total: denoising steps; 0 and 0 before the first.
        preview: the latest preview of the image.
    """

    done: int = 0
    total: int = 0
    preview: Image.Image | None = None


class Generation:
    """Results that one click asked for: requests whose progress is followed, and that can be stopped.

    Attributes:
        count: number of results wanted.
        text: text written so far by the first of them.
        stopped: whether somebody wished them to end.
        size: size of the images to come, where it is known.
        progress: one for each result.
    """

    def __init__(self, count: int = 1) -> None:
        self.count, self.text, self.stopped = count, "", False
        self.size: tuple[int, int] | None = None
        self.progress = [ResultProgress() for _ in range(count)]
        self._requests: list[Ticket[Any]] = []
        self._futures: list[Future[Any]] = []
        self._news = threading.Event()
        self._first: tuple[float, int] | None = None  # when which number of steps was done

    # ---------------------------------------------------------------------------------------------- setting to work

    def start(self, service: Service, inputs: Sequence[Any], output: str, settings: dict[str, Any]) -> None:
        """Submits `count` requests to a service.

        Raises:
            BagelError: they are refused; nothing runs.
        """
        started = service.start(inputs, output=output, n=self.count, listen=self.listen, **settings)
        self._futures = list(started.tickets)
        self.size = started.request.size
        for ticket in started.tickets:
            self.take(ticket)
        self._announce()

    def start_thread(self, work: Callable[[], Result]) -> None:
        """Runs in a thread what waits for the engine itself; it must `take` each request that it waits for."""
        future: Future[Result] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        self._futures = [future]
        self._announce()
        threading.Thread(target=run, name="bagel-page", daemon=True).start()

    def take(self, request: Ticket[Any]) -> None:
        """Adds a request that `stop` cancels."""
        self._requests.append(request)
        if self.stopped:
            request.cancel()

    def listen(self, index: int, request: Request | None = None) -> Listener:
        """Callbacks of result number `index`. They return at once: whoever drives the engine waits for them."""
        progress = self.progress[index]

        def on_step(done: int, total: int) -> None:
            progress.done, progress.total = done, total
            if self._first is None:
                self._first = time.monotonic(), self.done
            self._news.set()

        def on_preview(image: Image.Image) -> None:
            progress.preview = image
            self._news.set()

        def on_text(piece: str) -> None:
            if index == 0:
                self.text += piece
                self._news.set()

        return Listener(on_step, on_preview, on_text)

    def _announce(self) -> None:
        for future in self._futures:
            future.add_done_callback(lambda _: self._news.set())

    # ------------------------------------------------------------------------------------------------ while at work

    def stop(self) -> None:
        """Ends all requests within a step. Never waits."""
        self.stopped = True
        for request in list(self._requests):
            request.cancel()

    def follow(self) -> Iterator[None]:
        """Yields whenever there is news, until all is over. If abandoned, the requests are stopped."""
        try:
            while not all(future.done() for future in self._futures):
                self._news.wait(_MAX_SILENCE)
                self._news.clear()
                yield
                time.sleep(_POLL)
        finally:
            if not all(future.done() for future in self._futures):
                self.stop()

    @property
    def begun(self) -> bool:
        """Whether the engine has begun with any of the requests."""
        return any(request.begun for request in list(self._requests))

    @property
    def done(self) -> int:
        """Denoising steps done, summed over all results."""
        return sum(progress.done for progress in self.progress)

    @property
    def total(self) -> int:
        """Denoising steps of all results; 0 before the first."""
        return max(progress.total for progress in self.progress) * self.count

    @property
    def steps(self) -> tuple[int, int]:
        """Denoising steps per image: done, rounded up, and in all."""
        total = self.total // self.count
        return min(-(-self.done // self.count), total), total

    @property
    def seconds_left(self) -> float | None:
        """Seconds until all images are drawn, at the pace so far; None before there is one."""
        if self._first is None or self.done <= self._first[1]:
            return None
        began, first = self._first
        return (time.monotonic() - began) / (self.done - first) * (self.total - self.done)

    # -------------------------------------------------------------------------------------------------- when it is over

    def results(self) -> list[Result]:
        """The results; after a stop those that had been finished by then.

        Raises: what a request raised.
        """
        finished = []
        for future in self._futures:
            try:
                finished.append(future.result(timeout=0))
            except CancelledError:
                self.stopped = True  # by the page's own Stop, or by a service that is closing
        return finished
