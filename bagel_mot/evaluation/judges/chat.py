"""A judge behind an address: any server with OpenAI's chat completions, `bagel serve` among them.

What a judge says is for the benchmark to read. Here a reply is either had, or the call has failed; nothing is guessed.
The key comes from the environment, and is neither shown nor stored.
"""

from __future__ import annotations

import base64
import dataclasses
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
from typing import Any, Literal

from PIL import Image

from bagel_mot.errors import EvaluationError, SettingError
from bagel_mot.evaluation.http import CallFailed, ModelServer, Refused, UnansweredError, said_in
from bagel_mot.evaluation.judges.base import JudgeImage, JudgeMessage, JudgeRequest
from bagel_mot.evaluation.judges.reply_cache import ReplyCache

KEY_VARIABLES = ("BAGEL_JUDGE_KEY", "OPENAI_API_KEY")
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
        self.model = model
        self.options = options or JudgeOptions()
        self._server = ModelServer(
            url,
            key or next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), None),
            role="judge",
            key_name=KEY_VARIABLES[0],
            timeout=self.options.timeout,
            tries=self.options.tries,
            longest_wait=self.options.longest_wait,
            sleep=sleep,
            on_call=lambda: self._count(calls=1),
        )
        self.address = self._server.url
        self._cache = None if cache is None else ReplyCache(cache)
        self._places = threading.BoundedSemaphore(self.options.concurrency)
        self._lock = threading.Lock()
        self._failed_in_a_row = 0
        self.counts = {"calls": 0, "cached": 0, "failed": 0, "prompt_tokens": 0, "completion_tokens": 0}

    def __repr__(self) -> str:
        return f"ChatJudge({self.address!r}, {self.model!r})"

    def close(self) -> None:
        """Closes its connections."""
        self._server.close()

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
                reply = self._server.chat(body, lambda found: read(self._choice(found)))
        except Refused as refused:
            self._give_up(f"it refuses the request ({refused})")
            return None
        except UnansweredError as failure:
            self._give_up(failure.reason, unreachable=failure.unreachable)
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

    def _choice(self, found: Mapping[str, Any]) -> Mapping[str, Any]:
        """The first choice in an answer, an object whose "message" is one.

        Raises:
            CallFailed: there is none in it.
        """
        choices = found.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
            raise CallFailed(f"its answer has no choices[0].message but {', '.join(found) or 'nothing'}")
        usage = found.get("usage")
        for name in ("prompt_tokens", "completion_tokens"):
            if isinstance(usage, dict) and isinstance(usage.get(name), int):
                self._count(**{name: usage[name]})
        return choice

    def _give_up(self, reason: str, *, unreachable: bool = False) -> None:
        """Counts a request that failed.

        Raises:
            EvaluationError: there is no server, or too many have failed one after the other.
        """
        self._count(failed=1)
        with self._lock:
            self._failed_in_a_row += 1
            many = self._failed_in_a_row
        if unreachable:
            raise EvaluationError(
                f"the judge at {self.address} cannot be reached ({reason}): start it, or give its address; {_KEPT}."
            )
        if many >= self.options.failures:
            times = "a request" if many == 1 else f"{many} requests one after the other"
            raise EvaluationError(f"the judge at {self.address} failed {times}; of the last: {reason}; {_KEPT}.")

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, number in more.items():
                self.counts[name] += number


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


def _told(part: str | JudgeImage) -> Any:
    if isinstance(part, str):
        return part
    return [hashlib.sha256(part.data).hexdigest(), part.mime, part.detail]


def _reply_of(choice: Mapping[str, Any]) -> str | None:
    """The text of a choice; None where the judge declined to say anything."""
    return said_in(choice["message"])


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
