"""From a checked body to results: what all routes share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self, TypeVar

import anyio
from anyio.to_thread import run_sync
from fastapi import Request

from bagel_mot.inference.result import Result
from bagel_mot.serving.edge.fetch import MAX_BYTES, fetch
from bagel_mot.serving.edge.metrics import Metrics
from bagel_mot.serving.openai.errors import ApiError, ClientGone, as_api_error, log_failure, no_such_model
from bagel_mot.serving.openai.image_data import from_data_uri
from bagel_mot.serving.openai.streams import PING, Channel, End, Preview, Text, event
from bagel_mot.serving.options import ServerOptions
from bagel_mot.serving.service import Listen, Service, SubmittedBatch

T = TypeVar("T")
_log = logging.getLogger("bagel_mot.serving")
_WORKERS = 4  # images that are decoded or encoded at the same time
_FETCHES = 8  # images that are fetched at the same time
_FETCHED = 2 * _FETCHES * MAX_BYTES  # bytes of all requests that still gather their images


class Images:
    """Gathers the images of one request. What was fetched counts until the request is taken in, which keeps them at
    the size that the model reads; what came with the request was counted before.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk, self._bytes = desk, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._count(-self._bytes)

    async def file(self, url: str) -> bytes:
        """The file behind a data URI or an address.

        Raises:
            ImageError: it is neither, or not to be had.
            ApiError: the requests present have fetched as much as the server takes.
        """
        if url[:5].lower() == "data:":
            return await self._desk.in_thread(partial(from_data_uri, url))
        async with self._desk.fetches:
            if self._desk.fetched_bytes + MAX_BYTES > _FETCHED:
                message = "the requests present have fetched as much as this server takes: try again later."
                raise ApiError(429, message, kind="rate_limit_error", code="queue_full", retry_after=1)
            self._count(MAX_BYTES)  # it may be as large as that
            data = b""
            try:
                data = await fetch(url, self._desk.options.allowed_urls)
                return data
            finally:
                self._count(len(data) - MAX_BYTES)

    def _count(self, size: int) -> None:
        self._bytes += size
        self._desk.fetched_bytes += size


@dataclass
class Desk:
    """What an app's routes work with."""

    service: Service
    options: ServerOptions
    metrics: Metrics
    workers: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(_WORKERS))
    fetches: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(_FETCHES))
    fetched_bytes: int = 0
    ready: bool = False

    async def in_thread(self, call: Callable[[], T]) -> T:
        """Runs what takes long beside the event loop."""
        return await run_sync(call, limiter=self.workers)

    def check_model(self, name: str | None) -> None:
        """
        Raises:
            ApiError: the model is another than the one here.
        """
        if name is not None and name != self.options.model_name:
            raise no_such_model(name, self.options.model_name)

    async def start(
        self,
        request: Request,
        inputs: Sequence[str | bytes],
        output: str,
        n: int,
        settings: dict[str, Any],
        listen: Listen | None = None,
    ) -> SubmittedBatch:
        """Checks a request and takes it in.

        Raises: as `Service.start`.
        """
        if self.options.log_prompts:
            _log.info("%s asks %r", request.state.request_id, [item for item in inputs if isinstance(item, str)])
        call = partial(self.service.start, inputs, output=output, n=n, listen=listen, **settings)
        return await self.in_thread(call)

    async def results(self, request: Request, started: SubmittedBatch) -> list[Result]:
        """Waits for all results; if the client leaves, or one of them fails, the others are cancelled.

        Raises:
            ClientGone: the client has left.
            Exception: what a request raised.
        """
        waiting = asyncio.gather(*(asyncio.wrap_future(ticket) for ticket in started.tickets))
        gone = asyncio.create_task(_disconnected(request))
        try:
            both: set[asyncio.Future[Any]] = {waiting, gone}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise ClientGone
            try:
                results: list[Result] = waiting.result()
            except asyncio.CancelledError as error:  # of a request, not of this task: nothing is awaited here
                raise CancelledError from error
        finally:
            started.cancel()
            gone.cancel()
            with suppress(BaseException):
                waiting.cancel()
        for result in results:
            self.count(started, result)
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
                    self.count(started, news.result())
                    left -= 1
                async for chunk in encode(news):
                    yield chunk
        except Exception as error:
            log_failure(error, request.state.request_id, self.options.log_prompts)
            yield event(as_api_error(error).content)
        finally:
            started.cancel()
            self.metrics.dropped_previews.inc(channel.dropped)

    def count(self, started: SubmittedBatch, result: Result) -> None:
        """Counts a result for the metrics."""
        self.metrics.count(started.request, result)


async def _disconnected(request: Request) -> None:
    """Returns when the client has left. The body has been read by then."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def desk_of(request: Request) -> Desk:
    """For `Depends`."""
    desk: Desk = request.app.state.desk
    return desk
