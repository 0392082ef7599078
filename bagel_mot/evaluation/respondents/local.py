"""A `Bagel` in this process that answers items in batches."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from bagel_mot.errors import BagelError
from bagel_mot.evaluation.base import Item, ItemResult
from bagel_mot.evaluation.respondents.base import Answered, drawn_paths, fitting, one_by_one, opened
from bagel_mot.files import writing
from bagel_mot.images import open_image, to_pixels, to_uint8
from bagel_mot.inference.result import Result, save_image
from bagel_mot.inference.session import draw_together

if TYPE_CHECKING:
    from bagel_mot.inference.api import Bagel


class LocalRespondent:
    """A loaded model. Items of one call run as one batch where their settings agree; equal inputs are read once.

    Args:
        bagel: the model.
        facts: the model and its settings, as JSON, for the head of the records.
    """

    def __init__(self, bagel: Bagel, facts: Mapping[str, Any]) -> None:
        self.bagel, self.facts = bagel, facts

    def answer(self, items: Sequence[Item], folder: Path) -> list[Answered]:
        longest = self.bagel.defaults.vit_transform.max_size
        return one_by_one(partial(self._answer, folder=folder), [fitting(item, longest) for item in items])

    def _answer(self, items: Sequence[Item], folder: Path) -> list[ItemResult]:
        results: list[ItemResult] = []
        for _, alike in groupby(items, key=_batch_key):
            batch = list(alike)
            match batch[0].kind:
                case "ask":
                    results += self._ask(batch)
                case "reconstruct":
                    results += [_kept(item, [image], folder) for item, image in self._reconstruct(batch)]
                case _:
                    drawn = self._converse(batch) if batch[0].turns else self._draw(batch)
                    for item in batch:
                        own, drawn = drawn[: len(item.seeds)], drawn[len(item.seeds) :]
                        results.append(_kept(item, own, folder))
        return results

    def _ask(self, items: Sequence[Item]) -> list[ItemResult]:
        inputs = {item.id: [opened(image) for image in item.images] for item in items}
        asked = [(item, seed) for item in items for seed in item.seeds]
        answers: list[Result] = self.bagel.ask(
            [inputs[item.id] for item, _ in asked],
            [item.prompt for item, _ in asked],
            seed=[seed for _, seed in asked],
            return_result=True,
            **items[0].settings,
        )
        results = []
        for item in items:
            own, answers = answers[: len(item.seeds)], answers[len(item.seeds) :]
            truncated = tuple(not answer.complete for answer in own)
            results.append(ItemResult(texts=tuple(answer.text for answer in own), truncated=truncated))
        return results

    def _draw(self, items: Sequence[Item]) -> list[Result]:
        asked = [(item, seed) for item in items for seed in item.seeds]
        prompts = [item.prompt for item, _ in asked]
        seeds = [seed for _, seed in asked]
        settings = dict(items[0].settings)
        if items[0].kind == "generate":
            drawn: list[Result] = self.bagel.generate(prompts, seed=seeds, return_result=True, **settings)
            return drawn
        inputs = {item.id: [opened(image) for image in item.images] for item in items}
        images = [inputs[item.id] for item, _ in asked]
        edited: list[Result] = self.bagel.edit(images, prompts, seed=seeds, return_result=True, **settings)
        return edited

    def _converse(self, items: Sequence[Item]) -> list[Result]:
        """One session for each item and seed; every turn draws an image, and the last ones are returned."""
        asked = [(item, seed) for item in items for seed in item.seeds]
        sessions = [self.bagel.session(think=bool(items[0].settings.get("think"))) for _ in asked]
        for (item, _), session in zip(asked, sessions, strict=True):
            for image in item.images:
                session.add(opened(image))
        images: list[Image.Image] = []
        for turn in range(1 + len(items[0].turns)):
            for (item, _), session in zip(asked, sessions, strict=True):
                session.add((item.prompt, *item.turns)[turn])
            images = draw_together(sessions, seed=[seed for _, seed in asked], **items[0].settings)
        return [Result(image=image) for image in images]

    @torch.no_grad()
    def _reconstruct(self, items: Sequence[Item]) -> list[tuple[Item, Result]]:
        images = [open_image(opened(item.images[0])) for item in items]
        passes = items[0].settings["passes"]
        if passes:
            autoencoder = self.bagel.checkpoint.autoencoder
            if autoencoder is None:
                raise BagelError("this model was loaded without its autoencoder, which the judge's rows need.")
            for _ in range(passes):
                pixels = torch.stack([to_pixels(image) for image in images]).to(self.bagel.device)
                decoded = to_uint8(autoencoder.decode(autoencoder.encode(pixels)).float()).cpu().numpy()
                images = [Image.fromarray(image) for image in decoded]
        return [(item, Result(image=image)) for item, image in zip(items, images, strict=True)]


def _batch_key(item: Item) -> str:
    """A text that is equal for items that can run as one batch."""
    return json.dumps([item.kind, len(item.turns), dict(item.settings)], sort_keys=True, default=list)


def _kept(item: Item, drawn: Sequence[Result], folder: Path) -> ItemResult:
    """The result of an item whose images were drawn, which are written here."""
    paths = drawn_paths(item)
    for path, result in zip(paths, drawn, strict=True):
        assert result.image is not None
        with writing(folder / path, "free some room or give another folder"):
            save_image(result.image, folder / path)
    return ItemResult(
        texts=tuple(result.thinking for result in drawn),
        images=tuple(folder / path for path in paths),
        truncated=tuple(not result.complete for result in drawn),
    )
