"""`/v1/images/generations` and `/v1/images/edits`: images from texts, and from images and texts."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import Response

from bagel_mot.serving.openai.errors import ApiError, from_validation
from bagel_mot.serving.openai.fields import from_form, parse_extra, setting_schemas
from bagel_mot.serving.openai.image_data import Format, to_base64
from bagel_mot.serving.openai.routes import AppState, CurrentState
from bagel_mot.serving.openai.schemas import (
    EDIT_SCHEMA,
    EVENT_STREAM,
    GENERATION_EXAMPLES,
    GenerationRequest,
    ImageData,
    ImageRequest,
    ImagesResponse,
    ImageUsage,
)
from bagel_mot.serving.openai.streams import Channel, End, EventStream, Preview, Text, event
from bagel_mot.serving.service import SubmittedBatch
from bagel_mot.task import Task

router = APIRouter(tags=["images"])
_MAX_FIELDS, _MAX_FIELD_BYTES = 100, 1 << 20


def _edit_schema() -> dict[str, Any]:
    own = ImageRequest.model_json_schema()["properties"]
    properties = {
        **EDIT_SCHEMA["properties"],
        **own,
        **{k: v for k, v in setting_schemas(Task.EDIT).items() if k not in own},
    }
    return {**EDIT_SCHEMA, "properties": properties}


@router.post(
    "/v1/images/generations", response_model=ImagesResponse, responses=EVENT_STREAM, summary="Draw pictures from a text"
)
async def generations(
    body: Annotated[GenerationRequest, Body(openapi_examples=GENERATION_EXAMPLES)],
    request: Request,
    state: CurrentState,
) -> ImagesResponse | Response:
    """Draws `n` images, as base64. With `stream`, events come as the images form."""
    return await _draw(request, state, body, [body.prompt], Task.GENERATE)


@router.post(
    "/v1/images/edits",
    response_model=ImagesResponse,
    responses=EVENT_STREAM,
    summary="Draw pictures from pictures and a text",
    openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _edit_schema()}}}},
)
async def edits(request: Request, state: CurrentState) -> ImagesResponse | Response:
    """Changes an image, or makes one from several, as the prompt says. Fields are those of generations."""
    try:
        async with request.form(
            max_files=state.service.limits.images, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES
        ) as form:
            fields, images = await _read_form(form)
    except HTTPException as error:
        if error.status_code == 413:
            raise
        raise ApiError(400, f"the form cannot be read: {error.detail}") from error
    try:
        body = ImageRequest.model_validate(fields)
    except ValidationError as error:
        raise from_validation(error.errors()) from error
    return await _draw(request, state, body, [*images, body.prompt], Task.EDIT)


async def _read_form(form: FormData) -> tuple[dict[str, Any], list[bytes]]:
    """The fields of a form, and the images in it.

    Raises:
        ApiError: the image is missing or not a file, or there is a mask.
    """
    texts: dict[str, list[str]] = {}
    images = []
    for key, value in form.multi_items():
        name = key.removesuffix("[]")
        if name == "mask":
            message = "this server edits whole pictures and takes no mask: say in the prompt what is to change."
            raise ApiError(400, message, param="mask")
        if name == "image":
            if not isinstance(value, UploadFile):
                raise ApiError(
                    400, "image is not a file: send it as one, such as image=@car.png with curl.", param="image"
                )
            images.append(await value.read())
        elif isinstance(value, UploadFile):
            raise ApiError(400, f"{name} is a file: only image is one.", param=name)
        else:
            texts.setdefault(name, []).append(value)
    if not images:
        raise ApiError(400, "image is missing: send one or several files.", param="image")
    return {name: from_form(name, values) for name, values in texts.items()}, images


async def _draw(
    request: Request, state: AppState, body: ImageRequest, inputs: list[str | bytes], task: Task
) -> ImagesResponse | Response:
    state.check_model(body.model)
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
    settings = parse_extra(extra, task)
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
