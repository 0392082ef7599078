"""A judge behind an address: any server with OpenAI's chat completions, `bagel serve` among them.

What a judge says is for the benchmark to read. Here a reply is either had, or the call has failed; nothing is guessed.
The key comes from the environment, and is neither shown nor stored.
"""

from __future__ import annotations

import base64
import dataclasses
import email.utils
import hashlib
import io
import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from bagel_mot.errors import EvaluationError, SettingError
from bagel_mot.evaluation.judges.base import JudgeImage, JudgeMessage, JudgeRequest
from bagel_mot.evaluation.judges.reply_cache import ReplyCache
from bagel_mot.installation import install_command

if TYPE_CHECKING:
    import httpx2

KEY_VARIABLES = ("BAGEL_JUDGE_KEY", "OPENAI_API_KEY")
_PATH = "/chat/completions"
_NEWER_LIMIT = "max_completion_tokens"
_MAX_BYTES = 16 << 20  # the longest answer that is read
_SHOWN = 200  # characters of what a server says about itself
_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529)  # statuses after which the same may be asked
_NO_QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "quota_exceeded")
_KEPT = "what was scored is kept, and the same command goes on from there"


@dataclass(frozen=True)
class JudgeOptions:
    """The way in which a judge is asked.

    Attributes:
        temperature: replaces the temperature that a benchmark names; None leaves it.
        image_side: larger images are reduced to this many pixels on their longer side; None sends them as they are.
        image_format: "jpeg" or "png": images of another format are sent in this one; None sends them as they are.
        concurrency: calls at the same time, at most.
        timeout: seconds that one call may take in all.
        tries: calls of one request, at most, while the server is down, busy or broken.
        longest_wait: seconds between two tries, at most; a server that asks for more ends the run.
        failures: requests that may fail one after the other before the run ends.
    """

    temperature: float | None = None
    image_side: int | None = None
    image_format: Literal["jpeg", "png"] | None = None
    concurrency: int = 4
    timeout: float = 300.0
    tries: int = 5
    longest_wait: float = 120.0
    failures: int = 5

    def __post_init__(self) -> None:
        for name in ("image_side", "concurrency", "tries", "failures"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingError(f"the judge's {name} is {value}: it must be at least 1.")
        if self.timeout <= 0:
            raise SettingError(f"the judge's timeout is {self.timeout:g} seconds: it must be more than 0.")
        if self.image_format not in (None, "jpeg", "png"):
            raise SettingError(f"the judge's image_format is {self.image_format!r}: it must be 'jpeg' or 'png'.")


class _CallFailed(Exception):
    """A call that failed, with the reason in words.

    Attributes:
        again: whether the same request may be sent once more.
        wait: seconds that the server asks to be left alone.
        unreachable: whether there was no server.
    """

    def __init__(self, reason: str, *, again: bool = True, wait: float | None = None, unreachable: bool = False):
        super().__init__(reason)
        self.again, self.wait, self.unreachable = again, wait, unreachable


class ChatJudge:
    """A judge that answers through chat completions. It may be used by several threads at once.

    Args:
        url: the server's address: `http://HOST:PORT`, one that ends in `/v1`, or the whole address of the completions.
        model: the model's name there; None takes the one that each request names.
        options: the way in which it is asked.
        cache: the folder in which replies are kept; None keeps none.
        key: the key; None takes it from the environment, from the first of `KEY_VARIABLES` that is set.
        sleep: waits a number of seconds.

    Attributes:
        counts: calls, replies from the cache, failed requests, and tokens read and written, so far.

    Raises:
        SettingError: the address cannot be one.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        options: JudgeOptions | None = None,
        cache: Path | None = None,
        key: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        try:
            import httpx2
        except ImportError as error:
            raise EvaluationError(f"judges need httpx2: {install_command('eval')}") from error
        self._http = httpx2
        self._url = _completions_url(httpx2, url)
        self.address = str(self._url.copy_with(query=None)).removesuffix(_PATH)
        self.model = model
        self.options = options or JudgeOptions()
        self._key = key or next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), None)
        self._cache = None if cache is None else ReplyCache(cache)
        self._sleep = sleep
        self._places = threading.BoundedSemaphore(self.options.concurrency)
        self._lock = threading.Lock()
        self._failed_in_a_row = 0
        self._limit_name = "max_tokens"
        self.counts = {"calls": 0, "cached": 0, "failed": 0, "prompt_tokens": 0, "completion_tokens": 0}
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        timeout = httpx2.Timeout(self.options.timeout, connect=min(30.0, self.options.timeout), pool=None)
        self._client = httpx2.Client(headers=headers, timeout=timeout, follow_redirects=False)

    def __repr__(self) -> str:
        return f"ChatJudge({self.address!r}, {self.model!r})"

    def close(self) -> None:
        """Closes its connections."""
        self._client.close()

    def about(self) -> dict[str, Any]:
        """Who judged, and how it was asked, for a report: JSON without the key."""
        return {
            "address": self.address,
            "model": self.model,
            "temperature": self.options.temperature,
            "image_side": self.options.image_side,
            "image_format": self.options.image_format,
            **self.counts,
        }

    def complete(self, request: JudgeRequest) -> str | None:
        """The reply to a request.

        Returns: None if this request cannot be answered: it was refused, or every try of it failed while other requests
            are answered.

        Raises:
            EvaluationError: no request will be answered: the key is refused, the model or the server is not there,
                the quota is used up, or several requests have failed one after the other.
        """
        return self._answer(request, _reply_of)

    def first_token(self, request: JudgeRequest) -> dict[str, float] | None:
        """The probability of each of the likeliest first tokens; see `TokenJudge`. Raises: see `complete`."""
        told = self._answer(request, _first_token_of)
        return None if told is None else {token: float(value) for token, value in json.loads(told).items()}

    def _answer(self, request: JudgeRequest, read: Callable[[Mapping[str, Any]], str | None]) -> str | None:
        """The text that `read` finds in the first choice of an answer, which is asked for, or kept from earlier."""
        body = self._body(request)
        question = {**self._question(request, body), "read": read.__name__}
        if self._cache is not None and (kept := self._cache.get(question)) is not None:
            self._count(cached=1)
            return kept
        try:
            with self._places:
                reply = self._ask(body, read)
        except _CallFailed as failure:
            self._give_up(failure)
            return None
        with self._lock:
            self._failed_in_a_row = 0
        if reply is not None and self._cache is not None:
            self._cache.put(question, reply)
        return reply

    # ---------------------------------------------------------------------------------------------------- the question

    def _body(self, request: JudgeRequest) -> dict[str, Any]:
        temperature = request.temperature if self.options.temperature is None else self.options.temperature
        sent = {"temperature": temperature, "max_tokens": request.max_tokens, "n": request.n}
        return {
            "model": self.model or request.model,
            "messages": [self._message(message) for message in request.messages],
            **{name: value for name, value in sent.items() if value is not None},
            **request.extra,
        }

    def _message(self, message: JudgeMessage) -> dict[str, Any]:
        if message.plain and len(message.content) == 1 and isinstance(message.content[0], str):
            return {"role": message.role, "content": message.content[0]}
        return {"role": message.role, "content": [self._part(part) for part in message.content]}

    def _part(self, part: str | JudgeImage) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        image = resized(part, self.options.image_side, self.options.image_format)
        url = f"data:{image.mime};base64,{base64.b64encode(image.data).decode()}"
        return {"type": "image_url", "image_url": {"url": url, **({"detail": image.detail} if image.detail else {})}}

    def _question(self, request: JudgeRequest, body: Mapping[str, Any]) -> dict[str, Any]:
        """All that a reply depends on, as JSON, with hashes in place of images."""
        messages = [
            [message.role, message.plain, [_told(part) for part in message.content]] for message in request.messages
        ]
        side, format_ = self.options.image_side, self.options.image_format
        return {
            **body,
            "messages": messages,
            "address": self.address,
            "attempt": request.attempt,
            "images": [side, format_],
        }

    # ------------------------------------------------------------------------------------------------------- the calls

    def _ask(self, body: Mapping[str, Any], read: Callable[[Mapping[str, Any]], str | None]) -> str | None:
        """The reply, after as many tries as are allowed.

        Raises:
            _CallFailed: the last try failed, or no other would help.
        """
        for tried in range(1, self.options.tries + 1):
            try:
                return read(self._choice(self._post(body)))
            except _CallFailed as failure:
                if not failure.again or tried == self.options.tries:
                    raise
                self._sleep(self._pause(failure, tried))
        raise AssertionError("there is at least one try")

    def _pause(self, failure: _CallFailed, tried: int) -> float:
        """Seconds until the next try: as the server asks, else twice as many as before the last one."""
        if failure.wait is None:
            return min(2.0 ** (tried - 1), self.options.longest_wait)
        if failure.wait > self.options.longest_wait:
            raise EvaluationError(
                f"the judge at {self.address} asks to be left alone for {failure.wait:.0f} seconds: come back then; "
                f"{_KEPT}."
            )
        return failure.wait

    def _post(self, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and content of one call, which ends at its time limit however slowly it drips."""
        http, end = self._http, time.monotonic() + self.options.timeout
        self._count(calls=1)
        body = {self._limit_name if name == "max_tokens" else name: value for name, value in body.items()}
        late = f"it did not answer within {self.options.timeout:g} seconds"
        try:
            with self._client.stream("POST", self._url, json=body) as response:
                content = bytearray()
                for piece in response.iter_bytes():
                    content += piece
                    if time.monotonic() > end:
                        raise _CallFailed(late)
                    if len(content) > _MAX_BYTES:
                        raise _CallFailed(f"its answer is longer than {_MAX_BYTES >> 20} MiB")
                return response.status_code, response.headers, bytes(content)
        except http.ConnectError as error:
            raise _CallFailed(f"it cannot be reached ({self._shown(str(error))})", unreachable=True) from error
        except http.TimeoutException as error:
            raise _CallFailed(late, unreachable=isinstance(error, http.ConnectTimeout)) from error
        except (http.HTTPError, http.InvalidURL) as error:
            raise _CallFailed(f"the connection broke ({self._shown(str(error) or type(error).__name__)})") from error

    def _choice(self, answer: tuple[int, Mapping[str, str], bytes]) -> Mapping[str, Any]:
        """The first choice in an answer, an object whose "message" is one.

        Raises:
            _CallFailed: there is none in it.
            EvaluationError: there never will be one.
        """
        status, headers, content = answer
        found = _json_of(content)
        error = found.get("error") if isinstance(found, dict) else None
        if status == 200 and error:  # some gateways answer so
            code = error.get("code") if isinstance(error, dict) else None
            status = code if isinstance(code, int) and 400 <= code < 600 else 502
        if status != 200:
            self._refused(status, headers, error, content)
        if not isinstance(found, dict):
            raise _CallFailed(f"its answer is not JSON but {self._shown(content.decode('utf-8', 'replace'))!r}")
        choices = found.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
            raise _CallFailed(f"its answer has no choices[0].message: {self._shown(json.dumps(found))}")
        usage = found.get("usage")
        for name in ("prompt_tokens", "completion_tokens"):
            if isinstance(usage, dict) and isinstance(usage.get(name), int):
                self._count(**{name: usage[name]})
        return choice

    def _refused(self, status: int, headers: Mapping[str, str], error: Any, content: bytes) -> None:
        """Turns a refusal of the server into the error that it means, and raises it."""
        fields = error if isinstance(error, dict) else {}
        says = fields.get("message") if isinstance(fields.get("message"), str) else None
        reason = f"{status}: {self._shown(says or content.decode('utf-8', 'replace'))}"
        where = f"the judge at {self.address}"
        if status in (401, 403):
            key = "its key" if self._key else "a request without a key"
            raise EvaluationError(f"{where} refuses {key} ({reason}): set {KEY_VARIABLES[0]} to a valid one; {_KEPT}.")
        if status == 402 or {fields.get("code"), fields.get("type")} & set(_NO_QUOTA):
            raise EvaluationError(f"{where} is out of quota ({reason}): add to it, or use another judge; {_KEPT}.")
        if status in (404, 405):
            raise EvaluationError(
                f"{where} does not know the model or the address ({reason}): give the address that ends in /v1, and "
                f"a model that it serves; {_KEPT}."
            )
        if 300 <= status < 400:
            raise EvaluationError(f"{where} sends elsewhere ({status}): give its own address; {_KEPT}.")
        if status == 400 and says and _NEWER_LIMIT in says and self._limit_name != _NEWER_LIMIT:
            self._limit_name = _NEWER_LIMIT  # reasoning models of OpenAI know the limit by this name alone
            raise _CallFailed(f"it said {reason}", wait=0.0)
        raise _CallFailed(f"it said {reason}", again=status in _AGAIN or status >= 500, wait=_retry_after(headers))

    def _give_up(self, failure: _CallFailed) -> None:
        """Counts a request that failed.

        Raises:
            EvaluationError: there is no server, or too many have failed one after the other.
        """
        self._count(failed=1)
        with self._lock:
            self._failed_in_a_row += 1
            many = self._failed_in_a_row
        if failure.unreachable:
            raise EvaluationError(f"the judge at {self.address}: {failure}: start it, or give its address; {_KEPT}.")
        if many >= self.options.failures:
            times = "a request" if many == 1 else f"{many} requests one after the other"
            raise EvaluationError(f"the judge at {self.address} failed {times}; of the last: {failure}; {_KEPT}.")

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, number in more.items():
                self.counts[name] += number

    def _shown(self, text: str) -> str:
        """The beginning of what a server says, on one line and without the key, should it be in there."""
        if self._key:
            text = text.replace(self._key, "…")
        line = " ".join(text.split())
        return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"


def resized(image: JudgeImage, side: int | None, format_: str | None) -> JudgeImage:
    """An image for a judge, no larger than `side` pixels and in the format given; untouched if it fits already."""
    if side is None and format_ is None:
        return image
    with Image.open(io.BytesIO(image.data)) as opened:
        is_small = side is None or max(opened.size) <= side
        given = (opened.format or "").lower()
        wanted = format_ or (given if given in ("jpeg", "png") else "png")
        if is_small and given == wanted:
            return dataclasses.replace(image, mime=f"image/{wanted}")
        changed = opened.convert("RGB")
    if side is not None:
        changed.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    changed.save(file, wanted, **({"quality": 95} if wanted == "jpeg" else {}))
    return dataclasses.replace(image, data=file.getvalue(), mime=f"image/{wanted}")


def _completions_url(http: Any, url: str) -> httpx2.URL:
    try:
        parsed = http.URL(url.strip())
    except (http.InvalidURL, ValueError, TypeError) as error:
        raise SettingError(f"the judge's address is {url!r}: write http://HOST:PORT/v1.") from error
    if parsed.userinfo:
        raise SettingError(f"the judge's address holds a user or key: set {KEY_VARIABLES[0]} instead.")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise SettingError(f"the judge's address is {url!r}: write http://HOST:PORT/v1.")
    path = parsed.path.rstrip("/")
    if not path.endswith(_PATH):
        path = (path or "/v1") + _PATH
    return parsed.copy_with(path=path)


def _told(part: str | JudgeImage) -> Any:
    if isinstance(part, str):
        return part
    return [hashlib.sha256(part.data).hexdigest(), part.mime, part.detail]


def _json_of(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _reply_of(choice: Mapping[str, Any]) -> str | None:
    """The text of a choice; None where the judge declined to say anything."""
    said = choice["message"].get("content")
    if isinstance(said, list):
        texts = [part.get("text") for part in said if isinstance(part, dict)]
        said = "".join(text for text in texts if isinstance(text, str))
    if said is not None and not isinstance(said, str):
        raise _CallFailed(f"its reply is a {type(said).__name__}, not a text")
    return said


def _first_token_of(choice: Mapping[str, Any]) -> str:
    """The probabilities of the likeliest first tokens of a choice, as JSON."""
    try:
        likeliest = choice["logprobs"]["content"][0]["top_logprobs"]
        found = {str(one["token"]): math.exp(float(one["logprob"])) for one in likeliest}
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        found = {}
    if not found:
        raise EvaluationError(
            "the judge gives no probabilities of tokens: use a server whose chat completions have logprobs, such as "
            "vLLM."
        )
    return json.dumps(found)


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
