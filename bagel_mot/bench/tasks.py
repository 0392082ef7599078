"""Whole tasks, as users wait for them: from a text or an image to an image or a text, on both sides.

Ours runs through `Bagel` as users' requests do, with nothing kept from one run to the next; the plain side is
`bagel_mot.bench.plain_tasks`. Weights are random, and the end token is never the likeliest, so that texts have the
lengths that were asked for.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from PIL import Image

from bagel_mot.bench.breakdown import where_time_goes
from bagel_mot.bench.plain_tasks import PlainPipeline
from bagel_mot.bench.settings import BenchSettings
from bagel_mot.checkpoint.official import Checkpoint
from bagel_mot.inference.api import Bagel
from bagel_mot.inference.defaults import official_defaults
from bagel_mot.inference.prepare import Preparer
from bagel_mot.inference.request import Request
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.prepacked import prepack_weights
from bagel_mot.model.vae import Autoencoder
from bagel_mot.placement.rates import seconds
from bagel_mot.task import Task
from bagel_mot.tokenizer import Tokenizer

_PROMPT = "a red car under a yellow sun"
_INSTRUCTION = "make it night"
_QUESTION = "What is in the picture?"


class ByteTokenizer(Tokenizer):
    """A tokenizer of single bytes for an embedding of any size: rows that no byte has are question marks."""

    @classmethod
    def of_rows(cls, rows: int) -> ByteTokenizer:
        """The tokenizer of an embedding with so many rows, 261 or more."""
        made = cls(Tokenizer.train([], 261)._backend)
        made.vocab_size = rows
        return made

    def token_bytes(self, index: int) -> bytes:
        return super().token_bytes(index) if index < 261 else b"?"


@dataclass(frozen=True)
class WholeTask:
    """One task.

    Attributes:
        name: its name in the report.
        task: its kind.
        inputs: texts and images, as users give them.
        settings: settings by name, as users give them.
    """

    name: str
    task: Task
    inputs: Sequence[str | Image.Image]
    settings: dict[str, Any]


def whole_tasks(settings: BenchSettings, largest: int) -> list[WholeTask]:
    """The four tasks, with images of no more than `largest` pixels a side."""
    side = min(settings.side, largest)
    image = Image.linear_gradient("L").resize((side, side)).convert("RGB")
    drawing: dict[str, Any] = {"num_timesteps": settings.timesteps, "seed": 0}
    pixels, points = f"{side}×{side}", f"{settings.timesteps} timesteps"
    letters = "the quick brown fox jumps over the lazy dog " * (settings.text // 44 + 1)
    text = letters[: settings.text - 2]  # a byte is a token, and a text has a start and an end token
    return [
        WholeTask(f"text to image, {pixels}, {points}", Task.GENERATE, [_PROMPT], {**drawing, "size": (side, side)}),
        WholeTask(f"edit, {pixels}, {points}", Task.EDIT, [image, _INSTRUCTION], drawing),
        WholeTask(
            f"ask about an image, {pixels}, {settings.answer} tokens",
            Task.ASK,
            [image, _QUESTION],
            {"max_new_tokens": settings.answer},
        ),
        WholeTask(
            f"text of {settings.text} tokens, {settings.following} more",
            Task.ASK,
            [text],
            {"max_new_tokens": settings.following},
        ),
    ]


def brief(task: WholeTask) -> WholeTask:
    """The same with the shortest drawing or text, to be run once unmeasured."""
    least = {"num_timesteps": 2} if task.task.draws else {"max_new_tokens": 2}
    return replace(task, settings={**task.settings, **least})


def never_ending(model: BagelModel, end: int) -> BagelModel:
    """The model, whose end token never is the likeliest: its logit is zero, and that of others is more."""
    with torch.no_grad():
        model.decoder.lm_head.weight[end] = 0
    return model


class TaskRunner:
    """The runner of both sides of the whole tasks.

    Args:
        model: ours, with plain weights, which are prepacked here.
        autoencoder: ours.
        reference: the plain side's networks, or None where it does not run.
        side: pixels a side of the images that are read, which are not enlarged.
    """

    def __init__(
        self,
        model: BagelModel,
        autoencoder: Autoencoder,
        reference: tuple[BagelModel, Autoencoder] | None,
        side: int,
    ) -> None:
        tokenizer = ByteTokenizer.of_rows(model.config.decoder.vocab_size)
        never_ending(model, tokenizer.special.eos)
        prepack_weights(model)
        usual = official_defaults(model.config)
        vae, vit = (replace(t, min_size=min(t.min_size, side)) for t in (usual.vae_transform, usual.vit_transform))
        defaults = replace(usual, vae_transform=vae, vit_transform=vit)
        self.bagel = Bagel(Checkpoint(model.config, model, autoencoder, tokenizer), defaults=defaults)
        self.bagel.runtime.prefixes.resize(0)  # every run reads its inputs
        self.layers = list(model.decoder.layers)
        self.plain: PlainPipeline | None = None
        if reference is not None:
            plain, codec = reference
            self.plain = PlainPipeline(never_ending(plain, tokenizer.special.eos), codec, tokenizer.special)

    def request(self, task: WholeTask) -> Request:
        """The task as a request: its inputs tokenized and resized."""
        prepare = Preparer(self.bagel.runtime)
        return prepare.request(task.task, prepare.inputs(task.inputs, task.task), task.settings)

    def ours(self, task: WholeTask) -> object:
        """Runs a task through `Bagel`."""
        output = "image" if task.task.draws else "text"
        return self.bagel.submit(list(task.inputs), output=output, **task.settings).result()

    def plainly(self, task: WholeTask) -> object:
        """Runs a task in the plain loop."""
        assert self.plain is not None
        request = self.request(task)
        return self.plain.draw(request) if task.task.draws else self.plain.write(request)

    def measure(self, task: WholeTask, rounds: int, device: torch.device, full_depth: float = 1.0) -> dict[str, Any]:
        """A task's seconds on both sides, in turn, and where those of ours go, ready for JSON.

        Args:
            full_depth: the whole model's layers as a multiple of those that run.
        """
        ways: dict[str, Callable[[WholeTask], object]] = {"ours": self.ours}
        if self.plain is not None:
            ways["plain"] = self.plainly
        for run in ways.values():
            run(brief(task))
        runs: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, run in ways.items():
                runs[way].append(seconds(partial(run, task), device))
        least = {way: min(times) for way, times in runs.items()}
        found: dict[str, Any] = {
            "name": task.name,
            "seconds": least,
            "median_seconds": {way: statistics.median(times) for way, times in runs.items()},
            "runs": runs,
        }
        with self._in_layers() as spent:
            took: list[float] = []
            where = where_time_goes(lambda: took.append(seconds(lambda: self.ours(task), device)), device)
        found["where"] = where
        if full_depth > 1:
            share = min(1.0, sum(spent) / took[0])
            found["full_depth_seconds"] = least["ours"] * (1 + share * (full_depth - 1))
        if "plain" in least:
            found["speedup"] = least["plain"] / least["ours"]
        gc.collect()
        return found

    @contextmanager
    def _in_layers(self) -> Iterator[list[float]]:
        """Collects the seconds that each call of a decoder layer takes."""
        spent: list[float] = []
        began: list[float] = []
        handles = []
        for layer in self.layers:
            handles.append(layer.register_forward_pre_hook(lambda *_: began.append(time.perf_counter())))
            handles.append(layer.register_forward_hook(lambda *_: spent.append(time.perf_counter() - began.pop())))
        try:
            yield spent
        finally:
            for handle in handles:
                handle.remove()
