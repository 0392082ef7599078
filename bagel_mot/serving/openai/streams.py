"""The events of a request, from the thread that drives the engine to its client.

The thread never waits for a client. Events that a slow one has not fetched yet are kept, within bounds: a text grows in
one piece, and only the newest preview of an image is kept.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import anyio
from PIL import Image
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from bagel_mot.inference.preview import due
from bagel_mot.inference.request import Listener, Request
from bagel_mot.inference.result import Result
from bagel_mot.serving.openai.errors import ClientGone

PING_SECONDS = 15.0
"""Seconds of silence after which a comment is sent, so that no proxy takes the connection for dead."""


@dataclass(frozen=True)
class Text:
    """More of a text."""

    index: int
    text: str


@dataclass(frozen=True)
class Preview:
    """A preview of an image; `number` counts those of this image."""

    index: int
    number: int
    image: Image.Image


@dataclass(frozen=True)
class End:
    """The end of a request: its result or its error."""

    index: int
    future: Future[Result]

    def result(self) -> Result:
        """The result.

        Raises: what the request raised.
        """
        return self.future.result()


Event = Text | Preview | End


class Channel:
    """The events of one request's results, in order of arrival. It belongs to the event loop that makes it.

    Attributes:
        dropped: previews that were replaced by newer ones before they were fetched.
    """

    def __init__(self, previews: int = 0) -> None:
        """Begins without events; `previews` is the maximum for each image."""
        self.dropped = 0
        self._previews = previews
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Event] = deque()
        self._news = asyncio.Event()

    def listen(self, index: int, request: Request) -> Listener:
        """Callbacks of one result, for the thread that drives the engine."""
        wanted = chosen_previews(request.settings.num_timesteps, self._previews) if request.task.draws else []
        seen = 0

        def on_preview(image: Image.Image) -> None:
            nonlocal seen
            if seen in wanted:
                self._post(Preview(index, wanted.index(seen), image))
            seen += 1

        return Listener(on_text=lambda piece: self._post(Text(index, piece)), on_preview=on_preview if wanted else None)

    def end(self, index: int, future: Future[Result]) -> None:
        """Adds the end of a result; a callback of its future."""
        self._post(End(index, future))

    async def next(self, timeout: float = PING_SECONDS) -> Event | None:
        """The next event; None after `timeout` seconds without one."""
        if not self._waiting:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._news.wait()
        self._news.clear()
        return self._waiting.popleft() if self._waiting else None

    def _post(self, event: Event) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._put, event)

    def _put(self, event: Event) -> None:
        for place, earlier in enumerate(self._waiting):
            if earlier.index == event.index and isinstance(earlier, Text) and isinstance(event, Text):
                self._waiting[place] = Text(event.index, earlier.text + event.text)
                break
            if earlier.index == event.index and isinstance(earlier, Preview) and isinstance(event, Preview):
                self._waiting[place] = event
                self.dropped += 1
                break
        else:
            self._waiting.append(event)
        self._news.set()


def chosen_previews(num_timesteps: int, count: int) -> list[int]:
    """The numbers of the engine's previews that are sent, counted from 0: up to `count`, evenly spread."""
    steps = num_timesteps - 1
    given = sum(due(done, steps) for done in range(1, steps))
    count = min(count, given)
    return [(2 * i + 1) * given // (2 * count) for i in range(count)]


def event(data: Any, name: str | None = None) -> bytes:
    """One server-sent event; data other than text becomes JSON."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {text}\n\n".encode(errors="replace")


PING = b": ping\n\n"


class EventStream(StreamingResponse):
    """Server-sent events. If the client leaves, the generator is closed at once, wherever it waits, and `ClientGone` is
    raised.
    """

    media_type = "text/event-stream"

    def __init__(self, content: AsyncGenerator[bytes, None], close: Callable[[], None]) -> None:
        """Sends the events of `content`, and calls `close` at the end in any case, even if that was never begun."""
        self._generator, self._close = content, close
        # The second header keeps nginx from collecting the events of minutes.
        super().__init__(self._generator, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        complete = False
        try:
            async with anyio.create_task_group() as tasks:

                async def watch() -> None:
                    await self.listen_for_disconnect(receive)
                    tasks.cancel_scope.cancel()

                tasks.start_soon(watch)
                with suppress(OSError):  # some servers raise it when the client has left
                    await self.stream_response(send)
                    complete = True
                tasks.cancel_scope.cancel()
        finally:
            self._close()
            with anyio.CancelScope(shield=True):
                await self._generator.aclose()
        if not complete:
            raise ClientGone
