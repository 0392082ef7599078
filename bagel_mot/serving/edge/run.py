"""Running an app until a signal: requests at work are finished first, and a second signal ends at once."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from bagel_mot.errors import BagelError, SettingError
from bagel_mot.serving.edge.security import STALLED_SECONDS
from bagel_mot.serving.service import Service

_log = logging.getLogger("bagel_mot.serving")
_GRACE_SECONDS = 30  # for clients to fetch their results, once all requests are done


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server at this address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_exposure(host: str, keys: tuple[str, ...], no_auth: bool) -> None:
    """Checks that only those may use the server who are meant to.

    Raises:
        SettingError: strangers could reach the server, and nothing would keep them from using it.
    """
    if not keys and not no_auth and not is_loopback(host):
        raise SettingError(
            f"host {host} can be reached from other machines, and there is no API key: "
            "give one with BAGEL_API_KEYS or --api-key, or --no-auth to serve everybody."
        )


def listen(host: str, port: int, stalled: float = STALLED_SECONDS) -> socket.socket:
    """A socket at this address; port 0 takes a free one.

    Args:
        host: the name or address to listen at.
        port: the port.
        stalled: seconds after which a connection is closed whose client takes nothing that is sent (on Linux): the
            system keeps an answer that is not fetched, and would keep it as long as the client likes.

    Raises:
        BagelError: the address cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if sys.platform == "linux":
                found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * stalled))
            found.bind(address)
        except BaseException:
            found.close()
            raise
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BagelError(
            f"port {port} of {host} cannot be listened at ({reason}): give another --host or --port."
        ) from error
    return found


def address_of(listening: socket.socket) -> str:
    """The URL of a socket, as a client writes it."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if listening.family == socket.AF_INET6 else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """A uvicorn server that drains its service before it goes."""

    def __init__(self, app: FastAPI, service: Service, on_start: Callable[[], None] | None = None) -> None:
        # Its own log lines would name addresses, not routes; ours are written by the app.
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        super().__init__(config)
        self._service, self._on_start = service, on_start
        self._signalled = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._on_start is not None:
            self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the draining; the work is done in `on_tick`, since this may interrupt anything."""
        if self._signalled:
            os._exit(128 + sig)  # threads in the middle of a step would hold up any other way out
        self._signalled = True

    async def on_tick(self, counter: int) -> bool:
        if self._signalled and self._service.open:
            self._service.close()
            _log.info("shutting down: %d requests are being finished", self._service.present)
        if self._signalled and self._service.present == 0:
            self.should_exit = True
        return await super().on_tick(counter)


def serve(app: FastAPI, service: Service, listening: socket.socket, on_start: Callable[[], None] | None = None) -> None:
    """Serves until SIGTERM or SIGINT, and returns when the requests at work then are done.

    Args:
        app: the app.
        service: the queue that is drained at the end.
        listening: a socket from `listen`.
        on_start: called as soon as requests are accepted.
    """
    Server(app, service, on_start).run([listening])
