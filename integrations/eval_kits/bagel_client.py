"""A client of `bagel serve` for evaluation kits. It needs Python's standard library alone, since each kit has an
environment of its own.
"""

from __future__ import annotations

import base64
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

URL, KEY = "BAGEL_SERVER_URL", "BAGEL_SERVER_KEY"
_AGAIN = (408, 429, 500, 502, 503, 504)  # statuses after which the same may be asked
_LONGEST_PAUSE = 60.0  # seconds
# Beginnings of files; the server reads the type off the bytes, and PNG stands for all others.
_TYPES = {b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif", b"RIFF": "image/webp"}

Part = str | Path | bytes
"""A text, or an image as its file or the bytes of one."""


class ServerError(RuntimeError):
    """The server refuses a request, or does not answer.

    Attributes:
        status: the status of its answer; 0 where there was none.
        wait: the seconds that it asks to be left alone; None where it does not say.
    """

    def __init__(self, sentence: str, status: int = 0, wait: float | None = None) -> None:
        super().__init__(sentence)
        self.status, self.wait = status, wait


class BagelClient:
    """Asks a server.

    Args:
        url: the address, which ends in /v1; by default that of the variable BAGEL_SERVER_URL, else this machine's
            port 8000.
        model: the model's name there; None takes the one that is served.
        key: the key; by default that of the variable BAGEL_SERVER_KEY.
        timeout: seconds that an answer may take.
        tries: how often a request is sent while the server is busy or not reached.
    """

    def __init__(
        self,
        url: str | None = None,
        model: str | None = None,
        key: str | None = None,
        *,
        timeout: float = 600.0,
        tries: int = 6,
    ) -> None:
        self.url = (url or os.environ.get(URL) or "http://127.0.0.1:8000/v1").rstrip("/")
        self.model, self.timeout, self.tries = model, timeout, tries
        self._key = key or os.environ.get(KEY)

    def answer(self, messages: Sequence[tuple[str, Sequence[Part]]], **settings: Any) -> str:
        """The answer to a conversation.

        Args:
            messages: the role and the parts of each message, in order; the last one is the user's.
            **settings: fields of the request, such as `max_tokens`, `think` or `vit_min_size`.

        Raises: ServerError.
        """
        told = [{"role": role, "content": [_content(part) for part in parts]} for role, parts in messages]
        reply = self._post("/chat/completions", {"messages": told, **settings})
        return str(_field(reply, "choices", "message", "content") or "")

    def generate(self, prompt: str, **settings: Any) -> bytes:
        """The drawn image, as the bytes of a PNG file.

        Args:
            prompt: the text.
            **settings: fields of the request, such as `seed`, `size` ("1024x1024") or `cfg_text_scale`.

        Raises: ServerError.
        """
        reply = self._post("/images/generations", {"prompt": prompt, "n": 1, **settings})
        return base64.b64decode(_field(reply, "data", "b64_json"))

    def edit(self, images: Sequence[Path | bytes], prompt: str, **settings: Any) -> bytes:
        """The image that is made from others by an instruction, as the bytes of a PNG file; see `generate`."""
        given = [{"image_url": _data_uri(image)} for image in images]
        reply = self._post("/images/edits", {"prompt": prompt, "n": 1, "images": given, **settings})
        return base64.b64decode(_field(reply, "data", "b64_json"))

    def _post(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        named = {"model": self.model} if self.model else {}
        for tried in range(1, self.tries + 1):
            try:
                return self._call(path, {**named, **body})
            except ServerError as error:
                if tried == self.tries or (error.status and error.status not in _AGAIN):
                    raise
                time.sleep(min(2.0 ** (tried - 1) if error.wait is None else error.wait, _LONGEST_PAUSE))
        raise AssertionError("there is at least one try")

    def _call(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        headers = {
            "Content-Type": "application/json",
            **({"Authorization": f"Bearer {self._key}"} if self._key else {}),
        }
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                found = json.load(answer)
        except urllib.error.HTTPError as error:
            raise ServerError(
                f"{self.url} answers with status {error.code}: {_said(error.read())}",
                error.code,
                _seconds(error.headers.get("Retry-After")),
            ) from error
        except (OSError, ValueError) as error:
            raise ServerError(f"{self.url}{path} does not answer ({error}): is `bagel serve` there?") from error
        if not isinstance(found, dict):
            raise ServerError(f"{self.url}{path} sent no JSON object.")
        return found


def _content(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image_url", "image_url": {"url": _data_uri(part)}}


def _data_uri(image: Path | bytes) -> str:
    data = image if isinstance(image, bytes) else image.read_bytes()
    kind = next((kind for start, kind in _TYPES.items() if data.startswith(start)), "image/png")
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _field(reply: Mapping[str, Any], first: str, *names: str) -> Any:
    """A field of the first element of a list in a reply."""
    try:
        found = reply[first][0]
        for name in names:
            found = found[name]
    except (KeyError, IndexError, TypeError) as error:
        raise ServerError(f"the server's reply has no {first}[0].{'.'.join(names)}.") from error
    return found


def _said(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return " ".join(body.decode("utf-8", "replace").split())[:200]


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else max(float(text), 0.0)
    except ValueError:
        return None
