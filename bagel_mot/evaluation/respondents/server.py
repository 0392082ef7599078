"""A server that speaks OpenAI's interface and answers items: `bagel serve`, or that of another model."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bagel_mot.errors import EvaluationError, ImageError, PromptError
from bagel_mot.evaluation.base import Item, ItemResult
from bagel_mot.evaluation.http import CallFailed, ModelServer, NotServedError, Refused, said_in
from bagel_mot.evaluation.respondents.base import ITEM_ERRORS, Answered, StoppedError, content, drawn_paths, fitting
from bagel_mot.files import write_atomically, writing
from bagel_mot.images import open_image

_OURS = "bagel"  # the owner that our server names
_SIGNATURES = {b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif", b"RIFF": "image/webp"}


class ServerRespondent:
    """Asks a server, several requests at once.

    Another model's server is sent what every such server knows: texts, images, the limit of tokens, the temperature,
    the seed, and the size of an image. `bagel serve` is sent all settings.

    Args:
        server: the server.
        model: the model's name there.

    Raises: EvaluationError if the server is not reached, or has no such model.
    """

    def __init__(self, server: ModelServer, model: str) -> None:
        self.server, self.model = server, model
        self._longest: int | None = None  # the longest side at which the model looks; of our server alone it is known
        entry = _listed(server, model)
        self.is_ours = entry.get("owned_by") == _OURS
        if self.is_ours and isinstance(entry.get("vit_max_size"), int):
            self._longest = entry["vit_max_size"]
        self.facts: Mapping[str, Any] = {"server": server.url, "model": model}

    def answer(self, items: Sequence[Item], folder: Path) -> list[Answered]:
        with ThreadPoolExecutor(max(len(items), 1)) as pool:
            futures = [pool.submit(self._answer, fitting(item, self._longest), folder) for item in items]
            try:
                return [future.result() for future in futures]
            except EvaluationError as error:
                pool.shutdown(cancel_futures=True)  # requests that run already are paid for: their answers are kept
                raise StoppedError(str(error), [_had(future) for future in futures]) from error
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _answer(self, item: Item, folder: Path) -> Answered:
        if item.turns or item.kind == "reconstruct":
            what = "a chain of edits" if item.turns else "what its autoencoder makes of an image"
            raise EvaluationError(
                f"item {item.id!r} asks for {what}, which a server does not offer: choose other rows."
            )
        if item.settings.get("think") and not self.is_ours:
            raise EvaluationError(
                f"item {item.id!r} asks for thinking, which the server at {self.server.url} is not told of: only bagel "
                "serve is. Leave out --think (of mini, the rows with thinking)."
            )
        try:
            if item.kind == "ask":
                replies = [self._ask(item, seed) for seed in item.seeds]
                return ItemResult(texts=tuple(text for text, _ in replies), truncated=tuple(cut for _, cut in replies))
            paths = [folder / path for path in drawn_paths(item)]
            thoughts = [self._draw(item, seed, path) for seed, path in zip(item.seeds, paths, strict=True)]
            return ItemResult(texts=tuple(thoughts), images=tuple(paths), truncated=(False,) * len(paths))
        except Refused as refused:
            return PromptError(f"the server refuses item {item.id!r} ({refused}).")
        except ITEM_ERRORS as error:
            return error

    def _ask(self, item: Item, seed: int) -> tuple[str, bool]:
        """The answer, and whether it ended by the limit."""
        parts: list[dict[str, Any]] = []
        for image in item.images:
            data = content(image)
            url = f"data:{_mime(data)};base64,{base64.b64encode(data).decode()}"
            parts.append({"type": "image_url", "image_url": {"url": url}})
        parts.append({"type": "text", "text": item.prompt})
        settings = dict(item.settings)
        body: dict[str, Any] = {"model": self.model, "messages": [{"role": "user", "content": parts}], "seed": seed}
        if "max_new_tokens" in settings:
            body["max_tokens"] = settings.pop("max_new_tokens")
        sampled = settings.pop("do_sample", False)
        body["temperature"] = settings.pop("temperature", 0.3) if sampled else 0
        return self.server.chat({**body, **(settings if self.is_ours else {})}, _text_in)

    def _draw(self, item: Item, seed: int, path: Path) -> str:
        """Writes the drawn image; returns its thinking."""
        settings = dict(item.settings)
        body: dict[str, Any] = {"model": self.model, "prompt": item.prompt, "n": 1, "seed": seed}
        if size := settings.pop("size", None):
            body["size"] = "x".join(map(str, size))
        if self.is_ours:
            body |= settings
        if item.kind == "generate":
            data, thinking = self.server.post("/images/generations", _image_in, json=body)
        else:
            images = [content(image) for image in item.images]
            files = [("image[]", (f"image-{i}.png", image, _mime(image))) for i, image in enumerate(images)]
            fields = {name: _field(value) for name, value in body.items()}
            data, thinking = self.server.post("/images/edits", _image_in, data=fields, files=files)
        try:
            image = open_image(data)
        except ImageError as error:
            raise ImageError(f"the server's image of item {item.id!r} cannot be read: {error}") from error
        with writing(path, "free some room or give another folder"):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda file: image.save(file, format="PNG"))
        return thinking


def _had(future: Future[Answered]) -> Answered | None:
    """The outcome of a request that has ended; None if it was cancelled or failed for good."""
    return None if future.cancelled() or future.exception() is not None else future.result()


def _text_in(reply: Mapping[str, Any]) -> tuple[str, bool]:
    """The answer in a reply, and whether it ended by the limit."""
    try:
        choice = reply["choices"][0]
        return said_in({"content": choice["message"]["content"]}) or "", choice.get("finish_reason") == "length"
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise CallFailed("it sent a reply without an answer") from error


def _image_in(reply: Mapping[str, Any]) -> tuple[bytes, str]:
    """The file of the image in a reply, and its thinking."""
    try:
        found = reply["data"][0]
        return base64.b64decode(found["b64_json"], validate=True), str(found.get("thinking") or "")
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise CallFailed("it sent a reply without an image in data[0].b64_json") from error


def _listed(server: ModelServer, model: str) -> dict[str, Any]:
    """The entry of a model in the server's list of models; empty for a server that does not list them."""
    try:
        listed = server.get("/models").get("data")
    except (Refused, NotServedError):
        return {}
    entries = {str(one.get("id")): one for one in listed if isinstance(one, dict)} if isinstance(listed, list) else {}
    if entries and model not in entries:
        raise EvaluationError(f"{server.url} has no model {model!r}: it has {', '.join(list(entries)[:5])}.")
    return entries.get(model, {})


def _mime(data: bytes) -> str:
    return next((mime for start, mime in _SIGNATURES.items() if data.startswith(start)), "image/png")


def _field(value: Any) -> str:
    """A setting as a field of a form."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
