"""Middleware before all routes: a number for each request, its line in the log, keys, hosts, and a full queue.

All of it is plain ASGI, so that streams pass through untouched.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
import uuid
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bagel_mot.serving.edge.metrics import ServerMetrics
from bagel_mot.serving.limits import BusyError
from bagel_mot.serving.openai.errors import TOO_LARGE, ApiError, ClientGone, as_api_error, log_failure
from bagel_mot.serving.service import Service

_log = logging.getLogger("bagel_mot.serving")
PROTECTED = ("/v1", "/metrics")
"""Paths that need a key where there are any."""
_CLIENT_GONE = 499
_METHODS = ("GET", "POST", "OPTIONS", "HEAD", "PUT", "PATCH", "DELETE")
"""Methods that are counted by name: a client may make up others, and each would be kept."""
_BODIES = 8
"""The bodies of all present requests may hold this many times the bytes of one."""
STALLED_SECONDS = 60
"""Seconds after which a client is given up that sends nothing of the body it announced."""
_STALLED = ApiError(408, "the rest of the request did not come.", code="request_timeout")


def is_key(shown: str, keys: Sequence[str]) -> bool:
    """Compares with every key in full, so that the time it takes reveals nothing."""
    matches = [hmac.compare_digest(shown.encode(errors="replace"), key.encode()) for key in keys]
    return any(matches)


class Gate:
    """Refuses requests that must not or cannot be answered, before their body is read."""

    def __init__(
        self, app: ASGIApp, service: Service, keys: Sequence[str], hosts: Sequence[str] | None, max_body_bytes: int
    ) -> None:
        self.app, self.service, self.keys, self.max_body_bytes = app, service, keys, max_body_bytes
        self.hosts = None if hosts is None else {host.lower() for host in hosts}
        self._held = 0  # bytes in the bodies of all present requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("content-length", "")
        # A body of unknown length is stopped while it is read.
        length = int(given) if given.isdigit() else self.max_body_bytes if scope["method"] == "POST" else 0
        refusal = self._refusal(scope, headers, length)
        if refusal is not None:
            await refusal.response()(scope, receive, send)
            return
        self._held += length
        body = _Body(receive, send)
        try:
            await self.app(scope, body.receive, body.send)
        except Exception:
            if not body.stalled:
                raise
        finally:
            self._held -= length
        if body.stalled and not body.answered:
            await _STALLED.response()(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers, length: int) -> ApiError | None:
        if self.hosts is not None and _host(headers.get("host", "")) not in self.hosts:
            # A web page whose name was pointed at this machine looks like this.
            return ApiError(403, "the server must not be addressed by this name.", code="host_not_allowed")
        if length > self.max_body_bytes:
            return TOO_LARGE
        path = str(scope["path"])
        if not any(path == root or path.startswith(f"{root}/") for root in PROTECTED):
            return None
        if self.keys:
            scheme, _, shown = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not is_key(shown.strip(), self.keys):
                return ApiError(
                    401,
                    "no valid API key was shown: send it as 'Authorization: Bearer KEY'.",
                    kind="authentication_error",
                    code="invalid_api_key",
                )
        if scope["method"] == "POST":
            try:
                self.service.check_place()
            except BusyError as error:
                return as_api_error(error)
            if self._held + length > _BODIES * self.max_body_bytes:
                message = "the requests present hold as much data as this server takes: try again later."
                return ApiError(429, message, kind="rate_limit_error", code="queue_full", retry_after=1)
        return None


class _Body:
    """The two directions of one request. For the app, a client that stops in the middle of its body has left: it would
    hold its share of the bytes that all bodies may have for as long as it likes.

    Attributes:
        stalled: whether it has stopped so.
        answered: whether an answer began before.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._complete = self.stalled = self.answered = False

    async def receive(self) -> Message:
        if self._complete:  # the only message to come is that the client leaves, whenever that may be
            return await self._receive()
        try:
            async with asyncio.timeout(STALLED_SECONDS):
                message = await self._receive()
        except TimeoutError:
            self._complete = self.stalled = True
            return {"type": "http.disconnect"}
        self._complete = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        # About an incomplete body the app has nothing true to say.
        if self.answered or not self.stalled:
            self.answered = True
            await self._send(message)


class Observe:
    """Numbers requests, counts and logs them, adds the headers that routes leave in their state, responds to unexpected
    errors, and answers HEAD as GET without a body.
    """

    def __init__(self, app: ASGIApp, metrics: ServerMetrics, log_prompts: bool) -> None:
        self.app, self.metrics, self.log_prompts = app, metrics, log_prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        number = f"req_{uuid.uuid4().hex[:16]}"
        state = scope.setdefault("state", {})
        state["request_id"], state["headers"] = number, {}
        began, status, method = time.monotonic(), 0, scope["method"]
        if method == "HEAD":  # as GET; the body is left out below
            scope = {**scope, "method": "GET"}

        async def numbered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = number
                headers.update(state["headers"])
            elif method == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        try:
            await self.app(scope, receive, numbered)
        except ClientGone:
            status = _CLIENT_GONE
        except Exception as error:
            log_failure(error, number, self.log_prompts)
            if not status:
                await as_api_error(error).response()(scope, receive, numbered)
        finally:
            seconds = time.monotonic() - began
            route = getattr(scope.get("route"), "path", "other")
            counted = method if route != "other" and method in _METHODS else "any"
            self.metrics.requests.labels(counted, route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            _log.info("%s %s %s %d %.3f s", number, method, route, status, seconds)


def _host(header: str) -> str:
    """The name in a `Host` header, without its port."""
    name, colon, port = header.rpartition(":")
    return (name if colon and port.isdigit() else header).lower()
