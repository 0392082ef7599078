"""`/v1/images/generations` and `/v1/images/edits`: images from texts, and from images and texts."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import Response

from bagel_mot.serving.openai.errors import ApiError, from_validation, shown, unreadable
from bagel_mot.serving.openai.fields import from_form
from bagel_mot.serving.openai.image_data import Format, to_base64
from bagel_mot.serving.openai.routes import AppState, CurrentState, Given, ImageInputs
from bagel_mot.serving.openai.schemas import (
    EVENT_STREAM,
    GENERATION_EXAMPLES,
    GenerationRequest,
    ImageData,
    ImageRequest,
    ImagesResponse,
    ImageUsage,
    edit_schemas,
)
from bagel_mot.serving.openai.streams import Channel, End, EventStream, Preview, Text, event
from bagel_mot.serving.service import SubmittedBatch
from bagel_mot.task import Task

router = APIRouter(tags=["images"])
_MAX_FIELDS, _MAX_FIELD_BYTES = 100, 1 << 20
_LIST_FIELD = re.compile(r"(\w+)\[(\d{0,4})\]")  # image[] and image[0]
_SEND_JSON = 'give data URIs, such as "image": "data:image/png;base64,…", or a list of them as images'


@router.post(
    "/v1/images/generations", response_model=ImagesResponse, responses=EVENT_STREAM, summary="Draw pictures from a text"
)
async def generations(
    body: Annotated[GenerationRequest, Body(openapi_examples=GENERATION_EXAMPLES)],
    request: Request,
    state: CurrentState,
) -> ImagesResponse | Response:
    """Draws `n` images, as base64. With `stream`, events come as the images form."""
    return await _draw(request, state, body, [Given(body.prompt, "prompt")], Task.GENERATE)


@router.post(
    "/v1/images/edits",
    response_model=ImagesResponse,
    responses=EVENT_STREAM,
    summary="Draw pictures from pictures and a text",
    openapi_extra={"requestBody": {"required": True, "content": edit_schemas()}},
)
async def edits(request: Request, state: CurrentState) -> ImagesResponse | Response:
    """Changes an image, or makes one from several, as the prompt says. Fields are those of generations. The body is a
    form with files, or JSON with data URIs.
    """
    with ImageInputs(state) as inputs:
        if _is_json(request):
            fields, images = await _read_json(request, state, inputs)
        else:
            fields, images = await _read_form(request, state, inputs)
        try:
            body = ImageRequest.model_validate(fields)
        except ValidationError as error:
            raise from_validation(error.errors(), fields) from error
        return await _draw(request, state, body, [*images, Given(body.prompt, "prompt")], Task.EDIT)


def _is_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


Fields = tuple[dict[str, Any], list[Given]]


async def _read_json(request: Request, state: AppState, inputs: ImageInputs) -> Fields:
    """The fields of a JSON body, and the images in it.

    Raises:
        ApiError: the body is no JSON object, or an image is missing or cannot be read.
    """
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise unreadable(error) from error
    if not isinstance(body, dict):
        raise from_validation([{"type": "dict_type", "loc": ("body",), "msg": ""}], body)
    found = [one for name in ("image", "images") for one in _addresses(body.get(name), name)]
    if not found:
        raise ApiError(400, f"image is missing: {_SEND_JSON}.", param="image")
    state.service.check_images(len(found))
    images = [await inputs.file(address, place) for address, place in found]
    return {name: value for name, value in body.items() if name not in ("image", "images")}, images


def _addresses(value: Any, place: str) -> list[tuple[str, str]]:
    """The data URIs or addresses of one or several images in a JSON body, each with its place.

    Raises:
        ApiError: one of them is something else.
    """
    if value is None:
        return []
    if isinstance(value, list):
        return [_address(one, f"{place}[{number}]") for number, one in enumerate(value)]
    return [_address(value, place)]


def _address(value: Any, place: str) -> tuple[str, str]:
    found = value
    for name in ("image_url", "url"):  # {"image_url": "…"}, {"image_url": {"url": "…"}} and {"url": "…"}
        if isinstance(found, dict) and name in found:
            found, place = found[name], f"{place}.{name}"
    if isinstance(found, dict) and isinstance(found.get("b64_json"), str):
        return f"data:;base64,{found['b64_json']}", f"{place}.b64_json"
    if not isinstance(found, str):
        raise ApiError(400, f"{place} is {shown(found)}: {_SEND_JSON}.", param=place)
    return found, place


async def _read_form(request: Request, state: AppState, inputs: ImageInputs) -> Fields:
    """The fields of a form, and the images in it. Blank fields are as those that are not there: forms have no null.

    Raises:
        ApiError: it is no form, an image is missing or cannot be read, or another field is a file.
    """
    texts: dict[str, list[str]] = {}
    images: list[tuple[int, Given]] = []
    try:
        async with request.form(
            max_files=state.service.limits.images, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES
        ) as form:
            for key, value in form.multi_items():
                match = _LIST_FIELD.fullmatch(key)
                name, number = (match[1], int(match[2] or 0)) if match else (key, 0)
                if isinstance(value, str) and not value.strip():
                    continue
                if name == "image":
                    images.append((number, await _form_image(value, key, inputs)))
                elif name == "mask":
                    message = "this server edits whole pictures and takes no mask: say in the prompt what is to change."
                    raise ApiError(400, message, param="mask")
                elif isinstance(value, UploadFile):
                    raise ApiError(400, f"{name} is a file: only image is one.", param=name)
                else:
                    texts.setdefault(name, []).append(value)
    except HTTPException as error:
        if error.status_code == 413:
            raise
        raise ApiError(400, f"the form cannot be read: {error.detail}") from error
    if not images:
        sentence = "image is missing: send multipart/form-data with one or several files, or JSON with data URIs."
        raise ApiError(400, sentence, param="image")
    images.sort(key=lambda one: one[0])  # stable: those without numbers stay as they came
    return {name: from_form(name, values) for name, values in texts.items()}, [given for _, given in images]


async def _form_image(value: str | UploadFile, key: str, inputs: ImageInputs) -> Given:
    if isinstance(value, UploadFile):
        return Given(await value.read(), key)
    if value[:5].lower() == "data:":
        return await inputs.file(value, key)
    raise ApiError(400, "image is not a file: send it as one, such as image=@car.png with curl.", param=key)


async def _draw(
    request: Request, state: AppState, body: ImageRequest, inputs: list[Given], task: Task
) -> ImagesResponse | Response:
    state.model(body.model)
    if body.response_format not in (None, "b64_json"):
        message = "pictures are not kept here, so they have no URLs: response_format must be b64_json."
        raise ApiError(400, message, param="response_format")
    form: Format = body.output_format or "png"
    if form == "png" and body.output_compression not in (None, 100):
        raise ApiError(400, "output_compression is for jpeg and webp: a PNG loses nothing.", param="output_compression")
    if body.partial_images and not body.stream:
        raise ApiError(400, "partial_images is for streams: set stream to true.", param="partial_images")
    extra = dict(body.model_extra or {})
    if body.size is not None and body.size != "auto":
        extra["size"] = body.size
    settings = state.settings(request, extra, task)
    n = 1 if body.n is None else body.n
    quality = 100 if body.output_compression is None else body.output_compression
    encode = partial(to_base64, form=form, quality=quality)
    if body.stream:
        channel = Channel(body.partial_images or 0)
        started = await state.start(request, inputs, "image", n, settings, channel.listen)
        events = _Events(state, started, "image_generation" if task is Task.GENERATE else "image_edit", form, encode)
        return EventStream(state.stream(request, started, channel, events.encode), started.cancel)
    started = await state.start(request, inputs, "image", n, settings)
    results = await state.results(request, started)
    return ImagesResponse(
        created=int(time.time()),
        output_format=form,
        size=_size(started),
        data=[
            ImageData(
                b64_json=await state.in_thread(partial(encode, result.image)),
                seed=result.seed,
                thinking=result.thinking or None,
            )
            for result in results
        ],
        usage=ImageUsage.of(started.request, results),
    )


def _size(started: SubmittedBatch) -> str:
    assert started.request.size is not None, "a picture has a size"
    width, height = started.request.size
    return f"{width}x{height}"


class _Events:
    """Encodes the events of one streamed request."""

    def __init__(self, state: AppState, started: SubmittedBatch, name: str, form: Format, encode: Any) -> None:
        self._state, self._started, self._name, self._encode = state, started, name, encode
        self._facts = {
            "background": "opaque",
            "created_at": int(time.time()),
            "output_format": form,
            "quality": "auto",
            "size": _size(started),
        }

    async def encode(self, news: Text | Preview | End) -> AsyncIterator[bytes]:
        if isinstance(news, Preview):
            data = await self._state.in_thread(partial(self._encode, news.image))
            more = {"partial_image_index": news.number}
            yield self._event("partial_image", news.index, data, more)
        elif isinstance(news, End):
            result = news.result()
            data = await self._state.in_thread(partial(self._encode, result.image))
            usage = ImageUsage.of(self._started.request, [result]).model_dump()
            thinking = {"thinking": result.thinking} if result.thinking else {}
            yield self._event("completed", news.index, data, {"usage": usage, "seed": result.seed, **thinking})

    def _event(self, what: str, index: int, data: str, more: dict[str, Any]) -> bytes:
        kind = f"{self._name}.{what}"
        return event({"type": kind, "b64_json": data, "index": index, **self._facts, **more}, kind)
