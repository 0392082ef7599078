"""What one click has set to work: requests whose progress is followed, and that can be stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from bagel_mot.inference.engine.ops import Handle
from bagel_mot.inference.result import Result
from bagel_mot.inference.tasks import Media, Order
from bagel_mot.serving.driver import Job
from bagel_mot.serving.service import Callbacks, Service

_PAUSE = 0.08  # seconds between two looks at what has happened: a page need not follow faster
_LONGEST = 1.0  # seconds without any news after which the page is told all the same


@dataclass
class Progress:
    """How far one result is.

    Attributes:
        done, total: denoising steps; 0 and 0 before the first.
        preview: the latest look at the image.
    """

    done: int = 0
    total: int = 0
    preview: Image.Image | None = None


@dataclass
class Run:
    """Requests at work for one tab of the page.

    Attributes:
        count: results wanted.
        text: written so far, by the first of them.
        stopped: whether somebody wished them to end.
        size: of the images to come, where it is known.
    """

    count: int = 1
    text: str = ""
    stopped: bool = False
    size: tuple[int, int] | None = None
    progress: list[Progress] = field(default_factory=list)
    _requests: list[Handle[Any] | Job[Any]] = field(default_factory=list)
    _futures: list[Future[Any]] = field(default_factory=list)
    _news: threading.Event = field(default_factory=threading.Event)
    _first: tuple[float, int] | None = None  # when which number of steps was done

    def __post_init__(self) -> None:
        self.progress = [Progress() for _ in range(self.count)]

    # ---------------------------------------------------------------------------------------------- setting to work

    def start(self, service: Service, inputs: Sequence[Any], output: Media, settings: dict[str, Any]) -> None:
        """Requests of their own, `count` of them.

        Raises:
            BagelError: they are refused; nothing runs.
        """
        started = service.start(inputs, output=output, n=self.count, listen=self.listen, **settings)
        self._futures = [job.future for job in started.jobs]
        self.size = started.order.size
        for job in started.jobs:
            self.take(job)
        self._announce()

    def start_thread(self, work: Callable[[], Any]) -> None:
        """Anything that waits for the engine itself; it should `take` what it waits for."""
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        self._futures = [future]
        self._announce()
        threading.Thread(target=run, name="bagel-page", daemon=True).start()

    def take(self, request: Handle[Any] | Job[Any]) -> None:
        """A request that is to end with this run."""
        self._requests.append(request)
        if self.stopped:
            request.cancel()

    def listen(self, index: int, order: Order | None = None) -> Callbacks:
        """Whom result number `index` is to tell. They return at once: whoever drives the engine waits for them."""
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

        return Callbacks(on_step, on_preview, on_text)

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
                self._news.wait(_LONGEST)
                self._news.clear()
                yield
                time.sleep(_PAUSE)
        finally:
            if not all(future.done() for future in self._futures):
                self.stop()

    @property
    def begun(self) -> bool:
        """Whether the engine has begun with any of them."""
        return any(request.begun for request in list(self._requests))

    @property
    def done(self) -> int:
        """Denoising steps done, of all results."""
        return sum(progress.done for progress in self.progress)

    @property
    def total(self) -> int:
        """Denoising steps in all; 0 before the first."""
        return max(progress.total for progress in self.progress) * self.count

    @property
    def seconds_left(self) -> float | None:
        """Of drawing, by its pace so far; None before there is one."""
        if self._first is None or self.done <= self._first[1]:
            return None
        began, first = self._first
        return (time.monotonic() - began) / (self.done - first) * (self.total - self.done)

    # -------------------------------------------------------------------------------------------------- when it is over

    def results(self) -> list[Result]:
        """What came of it: of a run that was stopped, what had been finished by then.

        Raises: what a request raised.
        """
        finished = []
        for future in self._futures:
            try:
                finished.append(future.result(timeout=0))
            except CancelledError:
                self.stopped = True  # by this run's own Stop, or by a service that is closing
        return finished
