"""`/v1/chat/completions`: a conversation in, a text or an image out."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Request
from starlette.responses import Response

from bagel_mot.inference.prepare import task_of
from bagel_mot.inference.result import Result
from bagel_mot.inference.settings import SETTINGS
from bagel_mot.inference.thinking import ThinkingStream, ThoughtStream
from bagel_mot.serving.openai.errors import ApiError
from bagel_mot.serving.openai.fields import parse_extra
from bagel_mot.serving.openai.image_data import to_data_uri
from bagel_mot.serving.openai.routes import AppState, CurrentState, ImageInputs
from bagel_mot.serving.openai.schemas import (
    CHAT_EXAMPLES,
    EVENT_STREAM,
    Answer,
    ChatCompletion,
    ChatRequest,
    Choice,
    ImageUrl,
    IndexedImage,
    Message,
    Usage,
)
from bagel_mot.serving.openai.streams import Channel, End, EventStream, Preview, Text, event
from bagel_mot.serving.service import Listen, SubmittedBatch
from bagel_mot.task import Task

router = APIRouter(tags=["chat"])


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses=EVENT_STREAM,
    summary="Continue a conversation with a text or a picture",
)
async def chat(
    body: Annotated[ChatRequest, Body(openapi_examples=CHAT_EXAMPLES)],
    request: Request,
    state: CurrentState,
) -> ChatCompletion | Response:
    """Texts and images of all messages are read in order, then a text is written or an image drawn.

    `modalities` says which: `["text"]` (the default), `["image"]`, or both, where with `think` the thinking is the
    text. Images are in `message.images` as data URIs.
    """
    state.check_model(body.model)
    if body.stream:
        channel = Channel()
        started = await _start(body, request, state, channel.listen)
        chunks = _Chunks(state, started, body)
        return EventStream(chunks.stream(request, channel), started.cancel)
    started = await _start(body, request, state)
    results = await state.results(request, started)
    images = [await state.in_thread(partial(_images, result)) for result in results]
    return ChatCompletion(
        id=_new_id(),
        created=int(time.time()),
        model=state.options.model_name,
        choices=[
            Choice(
                index=index,
                message=_answer(body, result, own),
                finish_reason=_finish_reason(result),
                seed=result.seed,
            )
            for index, (result, own) in enumerate(zip(results, images, strict=True))
        ],
        usage=Usage.of(started.request, results),
    )


# ---------------------------------------------------------------------------------------------------------- the way in


async def _start(body: ChatRequest, request: Request, state: AppState, listen: Listen | None = None) -> SubmittedBatch:
    output = output_of(body)
    with ImageInputs(state) as images:
        inputs = await read_messages(body.messages, state, images)
        settings = settings_of(body, task_of(inputs, output))
        return await state.start(request, inputs, output, 1 if body.n is None else body.n, settings, listen)


def output_of(body: ChatRequest) -> str:
    """The kind of output that `modalities` asks for: "text" or "image".

    Raises:
        ApiError: `modalities` asks for nothing, or `stream_options` is there without `stream`.
    """
    if body.modalities == []:
        raise ApiError(400, 'modalities is empty: it must be ["text"], ["image"] or both.', param="modalities")
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options is for streams: set stream to true.", param="stream_options")
    return "image" if "image" in (body.modalities or ()) else "text"


async def read_messages(messages: Sequence[Message], state: AppState, images: ImageInputs) -> list[str | bytes]:
    """The texts and images of a conversation in the order in which the model reads them.

    They are those of the messages, except that where a message ends with an image its texts come after its images:
    the model goes by the last text.

    Raises:
        ApiError: the conversation does not end with the user, or a message is empty.
        ImageError: an image cannot be read.
    """
    if messages[-1].role != "user":
        sentence = f"the last message is from {messages[-1].role!r}: it must be the user's, which is to be answered."
        raise ApiError(400, sentence, param=f"messages.{len(messages) - 1}.role")
    _check_count(messages, state)
    inputs: list[str | bytes] = []
    for number, message in enumerate(messages):
        content = [message.content] if isinstance(message.content, str) else list(message.content or ())
        parts = [part if isinstance(part, str) else part.text if part.type == "text" else part for part in content]
        if message.role == "assistant":  # an answer that was an image alone, or thinking that did not end
            parts = [part for part in parts if not isinstance(part, str) or part.strip()]
        parts += message.images or ()
        if not parts and message.role == "assistant":
            continue
        if not parts:
            raise ApiError(400, f"messages.{number} is empty: leave it out.", param=f"messages.{number}.content")
        if not isinstance(parts[-1], str):
            parts.sort(key=lambda part: isinstance(part, str))  # stable: images first
        for part in parts:
            inputs.append(part if isinstance(part, str) else await images.file(part.image_url.url))
    return inputs


def _check_count(messages: Sequence[Message], state: AppState) -> None:
    """Checks the number of images, before any is fetched or decoded."""
    images = sum(len(message.images or ()) for message in messages)
    for message in messages:
        if isinstance(message.content, list):
            images += sum(part.type == "image_url" for part in message.content)
    state.service.check_images(images)


def settings_of(body: ChatRequest, task: Task) -> dict[str, Any]:
    """The generation settings that a body asks for.

    As OpenAI's clients expect, a temperature above 0 samples and 0 does not, and `top_p` alone samples at temperature
    1, where 0 leaves the likeliest token alone. Where neither is given, the checkpoint's default holds (the likeliest
    token). `do_sample` overrules both.

    Raises:
        ApiError: one of them is wrong.
    """
    extra = dict(body.model_extra or {})
    if extra.get("size") == "auto":
        del extra["size"]
    greedy = extra.get("top_p") == 0 and not isinstance(extra["top_p"], bool)
    if greedy:
        del extra["top_p"]
    settings = parse_extra(extra, task)
    own = "max_think_tokens" if task.draws else "max_new_tokens"
    given = {"max_tokens": body.max_tokens, "max_completion_tokens": body.max_completion_tokens, own: settings.get(own)}
    limits = {name: count for name, count in given.items() if count is not None}
    if len(set(limits.values())) > 1:
        raise ApiError(400, f"{' and '.join(limits)} differ: give one of them.", param=next(iter(limits)))
    if limits:
        count = next(iter(limits.values()))
        # For an image it bounds the thinking alone, where more than the maximum is not a mistake.
        settings[own] = min(count, int(SETTINGS[own].high or count)) if task.draws else count
    if greedy:
        settings.setdefault("do_sample", False)
    temperature, top_p = settings.get("temperature"), settings.get("top_p", 1.0)
    if temperature is not None:
        settings.setdefault("do_sample", temperature > 0)
    elif top_p < 1:
        settings["temperature"] = 1.0
        settings.setdefault("do_sample", True)
    return settings


# --------------------------------------------------------------------------------------------------------- the way out


def _new_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"


def _images(result: Result) -> list[IndexedImage] | None:
    return None if result.image is None else [IndexedImage(image_url=ImageUrl(url=to_data_uri(result.image)))]


def _answer(body: ChatRequest, result: Result, images: list[IndexedImage] | None) -> Answer:
    if images is None:
        return Answer(content=result.text, reasoning_content=result.thinking or None)
    if "text" in (body.modalities or ()):
        return Answer(content=result.thinking, images=images)
    return Answer(content=None, reasoning_content=result.thinking or None, images=images)


def _finish_reason(result: Result) -> Literal["stop", "length"]:
    return "stop" if result.complete or result.image is not None else "length"


class _Chunks:
    """Encodes the chunks of one streamed completion."""

    def __init__(self, state: AppState, started: SubmittedBatch, body: ChatRequest) -> None:
        self._state, self._started = state, started
        self._with_usage = body.stream_options is not None and body.stream_options.include_usage
        self._head = {"id": _new_id(), "object": "chat.completion.chunk", "created": int(time.time())}
        self._head["model"] = state.options.model_name
        self._thought_name = "content" if "text" in (body.modalities or ()) else "reasoning_content"
        count = len(started.tickets)
        self._draws, self._thinks = started.request.task.draws, started.request.settings.think
        self._thoughts = [ThoughtStream() for _ in range(count)]
        self._answers = [ThinkingStream() for _ in range(count)]
        self._results: list[Result] = []

    async def stream(self, request: Request, channel: Channel) -> AsyncGenerator[bytes, None]:
        complete = False
        for index in range(len(self._started.tickets)):
            yield self._chunk(index, {"role": "assistant", "content": ""})
        async for chunk in self._state.stream(request, self._started, channel, self._encode):
            yield chunk
            complete = len(self._results) == len(self._started.tickets)
        if not complete:  # the last event was an error
            return
        if self._with_usage:
            usage = Usage.of(self._started.request, self._results).model_dump()
            yield event({**self._head, "choices": [], "usage": usage})
        yield event("[DONE]")

    async def _encode(self, news: Text | Preview | End) -> AsyncIterator[bytes]:
        if isinstance(news, Text):
            if delta := self._delta(news.index, news.text):
                yield self._chunk(news.index, delta)
        elif isinstance(news, End):
            result = news.result()
            if rest := self._delta(news.index, result):
                yield self._chunk(news.index, rest)
            if result.image is not None:
                images = await self._state.in_thread(partial(_images, result)) or []
                yield self._chunk(news.index, {"images": [image.model_dump() for image in images]})
            self._results.append(result)
            yield self._chunk(news.index, {}, finish_reason=_finish_reason(result), seed=result.seed)

    def _delta(self, index: int, news: str | Result) -> dict[str, str]:
        """The fields that a piece of text, or the end with its result, adds to the message."""
        if self._draws:
            thoughts = self._thoughts[index]
            text = thoughts.add(news) if isinstance(news, str) else thoughts.finish(news)
            return {self._thought_name: text} if text else {}
        if not self._thinks:
            return {"content": news} if news and isinstance(news, str) else {}
        answers = self._answers[index]
        thinking, answer = answers.add(news) if isinstance(news, str) else answers.finish(news)
        found = {"reasoning_content": thinking, "content": answer}
        return {name: text for name, text in found.items() if text}

    def _chunk(self, index: int, delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": index, "delta": delta, "finish_reason": finish_reason, "logprobs": None, **more}
        chunk = {**self._head, "choices": [choice]}
        return event({**chunk, "usage": None} if self._with_usage else chunk)
