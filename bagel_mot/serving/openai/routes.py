"""The way from a checked body to results, which all routes share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Self, TypeVar

import anyio
from anyio.to_thread import run_sync
from fastapi import Depends, Request

from bagel_mot.errors import ImageError
from bagel_mot.inference.result import Result
from bagel_mot.serving.edge.fetch import MAX_BYTES, fetch
from bagel_mot.serving.edge.metrics import ServerMetrics
from bagel_mot.serving.limits import InputError
from bagel_mot.serving.openai.errors import ApiError, ClientGone, as_api_error, log_failure, no_such_model
from bagel_mot.serving.openai.fields import parse_extra
from bagel_mot.serving.openai.image_data import from_data_uri
from bagel_mot.serving.openai.streams import PING, Channel, End, Preview, Text, event
from bagel_mot.serving.options import ServerOptions
from bagel_mot.serving.service import Listen, Service, SubmittedBatch
from bagel_mot.task import Task

T = TypeVar("T")


@dataclass(frozen=True)
class Given:
    """A text, or the bytes of an image file, and its place in the client's body."""

    content: str | bytes
    param: str


_log = logging.getLogger("bagel_mot.serving")
_WORKERS = 4  # images that are decoded or encoded at the same time
_FETCHES = 8  # images that are fetched at the same time
_FETCHED = 2 * _FETCHES * MAX_BYTES  # bytes of all requests that still gather their images


class ImageInputs:
    """Gathers the images of one request. Fetched bytes count until the request is submitted, which keeps images at the
    size that the model reads; bytes that came with the request were counted before.
    """

    def __init__(self, state: AppState) -> None:
        self._state, self._bytes = state, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._count(-self._bytes)

    async def file(self, url: str, param: str) -> Given:
        """The image file behind a data URI or an address that stands at `param` in the body.

        Raises:
            ApiError: it is neither, cannot be fetched, or the requests present have fetched all that the server takes.
        """
        try:
            return Given(await self._file(url), param)
        except ImageError as error:
            raise ApiError(400, str(error), param=param) from error

    async def _file(self, url: str) -> bytes:
        if url[:5].lower() == "data:":
            return await self._state.in_thread(partial(from_data_uri, url))
        async with self._state.fetches:
            if self._state.fetched_bytes + MAX_BYTES > _FETCHED:
                message = "the requests present have fetched as much as this server takes: try again later."
                raise ApiError(429, message, kind="rate_limit_error", code="queue_full", retry_after=1)
            self._count(MAX_BYTES)  # it may be as large as that
            data = b""
            try:
                data = await fetch(url, self._state.options.allowed_urls)
                return data
            finally:
                self._count(len(data) - MAX_BYTES)

    def _count(self, size: int) -> None:
        self._bytes += size
        self._state.fetched_bytes += size


