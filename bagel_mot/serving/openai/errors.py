"""Errors as OpenAI's clients expect them: an object with message, type, param and code, and a fitting status."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Sequence
from concurrent.futures import CancelledError
from dataclasses import KW_ONLY, dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from bagel_mot.errors import BagelError, ContextLengthError, NotFiniteError, SizeError
from bagel_mot.placement.oom import is_out_of_memory
from bagel_mot.serving.limits import BusyError, ClosedError, LimitError

_log = logging.getLogger("bagel_mot.serving")
_OUT_OF_MEMORY_RETRY = 5  # seconds
_SHOWN = 60  # characters of a wrong value in a message


@dataclass(eq=False)
class ApiError(Exception):
    """An HTTP error response in OpenAI's format.

    Attributes:
        status: the HTTP status.
        message: one sentence for the client.
        kind: OpenAI's `type`.
        param: the field that it is about, if one.
        code: a name that programs understand, if any.
        retry_after: seconds after which to try again, if that may help.
    """

    status: int
    message: str
    _: KW_ONLY
    kind: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    retry_after: int | None = None

    @property
    def content(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        # Escaped, since text quoted from a request need not be valid Unicode.
        body = json.dumps(self.content, ensure_ascii=True).encode()
        return Response(body, self.status, headers, media_type="application/json")


TOO_LARGE = ApiError(413, "the request is too large: send fewer or smaller pictures.")


class ClientGone(Exception):
    """The client has left: nobody waits for the answer."""


def as_api_error(error: BaseException) -> ApiError:
    """The response to an error; about unexpected ones it says nothing but that they happened."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ClosedError):
        return ApiError(503, str(error), kind="server_error", code="shutting_down", retry_after=error.retry_after)
    if isinstance(error, BusyError):
        return ApiError(429, str(error), kind="rate_limit_error", code="queue_full", retry_after=error.retry_after)
    if isinstance(error, ContextLengthError):
        return ApiError(400, str(error), code="context_length_exceeded")
    if isinstance(error, LimitError):
        return ApiError(400, str(error), param=error.setting, code="limit_exceeded")
    if isinstance(error, SizeError):
        return ApiError(400, str(error), param="size")
    if is_out_of_memory(error):
        message = "there was not enough memory for this request: try again later, or ask for less."
        return ApiError(503, message, kind="server_error", code="out_of_memory", retry_after=_OUT_OF_MEMORY_RETRY)
    if isinstance(error, NotFiniteError):
        return ApiError(500, str(error), kind="server_error", code="not_finite")
    if isinstance(error, BagelError):
        return ApiError(400, str(error))
    if isinstance(error, CancelledError):
        return ApiError(503, "the request was cancelled: try again.", kind="server_error", code="cancelled")
    return ApiError(500, "the server failed at this request; nothing is wrong with it.", kind="server_error")


def log_failure(error: BaseException, what: str, log_prompts: bool) -> None:
    """Writes an unexpected error into the log, and frees the memory that its traceback holds.

    Args:
        error: any error; expected ones are not logged.
        what: a name for the thing that failed, such as the number of a request.
        log_prompts: whether the message may be written, which may quote the request.
    """
    if as_api_error(error).status >= 500 and not isinstance(error, ApiError | ClosedError):
        quotes_nothing = is_out_of_memory(error) or isinstance(error, NotFiniteError)
        message = f": {error}" if log_prompts or quotes_nothing else ""
        where = "".join(traceback.format_tb(error.__traceback__)).rstrip()
        _log.error("%s failed with %s%s\n%s", what, type(error).__name__, message, where)
    error.__traceback__ = None


def no_such_model(name: str, served: Sequence[str]) -> ApiError:
    message = f"the model {name[:100]!r} does not exist here: this server has {' and '.join(map(repr, served))}."
    return ApiError(404, message, param="model", code="model_not_found")


