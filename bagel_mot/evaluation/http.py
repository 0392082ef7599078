"""Requests to a server of models: with retries while it may still answer, and one sentence when it will not."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx2

from bagel_mot.errors import EvaluationError

_PATIENT = (408, 409, 425, 429, 500, 502, 503, 504)  # statuses after which another try may succeed
_TRIES = 6
_LONGEST_PAUSE = 60.0  # seconds
_SHOWN = 200  # characters of a server's message


class Refused(Exception):
    """The server refuses this request, which others need not share: its status and what it says."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"status {status}: {said}")
        self.status, self.said = status, said


class ModelServer:
    """A server that speaks OpenAI's interface.

    Args:
        url: the base address, such as http://127.0.0.1:8000/v1.
        key: the key, sent as a bearer token; None sends none.
        timeout: seconds that an answer may take.
        sleep: waits between tries.

    Raises: EvaluationError if the address cannot be one.
    """

    def __init__(
        self, url: str, key: str | None = None, *, timeout: float = 600.0, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise EvaluationError(f"{url!r} is not the address of a server: write it as http://HOST:PORT/v1.")
        self.url, self._sleep = url.rstrip("/"), sleep
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._client = httpx2.Client(headers=headers, timeout=httpx2.Timeout(timeout, connect=20.0))

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """The JSON object that the server answers to a POST.

        Args:
            path: the path below the base address, such as /chat/completions.
            **body: arguments of `httpx2.Client.post`: `json`, or `data` and `files`.

        Raises:
            Refused: the server refuses this request for what it asks.
            EvaluationError: the server is not reached, refuses the key, has no quota left, lacks the route or the
                model, or its answers are no JSON objects, after several tries.
        """
        return self._send("POST", path, **body)

    def get(self, path: str) -> dict[str, Any]:
        """The JSON object that the server answers to a GET; errors as `post`."""
        return self._send("GET", path)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _send(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        last = ""
        for attempt in range(_TRIES):
            pause = min(2.0**attempt, _LONGEST_PAUSE)
            try:
                answer = self._client.request(method, self.url + path, **body)
            except httpx2.InvalidURL as error:
                raise EvaluationError(f"{self.url!r} is not the address of a server ({error}).") from error
            except httpx2.TransportError as error:
                last = f"it is not reached ({str(error) or type(error).__name__})"
            else:
                if answer.is_success:
                    found = _object(answer)
                    if found is not None:
                        return found
                    last = "its answer is not a JSON object"
                else:
                    said = _message(answer)
                    self._give_up(answer.status_code, said)
                    last = f"it answers with status {answer.status_code}: {said}"
                    pause = _pause(answer.headers, pause)
            if attempt + 1 < _TRIES:
                self._sleep(pause)
        raise EvaluationError(f"{self.url}{path} does not answer after {_TRIES} tries: {last}.")

    def _give_up(self, status: int, said: str) -> None:
        spent = "quota" in said.lower() or "billing" in said.lower()
        if status in (401, 402, 403) or (status == 429 and spent):
            reason = "has no quota left" if status == 402 or spent else "refuses the key"
            raise EvaluationError(f"{self.url} {reason} (status {status}: {said}).")
        if status == 404:
            raise EvaluationError(f"{self.url} has no such route or model (status 404: {said}).")
        if status not in _PATIENT:
            raise Refused(status, said)


def _object(answer: httpx2.Response) -> dict[str, Any] | None:
    try:
        found = answer.json()
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _message(answer: httpx2.Response) -> str:
    """The message in an error's body, shortened."""
    found = _object(answer) or {}
    error = found.get("error", found.get("detail"))
    said = error.get("message") if isinstance(error, dict) else error
    text = " ".join(str(said or answer.text or answer.reason_phrase).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _pause(headers: Mapping[str, str], otherwise: float) -> float:
    """The seconds that a server wants its client to wait."""
    try:
        return min(max(float(headers.get("retry-after", "")), 0.0), _LONGEST_PAUSE)
    except ValueError:
        return otherwise