@dataclass
class AppState:
    """The state of one app, which its routes share.

    Attributes:
        service: the queue in front of the model.
        options: the server's options.
        metrics: the app's metrics.
        workers: bounds how many images are decoded or encoded at once.
        fetches: bounds how many images are fetched at once.
        fetched_bytes: bytes that requests have fetched which still gather their images.
        ready: whether the warm-up is over.
    """

    service: Service
    options: ServerOptions
    metrics: ServerMetrics
    workers: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(_WORKERS))
    fetches: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(_FETCHES))
    fetched_bytes: int = 0
    ready: bool = False

    async def in_thread(self, call: Callable[[], T]) -> T:
        """Runs a long call beside the event loop."""
        return await run_sync(call, limiter=self.workers)

    def model(self, name: str | None) -> str:
        """The name of the model that a body asks for; its first one where the body names none.

        Raises:
            ApiError: it is another than the one here.
        """
        if name is not None and name not in self.options.names:
            raise no_such_model(name, self.options.names)
        return name or self.options.model_name

    def settings(self, request: Request, extra: Mapping[str, Any], task: Task) -> dict[str, Any]:
        """The generation settings among a body's extra fields. The answer's headers name those that have no effect.

        Raises:
            ApiError: a field is not offered.
        """
        parsed = parse_extra(extra, task, self.options.strict)
        if parsed.ignored:
            request.state.headers[IGNORED_HEADER] = ", ".join(parsed.ignored)
        return parsed.settings

    async def start(
        self,
        request: Request,
        given: Sequence[Given],
        output: str,
        n: int,
        settings: dict[str, Any],
        listen: Listen | None = None,
    ) -> SubmittedBatch:
        """Checks a request and submits it.

        Raises:
            ApiError: one of the texts and images cannot be used.
            Exception: as `Service.start`.
        """
        inputs = [one.content for one in given]
        hint = self.service.bagel.hint("\n".join(one for one in inputs if isinstance(one, str)))
        if hint is not None:
            # Headers are ASCII; whatever else a prompt has is escaped, as in Python.
            ascii_hint = hint.replace("×", "x").encode("ascii", "backslashreplace")
            request.state.headers[HINT_HEADER] = ascii_hint.decode()
        if self.options.log_prompts:
            _log.info("%s asks %r", request.state.request_id, [item for item in inputs if isinstance(item, str)])
        call = partial(self.service.start, inputs, output=output, n=n, listen=listen, **settings)
        try:
            return await self.in_thread(call)
        except InputError as error:
            raise ApiError(400, str(error), param=given[error.number].param) from error

    async def results(self, request: Request, started: SubmittedBatch) -> list[Result]:
        """Waits for all results; if the client leaves, or one of them fails, the others are cancelled.

        Raises:
            ClientGone: the client has left.
            Exception: what a request raised.
        """
        waiting = asyncio.gather(*(asyncio.wrap_future(ticket) for ticket in started.tickets))
        # Where the client leaves, nobody asks for what became of the results.
        waiting.add_done_callback(lambda done: done.cancelled() or done.exception())
        gone = asyncio.create_task(_disconnected(request))
        try:
            both: set[asyncio.Future[Any]] = {waiting, gone}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise ClientGone
            try:
                results: list[Result] = waiting.result()
            except asyncio.CancelledError as error:  # a request was cancelled, not this task, which awaits nothing here
                raise CancelledError from error
        finally:
            started.cancel()
            gone.cancel()
            with suppress(BaseException):
                waiting.cancel()
        for result in results:
            self.metrics.count(started.request, result)
        return results

    async def stream(
        self, request: Request, started: SubmittedBatch, channel: Channel, encode: Callable[[Text | Preview | End], Any]
    ) -> AsyncGenerator[bytes, None]:
        """Events as they come, encoded by an asynchronous generator, until all results are there.

        An error ends the stream, as an event with OpenAI's error object. So does the client, by leaving.
        """
        for index, ticket in enumerate(started.tickets):
            ticket.add_done_callback(partial(channel.end, index))
        left = len(started.tickets)
        try:
            while left:
                news = await channel.next()
                if news is None:
                    yield PING
                    continue
                if isinstance(news, End):
                    self.metrics.count(started.request, news.result())
                    left -= 1
                async for chunk in encode(news):
                    yield chunk
        except Exception as error:
            log_failure(error, request.state.request_id, self.options.log_prompts)
            yield event(as_api_error(error).content)
        finally:
            started.cancel()
            self.metrics.dropped_previews.inc(channel.dropped)


async def _disconnected(request: Request) -> None:
    """Waits until the client leaves. The body has been read by then."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def state_of(request: Request) -> AppState:
    """The app's state, as a dependency of a route."""
    state: AppState = request.app.state.bagel
    return state


HINT_HEADER = "x-bagel-hint"
"""The header that says which words of a prompt the checkpoint does not know."""
IGNORED_HEADER = "x-bagel-ignored"
"""The header that names the fields of a body that had no effect."""
CurrentState = Annotated[AppState, Depends(state_of)]
"""A route's parameter that receives the app's state."""
