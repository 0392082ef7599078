"""Whole requests: an image or a text that follows a history, and a history made from scratch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image
from torch import Tensor

from bagel_mot.inference import sampler as flow
from bagel_mot.inference.decode import split_thinking
from bagel_mot.inference.engine.ops import Request
from bagel_mot.inference.history import History
from bagel_mot.inference.prefixes import keys_of, shareable
from bagel_mot.inference.requests import Item, Recorder, Runtime, Written, draw, noises_of, read, tokens_of, write
from bagel_mot.inference.result import Result
from bagel_mot.inference.settings import GenerationSettings, Task
from bagel_mot.prompts import SYSTEM_PROMPT_GENERATE, SYSTEM_PROMPT_UNDERSTAND

Media = Literal["image", "text"]

_LEAST_TEXT = 3  # positions: the start token, one more, the end token
_IMAGE = 2  # positions: as VAE image and as ViT image
_LIKELY_TEXT = 256  # tokens of a text that may become longer, for which memory is taken beforehand


@dataclass(frozen=True)
class Order:
    """What is to be generated, and who is to be told on the way.

    Attributes:
        task: whose settings they are.
        settings: validated.
        seed: of all randomness of this request.
        size: (width, height) of the image, where one is to be drawn.
        noise: (N, latent_dim) instead of that from the seed.
        recorder: is filled.
        on_step: is called with the number of denoising steps done and that of all.
        on_preview: is called now and then with a small look at the image as it forms.
        on_text: is called with each piece of text, thinking included.
    """

    task: Task
    settings: GenerationSettings
    seed: int
    size: tuple[int, int] | None = None
    noise: Tensor | None = None
    recorder: Recorder | None = None
    on_step: Callable[[int, int], None] | None = None
    on_preview: Callable[[Image.Image], None] | None = None
    on_text: Callable[[str], None] | None = None

    @property
    def least_room(self) -> int:
        """The positions that what is generated takes at the very least."""
        if self.size is None:
            return _LEAST_TEXT
        return _IMAGE + (_LEAST_TEXT if self.settings.think else 0)

    @property
    def most_text(self) -> int:
        """The most tokens of text that are written."""
        if self.size is None:
            return self.settings.max_new_tokens
        return self.settings.max_think_tokens if self.settings.think else 0


def system_prompt(output: Media) -> Item:
    """What stands first where the model is to think."""
    return "system", SYSTEM_PROMPT_GENERATE if output == "image" else SYSTEM_PROMPT_UNDERSTAND


def make_image(runtime: Runtime, history: History, order: Order) -> Request[Result]:
    """Thinks, if asked to, and draws. The thought becomes part of the history, the image does not."""
    began = time.perf_counter()
    settings, size = order.settings, order.size
    assert size is not None, "a picture needs a size"
    written = Written("", 0, True)
    if settings.think:
        written = yield from write(
            runtime,
            history,
            settings,
            order.seed,
            order.most_text,
            leave=_IMAGE,
            recorder=order.recorder,
            on_text=order.on_text,
        )
        yield from read(runtime, history, [("thought", written.text)], latents=True)
    noises = noises_of(runtime.config, size, order.seed, order.noise)
    drawing = yield from draw(
        runtime,
        history,
        settings,
        size,
        noises,
        recorder=order.recorder,
        on_step=order.on_step,
        on_preview=order.on_preview,
    )
    thinking, rest = split_thinking(written.text)
    result = _result(history, order, began, written)
    # A thought without its tags is a thought all the same: what follows is a image.
    result.image, result.thinking = drawing.image, f"{thinking} {rest}".strip()
    result.settings["size"] = size
    result.evaluations = drawing.evaluations
    result.image.info.update(result.metadata())
    return result


def make_text(runtime: Runtime, history: History, order: Order) -> Request[Result]:
    """Writes an answer, which does not become part of the history."""
    began = time.perf_counter()
    settings = order.settings
    written = yield from write(
        runtime, history, settings, order.seed, order.most_text, recorder=order.recorder, on_text=order.on_text
    )
    result = _result(history, order, began, written)
    result.thinking, result.text = split_thinking(written.text) if settings.think else ("", written.text)
    return result


def one_shot(runtime: Runtime, items: Sequence[Item], output: Media, order: Order) -> Request[Result]:
    """A request of its own: reads `items` and generates what follows."""
    began = time.perf_counter()
    latents = output == "image"
    items = _after_system_prompt(items, output, order)
    likely = tokens_of(runtime, items, latents=latents) + min(order.most_text, _LIKELY_TEXT) + 2
    history = yield from _begin(runtime, items, likely + noised_tokens(runtime, order), latents=latents)
    make = make_image if output == "image" else make_text
    result = yield from make(runtime, history, order)
    result.seconds = time.perf_counter() - began
    return result


def _begin(runtime: Runtime, items: Sequence[Item], expected: int, *, latents: bool) -> Request[History]:
    """A history that has read `items`, from a shared beginning where there is one; it will grow to `expected` tokens.

    What can be shared is read first, and kept for others.
    """
    prefixes = runtime.prefixes
    common = shareable(items) if prefixes is not None else 0
    if prefixes is None or not common:
        history = History(runtime.engine.new_context(expected))
        yield from read(runtime, history, items, latents=latents)
        return history
    keys = keys_of(items[:common], latents=latents)
    # A new one has no room to spare: it stays when this request is over.
    history = prefixes.find(keys) or History(
        runtime.engine.new_context(tokens_of(runtime, items[:common], latents=latents))
    )
    known = len(history.turns)
    if known < common:
        yield from read(runtime, history, items[known:common], latents=latents)
        prefixes.keep(keys, history)
        history = history.copy()
    history.context.expect(expected)
    if common < len(items):
        yield from read(runtime, history, items[common:], latents=latents)
    return history


def check_room(runtime: Runtime, items: Sequence[Item], output: Media, order: Order) -> None:
    """
    Raises:
        ContextLengthError: there is no room for what `one_shot` reads and what it generates at the least.
    """
    positions = runtime.positions(_after_system_prompt(items, output, order), latents=output == "image")
    runtime.check_room(positions, order.least_room)


def cost_of(runtime: Runtime, items: Sequence[Item], order: Order, *, latents: bool) -> int:
    """About how many tokens of cache a request holds at the most that reads `items`, then does as ordered."""
    branches = len(flow.roles_used(order.settings))
    return tokens_of(runtime, items, latents=latents) + order.most_text + branches * noised_tokens(runtime, order)


def _after_system_prompt(items: Sequence[Item], output: Media, order: Order) -> list[Item]:
    return [*([system_prompt(output)] if order.settings.think else []), *items]


def noised_tokens(runtime: Runtime, order: Order) -> int:
    """Tokens of the image while it is being drawn, its markers included; 0 where there is none."""
    if order.size is None:
        return 0
    return order.size[0] * order.size[1] // runtime.config.latent_stride**2 + 2


def _result(history: History, order: Order, began: float, written: Written) -> Result:
    prompt = "\n".join(turn.content for turn in history.turns if turn.kind == "text" and isinstance(turn.content, str))
    return Result(
        raw_text=written.text,
        written=written.tokens,
        complete=written.complete,
        prompt=prompt,
        seed=order.seed,
        settings={**order.settings.as_dict(order.task), "seed": order.seed},
        seconds=time.perf_counter() - began,
    )
