"""A server that answers as a script says, and remembers what it was asked."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str], bytes] | str


def reply(text: Any, **more: Any) -> tuple[int, dict[str, str], bytes]:
    """An answer in the format of chat completions."""
    body = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop", **more}]}
    return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()


def error(status: int, message: str = "no", headers: dict[str, str] | None = None, **fields: Any) -> Any:
    return status, headers or {}, json.dumps({"error": {"message": message, **fields}}).encode()


class Script:
    """The answers in order, the last of them again and again; a text is a reply.

    Attributes:
        asked: (path, headers, body) of each call.
        stops_after: calls after which the server is gone; None: it stays.
    """

    def __init__(self, answers: Sequence[Answer]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.url = ""
        self.together = self.most_together = 0
        self.stops_after: int | None = None
        self.meeting: threading.Barrier | None = None
        self.lock = threading.Lock()

    def next(self) -> tuple[int, dict[str, str], bytes]:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return reply(answer) if isinstance(answer, str) else answer


@contextmanager
def serving(*answers: Answer, port: int = 0) -> Iterator[Script]:
    """A server at an address of its own, or at a port that an earlier one had."""
    script = Script(answers or ["yes"])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with script.lock:
                script.asked.append((self.path, dict(self.headers), body))
                script.together += 1
                script.most_together = max(script.most_together, script.together)
                if script.stops_after is not None and len(script.asked) > script.stops_after:
                    return  # without an answer
                if len(script.asked) == script.stops_after:
                    server.socket.shutdown(socket.SHUT_RDWR)  # from here on connections are refused
                status, headers, content = script.next()
            if script.meeting is not None:
                script.meeting.wait(600)  # a guard alone: the others come when they come
            with script.lock:
                script.together -= 1
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield script
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
