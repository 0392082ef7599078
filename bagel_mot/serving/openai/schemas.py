"""OpenAI's objects, as far as this server reads and writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from bagel_mot.inference.request import Request
from bagel_mot.inference.result import Result
from bagel_mot.serving.openai.fields import setting_schemas, with_settings
from bagel_mot.task import Task

MessageRole = Literal["system", "developer", "user", "assistant"]
PIXEL = (  # a red pixel, for examples that work
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)


class ErrorDetails(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    error: ErrorDetails


# ------------------------------------------------------------------------------------------------------------- models


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "bagel"
    vit_max_size: int = Field(
        description="The longest side, in pixels, at which the model looks at an image; `vit_min_size` is at most this."
    )


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


# --------------------------------------------------------------------------------------------------------------- chat


class ImageUrl(BaseModel):
    url: str = Field(
        description="A data URI, `data:image/png;base64,…`; or an address, where the server allows its host."
    )
    detail: Any = Field(None, description="Accepted, without effect.")


class AnthropicImage(BaseModel):
    """An image as Anthropic's clients send it."""

    type: Literal["base64", "url"] = "base64"
    media_type: Any = None
    data: str | None = None
    url: str | None = None


class TextContent(BaseModel):
    type: Literal["text", "input_text", "output_text", "refusal"] = "text"
    text: str = Field(validation_alias=AliasChoices("text", "refusal"))


class ImageContent(BaseModel):
    type: Literal["image_url", "input_image", "image"] = "image_url"
    image_url: ImageUrl | str | None = None
    source: AnthropicImage | None = None

    @model_validator(mode="after")
    def _has_an_address(self) -> Self:
        if not self.address[0]:
            raise ValueError('it has no picture: give {"type": "image_url", "image_url": {"url": "data:…"}}')
        return self

    @property
    def address(self) -> tuple[str, str]:
        """The data URI or address, and its place in the part."""
        if isinstance(self.image_url, str):
            return self.image_url, "image_url"
        if self.image_url is not None:
            return self.image_url.url, "image_url.url"
        if self.source is not None and self.source.data is not None:
            return f"data:;base64,{self.source.data}", "source.data"
        return (self.source.url or "", "source.url") if self.source is not None else ("", "image_url")


_TEXT_PART, _IMAGE_PART = "text part", "image part"
_PART_KINDS = {
    **dict.fromkeys(("text", "input_text", "output_text", "refusal"), _TEXT_PART),
    **dict.fromkeys(("image_url", "input_image", "image"), _IMAGE_PART),
}


def _part_kind(part: Any) -> str | None:
    if isinstance(part, TextContent | ImageContent):
        return _TEXT_PART if isinstance(part, TextContent) else _IMAGE_PART
    kind = part.get("type") if isinstance(part, dict) else None
    return _PART_KINDS.get(kind) if isinstance(kind, str) else None


Part = Annotated[
    Annotated[TextContent, Tag(_TEXT_PART)] | Annotated[ImageContent, Tag(_IMAGE_PART)],
    Discriminator(
        _part_kind,
        custom_error_type="part_kind",
        custom_error_message="the part is of an unknown type",
    ),
]


