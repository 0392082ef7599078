"""Whole requests: a picture or a text that follows a history, and a history made from scratch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from bagel.inference.decode import split_thinking
from bagel.inference.engine import Request
from bagel.inference.history import History
from bagel.inference.requests import Item, Recorder, Runtime, draw, noise_for, read, write
from bagel.inference.result import Result
from bagel.inference.settings import GenerationSettings, Task
from bagel.prompts import SYSTEM_PROMPT_GENERATE, SYSTEM_PROMPT_UNDERSTAND

Media = Literal["image", "text"]


@dataclass(frozen=True)
class Order:
    """What is to be generated, and who is to be told on the way.

    Attributes:
        task: whose settings they are.
        settings: validated.
        seed: of all randomness of this request.
        size: (width, height) of the picture, where one is to be drawn.
        noise: (N, latent_dim) instead of that from the seed.
        recorder: is filled.
        on_step: is called with the number of denoising steps done and that of all.
        on_text: is called with each piece of text, thinking included.
    """

    task: Task
    settings: GenerationSettings
    seed: int
    size: tuple[int, int] | None = None
    noise: Tensor | None = None
    recorder: Recorder | None = None
    on_step: Callable[[int, int], None] | None = None
    on_text: Callable[[str], None] | None = None


def system_prompt(output: Media) -> Item:
    """What stands first where the model is to think."""
    return "system", SYSTEM_PROMPT_GENERATE if output == "image" else SYSTEM_PROMPT_UNDERSTAND


def make_picture(runtime: Runtime, history: History, order: Order) -> Request[Result]:
    """Thinks, if asked to, and draws. The thought becomes part of the history, the picture does not."""
    began = time.perf_counter()
    settings, size = order.settings, order.size
    assert size is not None, "a picture needs a size"
    text = ""
    if settings.think:
        # The thought is read again between its start and end token, and the picture takes a position too.
        room = runtime.config.decoder.max_position_embeddings - history.context.position - 3
        limit = min(settings.max_think_tokens, max(room, 1))
        text = yield from write(
            runtime, history, settings, order.seed, limit, recorder=order.recorder, on_text=order.on_text
        )
        thought: list[Item] = [("thought", text)]
        runtime.check_room(history.context.position, runtime.positions(thought, latents=True))
        yield from read(runtime, history, thought, latents=True)
    noise = noise_for(runtime.config, size, order.seed) if order.noise is None else order.noise
    drawing = yield from draw(runtime, history, settings, size, noise, recorder=order.recorder, on_step=order.on_step)
    thinking, rest = split_thinking(text)
    result = _result(history, order, began)
    # A thought without its tags is a thought all the same: what follows is a picture.
    result.image, result.raw_text, result.thinking = drawing.image, text, f"{thinking} {rest}".strip()
    result.settings["size"] = size
    result.evaluations = drawing.evaluations
    result.image.info.update(result.metadata())
    return result


def make_text(runtime: Runtime, history: History, order: Order) -> Request[Result]:
    """Writes an answer, which does not become part of the history."""
    began = time.perf_counter()
    settings = order.settings
    text = yield from write(
        runtime, history, settings, order.seed, settings.max_new_tokens, recorder=order.recorder, on_text=order.on_text
    )
    result = _result(history, order, began)
    result.raw_text = text
    result.thinking, result.text = split_thinking(text) if settings.think else ("", text)
    return result


def one_shot(runtime: Runtime, items: Sequence[Item], output: Media, order: Order, reserve: int) -> Request[Result]:
    """A request of its own: reads `items` and generates what follows. `reserve` tokens of cache are expected."""
    began = time.perf_counter()
    history = History(runtime.engine.new_context(reserve))
    first = [system_prompt(output)] if order.settings.think else []
    yield from read(runtime, history, [*first, *items], latents=output == "image")
    make = make_picture if output == "image" else make_text
    result = yield from make(runtime, history, order)
    result.seconds = time.perf_counter() - began
    return result


def _result(history: History, order: Order, began: float) -> Result:
    prompt = "\n".join(turn.content for turn in history.turns if turn.kind == "text" and isinstance(turn.content, str))
    return Result(
        prompt=prompt,
        seed=order.seed,
        settings={**order.settings.as_dict(order.task), "seed": order.seed},
        seconds=time.perf_counter() - began,
    )
