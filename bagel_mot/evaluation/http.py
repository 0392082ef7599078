"""Requests to a server of models, be it one that answers items or one that judges: with retries while it may still
answer, and one sentence when it will not. The key is neither shown nor stored.
"""

from __future__ import annotations

import email.utils
import json
import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from bagel_mot.errors import EvaluationError, SettingError
from bagel_mot.installation import install_command

if TYPE_CHECKING:
    import httpx2

CHAT = "/chat/completions"
_MAX_BYTES = 64 << 20  # the longest answer that is read
_SHOWN = 200  # characters of what a server says about itself
_AGAIN = (408, 409, 425, 429)  # statuses below 500 after which the same may be asked
_NEVER = (501, 505)  # statuses of a server that does not know such requests
_NO_QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "quota_exceeded")
_KEPT = "what is done is kept, and the same command goes on from there"
_LIMIT, _NEWER_LIMIT = "max_tokens", "max_completion_tokens"

Read = TypeVar("Read")


class Refused(Exception):
    """The server refuses this request, which others need not share: its status and what it says."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"status {status}: {said}")
        self.status, self.said = status, said


class CallFailed(Exception):
    """A call that failed, after which the same may be asked again: with the reason in words.

    Attributes:
        wait: the seconds that the server asks to be left alone; None where it does not say.
        unreachable: whether there was no server.
    """

    def __init__(self, reason: str, *, wait: float | None = None, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.unreachable = wait, unreachable


class UnansweredError(EvaluationError):
    """Every try of a request failed.

    Attributes:
        reason: the last failure in words.
        unreachable: whether there was no server.
    """

    def __init__(self, sentence: str, failure: CallFailed) -> None:
        super().__init__(sentence)
        self.reason, self.unreachable = str(failure), failure.unreachable


class NotServedError(EvaluationError):
    """The server knows no such route or model."""


class ModelServer:
    """A server that speaks OpenAI's interface. It may be used by several threads at once.

    Args:
        url: the address: `http://HOST:PORT`, one that ends in `/v1`, or the whole address of the chat completions.
        key: the key, sent as a bearer token; None sends none.
        role: the word for the server in sentences, such as "judge".
        key_name: the variable of the environment that a valid key is asked for in.
        timeout: seconds that one call may take in all.
        tries: calls of one request, at most.
        longest_wait: seconds between two tries, at most; a server that asks for more ends the run.
        sleep: waits a number of seconds.
        on_call: is called before each call.

    Attributes:
        url: the address below which the routes are.

    Raises: SettingError if the address cannot be one; EvaluationError if httpx2 is not installed.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        role: str = "server",
        key_name: str = "BAGEL_SERVER_KEY",
        timeout: float = 600.0,
        tries: int = 6,
        longest_wait: float = 120.0,
        sleep: Callable[[float], None] = time.sleep,
        on_call: Callable[[], None] = lambda: None,
    ) -> None:
        try:
            import httpx2
        except ImportError as error:
            raise EvaluationError(f"a {role} at an address needs httpx2: {install_command('eval')}") from error
        self._http = httpx2
        self._base = _base_url(httpx2, url, role, key_name)
        self.url = str(self._base.copy_with(query=None))
        self._who, self._key, self._key_name = f"the {role} at {self.url}", key, key_name
        self._timeout, self._tries, self._longest_wait = timeout, tries, longest_wait
        self._limit_name = _LIMIT
        self._sleep, self._on_call = sleep, on_call
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        limits = httpx2.Timeout(timeout, connect=min(30.0, timeout), pool=None)
        self._client = httpx2.Client(headers=headers, timeout=limits, follow_redirects=False)

    def post(self, path: str, read: Callable[[Mapping[str, Any]], Read], **body: Any) -> Read:
        """The part of the JSON object that the server answers to a POST, as `read` finds it.

        Args:
            path: the path below the address, such as /chat/completions.
            read: takes what is wanted from the object; it raises CallFailed if that is not in it.
            **body: arguments of `httpx2.Client.stream`: `json`, or `data` and `files`.

        Raises:
            Refused: the server refuses this request for what it asks.
            UnansweredError: every try of this request failed.
            EvaluationError: no request will be answered: the server refuses the key, has no quota left, lacks the
                route or the model, or asks to be left alone for long.
        """
        return self._send("POST", path, read, body)

    def chat(self, body: Mapping[str, Any], read: Callable[[Mapping[str, Any]], Read]) -> Read:
        """Posts a chat completion, like `post`; its "max_tokens" goes by the name that the model knows."""
        while True:
            limit = self._limit_name
            sent = {limit if name == _LIMIT else name: value for name, value in body.items()}
            try:
                return self.post(CHAT, read, json=sent)
            except Refused as refused:
                if refused.status != 400 or _NEWER_LIMIT not in refused.said or limit == _NEWER_LIMIT:
                    raise
                self._limit_name = _NEWER_LIMIT  # reasoning models of OpenAI know the limit by this name alone

    def get(self, path: str) -> Mapping[str, Any]:
        """The JSON object that the server answers to a GET; errors as `post`."""
        return self._send("GET", path, lambda found: found, {})

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _send(self, method: str, path: str, read: Callable[[Mapping[str, Any]], Read], body: Mapping[str, Any]) -> Read:
        for tried in range(1, self._tries + 1):
            try:
                return read(self._object(*self._call(method, path, body)))
            except CallFailed as failure:
                if tried == self._tries:
                    tries = f"{tried} tries" if tried > 1 else "1 try"
                    sentence = f"{self.url}{path} does not answer after {tries}: {failure}."
                    raise UnansweredError(sentence, failure) from failure
                self._sleep(self._pause(failure, tried))
        raise AssertionError("there is at least one try")

    def _pause(self, failure: CallFailed, tried: int) -> float:
        """Seconds until the next try: as the server asks, else twice as many as before the last one."""
        if failure.wait is None:
            return min(2.0 ** (tried - 1), self._longest_wait)
        if failure.wait > self._longest_wait:
            raise EvaluationError(
                f"{self._who} asks to be left alone for {failure.wait:.0f} seconds: come back then; {_KEPT}."
            )
        return failure.wait

    def _call(self, method: str, path: str, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and content of one call, which ends at its time limit however slowly it drips."""
        http, end = self._http, time.monotonic() + self._timeout
        self._on_call()
        late = f"it did not answer within {self._timeout:g} seconds"
        url = self._base.copy_with(path=self._base.path + path)
        try:
            with self._client.stream(method, url, **body) as response:
                content = bytearray()
                for piece in response.iter_bytes():
                    content += piece
                    if time.monotonic() > end:
                        raise CallFailed(late)
                    if len(content) > _MAX_BYTES:
                        raise CallFailed(f"its answer is longer than {_MAX_BYTES >> 20} MiB")
                return response.status_code, response.headers, bytes(content)
        except http.ConnectError as error:
            raise CallFailed(f"it is not reached ({self._shown(str(error))})", unreachable=True) from error
        except http.TimeoutException as error:
            raise CallFailed(late, unreachable=isinstance(error, http.ConnectTimeout)) from error
        except (http.HTTPError, http.InvalidURL) as error:
            raise CallFailed(f"the connection broke ({self._shown(str(error) or type(error).__name__)})") from error

    def _object(self, status: int, headers: Mapping[str, str], content: bytes) -> dict[str, Any]:
        """The JSON object of an answer; errors as `post`."""
        try:
            found = _storable(json.loads(content), content)
        except (ValueError, RecursionError):
            found = None
        error = found.get("error", found.get("detail")) if isinstance(found, dict) else None
        if 200 <= status < 300 and error:  # some gateways answer so
            code = error.get("code") if isinstance(error, dict) else None
            status = code if isinstance(code, int) and 400 <= code < 600 else 502
        if not 200 <= status < 300:
            self._refuse(status, headers, error, content)
        if not isinstance(found, dict):
            text = self._shown(content.decode("utf-8", "replace"))
            raise CallFailed(f"its answer is not a JSON object but {text!r}")
        return found

    def _refuse(self, status: int, headers: Mapping[str, str], error: Any, content: bytes) -> None:
        """Turns a refusal of the server into the error that it means, and raises it."""
        fields = error if isinstance(error, dict) else {"message": error}
        says = fields.get("message") if isinstance(fields.get("message"), str) else None
        said = self._shown(says or content.decode("utf-8", "replace"))
        reason = f"status {status}: {said}"
        spent = bool({fields.get("code"), fields.get("type")} & set(_NO_QUOTA))
        spent = spent or (status in (403, 429) and ("quota" in said.lower() or "billing" in said.lower()))
        if status == 402 or spent:
            raise EvaluationError(f"{self._who} is out of quota ({reason}): add to it; {_KEPT}.")
        if status in (401, 403):
            key = "its key" if self._key else "a request without a key"
            raise EvaluationError(
                f"{self._who} refuses {key} ({reason}): set {self._key_name} to a valid one; {_KEPT}."
            )
        if status in (404, 405):
            raise NotServedError(
                f"{self._who} does not know the model or the address ({reason}): give the address that ends in /v1, "
                f"and a model that it serves; {_KEPT}."
            )
        if 300 <= status < 400:
            raise EvaluationError(f"{self._who} sends elsewhere ({status}): give its own address; {_KEPT}.")
        if status in _AGAIN or (status >= 500 and status not in _NEVER):
            raise CallFailed(f"it answers with {reason}", wait=_retry_after(headers))
        raise Refused(status, said)

    def _shown(self, text: str) -> str:
        """The beginning of what a server says, on one line and without the key, should it be in there."""
        if self._key:
            text = text.replace(self._key, "…")
        line = " ".join(text.split())
        return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"


def said_in(message: Mapping[str, Any]) -> str | None:
    """The text of a message, in one piece or in parts; None where the model declined to say anything.

    Raises: CallFailed if it is something else.
    """
    said = message.get("content")
    if isinstance(said, list):
        texts = [part.get("text") for part in said if isinstance(part, dict)]
        said = "".join(text for text in texts if isinstance(text, str))
    if said is not None and not isinstance(said, str):
        raise CallFailed(f"its reply is a {type(said).__name__}, not a text")
    return said


def _storable(found: Any, content: bytes) -> Any:
    """The value of a JSON text, with U+FFFD for each half of a character, as servers send them that cut an answer
    within one: no file can hold it.
    """
    if b"\\ud" not in content and b"\\uD" not in content:
        return found
    text = json.dumps(found, ensure_ascii=False)
    return json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def _base_url(http: Any, url: str, role: str, key_name: str) -> httpx2.URL:
    """The address below which a server's routes are.

    Raises: SettingError if it cannot be one.
    """
    wrong = f"the {role}'s address is {url!r}: write http://HOST:PORT/v1."
    try:
        parsed = http.URL(url.strip())
    except (http.InvalidURL, ValueError, TypeError) as error:
        raise SettingError(wrong) from error
    if parsed.userinfo:
        raise SettingError(f"the {role}'s address holds a user or key: set {key_name} instead.")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise SettingError(wrong)
    return parsed.copy_with(path=parsed.path.rstrip("/").removesuffix(CHAT) or "/v1")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds in the header Retry-After, which are given as such or as a date; None where there is none to be read."""
    text = headers.get("retry-after", "").strip()
    try:
        seconds = float(text)
        return max(seconds, 0.0) if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None
