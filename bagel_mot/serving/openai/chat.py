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
from bagel_mot.inference.thinking import ThinkingStream, ThoughtStream
from bagel_mot.serving.limits import without_special_tokens
from bagel_mot.serving.openai.errors import ApiError, shown
from bagel_mot.serving.openai.image_data import to_data_uri
from bagel_mot.serving.openai.routes import AppState, CurrentState, Given, ImageInputs
from bagel_mot.serving.openai.schemas import (
    CHAT_EXAMPLES,
    EVENT_STREAM,
    Answer,
    ChatCompletion,
    ChatRequest,
    Choice,
    DrawnImage,
    ImageContent,
    ImageUrl,
    Message,
    TextContent,
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
    name = state.model(body.model)
    if body.stream:
        channel = Channel()
        started = await _start(body, request, state, channel.listen)
        chunks = _Chunks(state, started, body, name)
        return EventStream(chunks.stream(request, channel), started.cancel)
    started = await _start(body, request, state)
    results = await state.results(request, started)
    images = [await state.in_thread(partial(_images, result)) for result in results]
    return ChatCompletion(
        id=_new_id(),
        created=int(time.time()),
        model=name,
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
        given = await read_messages(body.messages, state, images)
        task = task_of([one.content for one in given], output)
        settings = settings_of(body, request, state, task)
        return await state.start(request, given, output, 1 if body.n is None else body.n, settings, listen)


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


async def read_messages(messages: Sequence[Message], state: AppState, images: ImageInputs) -> list[Given]:
    """The texts and images of a conversation in the order in which the model reads them.

    They are those of the messages without blank texts, except that where a message ends with an image its texts come
    after its images: the model goes by the last text.

    Raises:
        ApiError: there is nothing to go by, the conversation does not end with the user, or an image cannot be read.
    """
    contents = [_contents(message, f"messages[{number}]") for number, message in enumerate(messages)]
    holding = [number for number, parts in enumerate(contents) if parts]
    if not holding:
        raise _nothing_to_go_by(messages)
    last = holding[-1]
    if messages[last].role != "user":
        sentence = f"the last message is from {messages[last].role!r}: it must be the user's, which is to be answered"
        more = "; this server does not continue an answer" if messages[last].role == "assistant" else ""
        raise ApiError(400, f"{sentence}{more}.", param=f"messages[{last}].role")
    parts = [part for own in contents for part in own]
    state.service.check_images(sum(isinstance(part, ImageContent) for part, _ in parts))  # before any is decoded
    given = []
    for part, param in parts:
        if isinstance(part, str):
            given.append(Given(part, param))
        else:
            address, place = part.address
            given.append(await images.file(address, f"{param}.{place}"))
    return given


def _contents(message: Message, place: str) -> list[tuple[str | ImageContent, str]]:
    """The texts that are not blank and the images of a message, in the order to be read, each with its place."""
    parts: list[tuple[str | ImageContent, str]] = []
    if isinstance(message.content, str):
        parts.append((message.content, f"{place}.content"))
    else:
        for number, part in enumerate(message.content or ()):
            own = f"{place}.content[{number}]"
            parts.append((part, own) if isinstance(part, ImageContent) else (part.text, f"{own}.text"))
    parts += [(image, f"{place}.images[{number}]") for number, image in enumerate(message.images or ())]
    parts = [one for one in parts if not isinstance(one[0], str) or without_special_tokens(one[0]).strip()]
    if parts and not isinstance(parts[-1][0], str):
        parts.sort(key=lambda one: isinstance(one[0], str))  # stable: images first
    return parts


def _nothing_to_go_by(messages: Sequence[Message]) -> ApiError:
    """The response to a conversation without an image and with nothing but blank texts."""
    texts = [message.content for message in messages if isinstance(message.content, str)]
    texts += [
        part.text
        for message in messages
        if isinstance(message.content, list)
        for part in message.content
        if isinstance(part, TextContent)
    ]
    sent = [text for text in texts if text.strip()]
    if sent:
        why = f"nothing is left of {shown(sent[-1])} without its special tokens, which are removed"
    else:
        why = "there is neither a picture nor a text that is not blank"
    last = f"messages[{len(messages) - 1}].content"
    return ApiError(400, f"{why}: write something that the model can go by.", param=last)


def settings_of(body: ChatRequest, request: Request, state: AppState, task: Task) -> dict[str, Any]:
    """The generation settings that a body asks for.

    As OpenAI's clients expect, a temperature above 0 samples and 0 does not, and `top_p` alone samples at temperature
    1, where 0 leaves the likeliest token alone. Where neither is given, the checkpoint's default holds (the likeliest
    token). `do_sample` overrules both. More tokens than the server writes are no mistake: it writes as many as it does.

    Raises:
        ApiError: one of them is wrong.
    """
    extra = dict(body.model_extra or {})
    if extra.get("size") == "auto":
        del extra["size"]
    greedy = extra.get("top_p") == 0 and not isinstance(extra["top_p"], bool)
    if greedy:
        del extra["top_p"]
    settings = state.settings(request, extra, task)
    own = "max_think_tokens" if task.draws else "max_new_tokens"
    given = {"max_tokens": body.max_tokens, "max_completion_tokens": body.max_completion_tokens, own: settings.get(own)}
    limits = {name: count for name, count in given.items() if count is not None and count != -1}
    if 0 in limits.values():
        name = next(name for name, count in limits.items() if count == 0)
        raise ApiError(400, f"{name} is 0: it must be 1 or more, or -1 for as many as the server gives.", param=name)
    if len(set(limits.values())) > 1:
        raise ApiError(400, f"{' and '.join(limits)} differ: give one of them.", param=next(iter(limits)))
    if limits:
        settings[own] = min(next(iter(limits.values())), state.service.limits.new_tokens)
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


def _images(result: Result) -> list[DrawnImage] | None:
    return None if result.image is None else [DrawnImage(image_url=ImageUrl(url=to_data_uri(result.image)))]


def _answer(body: ChatRequest, result: Result, images: list[DrawnImage] | None) -> Answer:
    if images is None:
        return Answer(content=result.text, reasoning_content=result.thinking or None)
    if "text" in (body.modalities or ()):
        return Answer(content=result.thinking, images=images)
    return Answer(content=None, reasoning_content=result.thinking or None, images=images)


def _finish_reason(result: Result) -> Literal["stop", "length"]:
    return "stop" if result.complete or result.image is not None else "length"


class _Chunks:
    """Encodes the chunks of one streamed completion."""

    def __init__(self, state: AppState, started: SubmittedBatch, body: ChatRequest, name: str) -> None:
        self._state, self._started = state, started
        self._with_usage = body.stream_options is not None and body.stream_options.include_usage
        self._head = {"id": _new_id(), "object": "chat.completion.chunk", "created": int(time.time())}
        self._head["model"] = name
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