class Message(BaseModel):
    role: MessageRole
    content: str | list[Part] | None = None
    images: list[ImageContent] | None = Field(None, description="Pictures that the assistant drew, as it gave them.")


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    """A conversation to be continued. Besides these fields it takes the generation settings by name."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra=with_settings(Task.ASK, Task.GENERATE, Task.EDIT),
    )

    model: str | None = None
    messages: list[Message] = Field(min_length=1)
    modalities: list[Literal["text", "image"]] | None = Field(
        None,
        description='["text"] for an answer, ["image"] for a picture, ["text", "image"] for one with its thinking.',
    )
    n: int | None = Field(None, description="How many answers, with seeds counting up. Default: 1.")
    max_tokens: int | None = Field(None, ge=-1, description="The older name of max_completion_tokens.")
    max_completion_tokens: int | None = Field(
        None,
        ge=-1,
        description="Maximum tokens written, thinking included; more than the server writes is the server's maximum. "
        "-1: not given.",
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class TokenDetails(BaseModel):
    text_tokens: int
    image_tokens: int

    @property
    def total(self) -> int:
        return self.text_tokens + self.image_tokens


def token_details(request: Request, results: Sequence[Result]) -> tuple[TokenDetails, TokenDetails]:
    """The tokens that a request reads, and those that its results took."""
    text, image = sum(result.completion_tokens for result in results), request.noised_tokens * len(results)
    prompt = TokenDetails(text_tokens=request.text_tokens, image_tokens=request.image_tokens)
    return prompt, TokenDetails(text_tokens=text, image_tokens=image)


class Usage(BaseModel):
    completion_tokens_limit: int = Field(
        description="The maximum number of tokens of text of each result: what was asked for, or the server's maximum."
    )
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: TokenDetails
    completion_tokens_details: TokenDetails

    @classmethod
    def of(cls, request: Request, results: Sequence[Result]) -> Self:
        prompt, completion = token_details(request, results)
        return cls(
            completion_tokens_limit=request.max_text_tokens,
            prompt_tokens=prompt.total,
            completion_tokens=completion.total,
            total_tokens=prompt.total + completion.total,
            prompt_tokens_details=prompt,
            completion_tokens_details=completion,
        )


class DrawnImage(BaseModel):
    type: Literal["image_url"] = "image_url"
    image_url: ImageUrl
    index: int = 0


class Answer(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | None = Field(
        None, description="The thinking before the answer, where it is not the content."
    )
    images: list[DrawnImage] | None = Field(None, description="Pictures drawn, as data URIs.")


class Choice(BaseModel):
    index: int
    message: Answer
    finish_reason: Literal["stop", "length"]
    logprobs: None = None
    seed: int = Field(description="The seed that yields the same answer again.")


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


# ------------------------------------------------------------------------------------------------------------- images


class ImageRequest(BaseModel):
    """The fields that generations and edits have in common."""

    model_config = ConfigDict(extra="allow")

    prompt: str
    model: str | None = None
    n: int | None = Field(None, description="How many pictures, with seeds counting up. Default: 1.")
    size: str | None = Field(
        None, description='"WIDTHxHEIGHT" in pixels, or "auto": the checkpoint\'s own, for an edit that of the picture.'
    )
    response_format: str | None = Field(None, description="b64_json; pictures are not kept, so they have no URLs.")
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = Field(None, ge=0, le=100, description="Quality of JPEG and WebP. Default: 100.")
    stream: bool | None = None
    partial_images: int | None = Field(
        None, ge=0, le=3, description="With stream: how many small previews of each picture as it forms."
    )


class GenerationRequest(ImageRequest):
    """An image to be drawn. Besides these fields it takes the generation settings by name."""

    model_config = ConfigDict(extra="allow", json_schema_extra=with_settings(Task.GENERATE))


class ImageUsage(BaseModel):
    input_tokens: int
    input_tokens_details: TokenDetails
    output_tokens: int
    output_tokens_details: TokenDetails
    total_tokens: int

    @classmethod
    def of(cls, request: Request, results: Sequence[Result]) -> Self:
        prompt, completion = token_details(request, results)
        return cls(
            input_tokens=prompt.total,
            input_tokens_details=prompt,
            output_tokens=completion.total,
            output_tokens_details=completion,
            total_tokens=prompt.total + completion.total,
        )


class ImageData(BaseModel):
    b64_json: str
    seed: int = Field(description="The seed that yields the same picture again.")
    thinking: str | None = None


class ImagesResponse(BaseModel):
    created: int
    background: Literal["opaque"] = "opaque"
    output_format: Literal["png", "jpeg", "webp"]
    size: str
    data: list[ImageData]
    usage: ImageUsage


# --------------------------------------------------------------------------------------------- streams and examples

# A 200 may be server-sent events besides JSON; each is described as it is after parsing.
EVENT_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            "text/event-stream": {
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "properties": {
                        "event": {"type": "string"},
                        "data": {"type": "string", "description": "JSON, or [DONE] at the end of a chat."},
                    },
                }
            }
        }
    }
}

CHAT_EXAMPLES: dict[str, Any] = {
    "ask": {
        "summary": "A question about a picture",
        "value": {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": PIXEL}},
                        {"type": "text", "text": "What colour is it?"},
                    ],
                }
            ],
            "max_completion_tokens": 16,
        },
    },
    "draw": {
        "summary": "A picture, with its thinking",
        "value": {
            "messages": [{"role": "user", "content": "a red car"}],
            "modalities": ["text", "image"],
            "think": True,
            "max_think_tokens": 16,
            "num_timesteps": 4,
            "seed": 0,
        },
    },
}
GENERATION_EXAMPLES: dict[str, Any] = {
    "draw": {"summary": "Two pictures", "value": {"prompt": "a red car", "n": 2, "seed": 0, "num_timesteps": 4}}
}
_URI = {"type": "string", "description": "A data URI; or an address, where the server allows its host."}
_REFERENCE = {"anyOf": [_URI, {"type": "object", "required": ["image_url"], "properties": {"image_url": _URI}}]}


def edit_schemas() -> dict[str, Any]:
    """The schemas of an edit's body, by media type."""
    own = ImageRequest.model_json_schema()["properties"]
    fields = {**own, **{name: value for name, value in setting_schemas(Task.EDIT).items() if name not in own}}
    file = {"type": "string", "format": "binary"}
    image = {
        "description": "The picture to change, or several (also as `image[]`).",
        "anyOf": [file, {"type": "array", "items": file, "minItems": 1}],
    }
    images = {
        "description": "The picture to change, or several (also as `images`).",
        "anyOf": [_REFERENCE, {"type": "array", "items": _REFERENCE, "minItems": 1}],
    }

    def schema(image: dict[str, Any]) -> dict[str, Any]:
        return {"schema": {"type": "object", "required": ["image", "prompt"], "properties": {"image": image, **fields}}}

    return {"multipart/form-data": schema(image), "application/json": schema(images)}