def install(app: FastAPI) -> None:
    """Makes an app answer with these errors, whatever goes wrong in a route."""

    async def known(request: Request, error: Exception) -> Response:
        return as_api_error(error).response()

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return from_validation(error.errors(), error.body).response()

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 400 and isinstance(error.__cause__, ValueError | RecursionError):
            return unreadable(error.__cause__).response()
        path = request.url.path
        sentences = {
            404: f"there is nothing at {path!r}: see /docs for what there is.",
            405: f"{request.method} is not answered at {path!r}: see /docs.",
            413: TOO_LARGE.message,
        }
        message = sentences.get(error.status_code, str(error.detail))
        response = ApiError(error.status_code, message).response()
        response.headers.update(error.headers or {})
        return response

    app.add_exception_handler(ApiError, known)
    app.add_exception_handler(BagelError, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


def unreadable(error: ValueError | RecursionError) -> ApiError:
    """The response to a body that cannot be read as JSON, from what reading it raised."""
    if isinstance(error, json.JSONDecodeError):
        what = f"is not valid JSON ({error.msg} at character {error.pos})"
    elif isinstance(error, UnicodeDecodeError):
        what = f"is not valid UTF-8 (at byte {error.start}): encode it so"
    elif isinstance(error, RecursionError):
        what = "is nested too deeply: a request has only a few levels"
    else:  # Python reads no whole numbers of thousands of digits
        what = "holds a whole number of thousands of digits: no field takes one"
    return ApiError(400, f"the body {what}.")


def from_validation(errors: Sequence[Any], body: Any) -> ApiError:
    """One sentence about the first error that pydantic found; for a value of several possible kinds, about the kind
    that it came closest to. Places are those of the client's own body.
    """
    found = [(_place(error["loc"], body), error) for error in errors]
    deepest = max((place for place, _ in found), key=len)
    alike = [error for place, error in found if place == deepest]
    error, param, value = alike[0], path_name(deepest), _at(deepest, body)
    kind = error["type"]
    if kind == "json_invalid":
        return ApiError(400, f"the body is not valid JSON ({error['ctx']['error']} at character {error['loc'][-1]}).")
    if kind == "missing" and isinstance(body, dict):
        param = path_name([*deepest, error["loc"][-1]])
        return ApiError(400, f"{param} is missing.", param=param)
    if not deepest and not isinstance(body, dict):
        return ApiError(400, "the body is not a JSON object: send one with Content-Type: application/json.")
    if kind == "part_kind":
        if isinstance(value, dict) and "type" in value:
            param, value = f"{param}.type", value["type"]
        return ApiError(400, f'{param} is {shown(value)}: a part must be of type "text" or "image_url".', param=param)
    if kind == "too_short":
        return ApiError(400, f"{param} is empty: it needs at least one item.", param=param)
    wanted = [text for one in alike if (text := _wanted(one))]
    if wanted:
        choices = " or ".join(dict.fromkeys(wanted))
        return ApiError(400, f"{param} is {shown(value)}: it must be {choices}.", param=param)
    message = str(error["msg"]).removeprefix("Value error, ").removesuffix(".")
    return ApiError(400, f"{param}: {message[:1].lower()}{message[1:]}." if param else f"{message}.", param=param)


def path_name(place: Sequence[str | int]) -> str | None:
    """A place in a body as OpenAI's errors write it: `messages[0].content[1].text`; None for the body itself."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in place]
    return "".join(parts).removeprefix(".") or None


def shown(value: Any) -> str:
    """A value of a body as JSON; of a long one the beginning."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _place(loc: Sequence[str | int], body: Any) -> list[str | int]:
    """The part of pydantic's location that the body has: names of schemas are left out."""
    value, place = body, []
    for part in loc:
        is_field = isinstance(value, dict) and isinstance(part, str) and part.isidentifier() and part in value
        if is_field or (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            value = value[part]
            place.append(part)
    return place


def _at(place: Sequence[str | int], body: Any) -> Any:
    for part in place:
        body = body[part]
    return body


_WANTED = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


def _wanted(error: Any) -> str | None:
    """The values that would have been right, in words; None for other errors."""
    context = error.get("ctx", {})
    if error["type"] == "greater_than_equal":
        return f"{context['ge']} or more"
    if error["type"] == "less_than_equal":
        return f"{context['le']} or less"
    if error["type"] == "literal_error":
        return str(context["expected"]).replace("'", '"')
    return _WANTED.get(error["type"])
