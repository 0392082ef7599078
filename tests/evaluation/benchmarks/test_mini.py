"""The evaluation counts right what is right: an oracle scores 1, a model that does nothing scores 0."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from bagel_mot.errors import SettingError
from bagel_mot.evaluation.benchmarks.mini import JUDGE_ROWS, ROWS, Mini, pick_rows, summary
from bagel_mot.evaluation.benchmarks.mini_report import RowScore, evaluate, rows_of
from bagel_mot.evaluation.respondents.local import LocalRespondent
from bagel_mot.images import ImageTransform
from bagel_mot.inference.result import Result
from bagel_mot.worlds.mini.draw import draw
from bagel_mot.worlds.mini.items import ask_items, draw_items, edit_items, riddle_items
from bagel_mot.worlds.mini.sampling import sample_scene
from bagel_mot.worlds.mini.scene import Scene
from bagel_mot.worlds.mini.spec import Spec, satisfies

ITEMS = 4


def _solve(spec: Spec) -> Scene:
    """Some scene that satisfies a spec, by trying."""
    import random

    rng = random.Random(0)
    kinds = [thing.kind for thing in spec.things]
    for split in ("train", "held_out"):
        for _ in range(60_000):
            scene = sample_scene(rng, split, things=len(kinds), kinds=kinds if all(kinds) else None)
            if satisfies(scene, spec):
                return scene
    raise AssertionError(f"no scene for {spec}")


class Oracle:
    """Knows every item's solution."""

    def __init__(self) -> None:
        self.defaults = SimpleNamespace(of=lambda task: {"size": (64, 64)}, vit_transform=ImageTransform(980, 224, 14))
        self.drawings: dict[str, Image.Image] = {}
        self.edits: dict[tuple[bytes, str], Image.Image] = {}
        self.answers: dict[tuple[bytes, str], str] = {}
        for row in ("colours", "position"):
            for item in draw_items(row, ITEMS):
                self.drawings[item.prompt] = draw(_solve(item.spec))
        for kind in ("recolour", "add"):
            for edit in edit_items(kind, ITEMS):
                self.edits[draw(edit.scene).tobytes(), edit.instruction] = draw(edit.result)
        for question in ask_items("count", ITEMS):
            self.answers[draw(question.scene).tobytes(), question.question] = question.answer
        for riddle in riddle_items("answer", ITEMS):
            assert riddle.scene_before is not None
            assert riddle.answer is not None
            self.answers[draw(riddle.scene_before).tobytes(), riddle.prompt] = riddle.answer

    def generate(self, prompts: list[str], **settings: Any) -> list[Result]:
        assert len(settings["seed"]) == len(prompts)
        return [Result(self.drawings[prompt]) for prompt in prompts]

    def edit(self, images: list[list[Image.Image]], instructions: list[str], **settings: Any) -> list[Result]:
        return [Result(self.edits[p.tobytes(), text]) for [p], text in zip(images, instructions, strict=True)]

    def ask(self, images: list[list[Image.Image]], questions: list[str], **settings: Any) -> list[Result]:
        return [Result(text=self.answers[p.tobytes(), text]) for [p], text in zip(images, questions, strict=True)]


class Idle(Oracle):
    """Draws nothing, changes nothing, says nothing."""

    def generate(self, prompts: list[str], **settings: Any) -> list[Result]:
        return [Result(draw(Scene("day", ()))) for _ in prompts]

    def edit(self, images: list[list[Image.Image]], instructions: list[str], **settings: Any) -> list[Result]:
        return [Result(image) for [image] in images]

    def ask(self, images: list[list[Image.Image]], questions: list[str], **settings: Any) -> list[Result]:
        return [Result(text="") for _ in questions]


def run(bagel: Any, rows: list[str], items: int = ITEMS, batch: int = 25, **options: Any) -> dict[str, Any]:
    return evaluate(Mini(rows=rows, count=items), LocalRespondent(bagel, {}), batch=batch, **options)


TRIED = ["draw/colours", "draw/position", "edit/recolour", "edit/add", "ask/count", "riddle/answer thinking"]


@pytest.mark.parametrize(("model", "share"), [(Oracle, 1.0), (Idle, 0.0)])
def test_right_is_right_and_wrong_is_wrong(model: type[Oracle], share: float) -> None:
    seen: list[tuple[str, int, int]] = []
    bagel: Any = model()
    report = run(bagel, TRIED, batch=3, progress=lambda *now: seen.append(now))
    assert {row["share"] for row in report["rows"].values()} == {share}
    assert list(report["rows"]) == [row for row in ROWS if row in TRIED]
    assert seen[-1][1:] == (ITEMS, ITEMS)


class Blur:
    """An autoencoder that keeps one pixel of each block of `factor` × `factor`."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def encode(self, pixels: Tensor) -> Tensor:
        return pixels[:, :, :: self.factor, :: self.factor]

    def decode(self, latents: Tensor) -> Tensor:
        return latents.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)


@pytest.mark.parametrize(("factor", "share"), [(1, 1.0), (4, 0.0)])
def test_the_judge_is_judged_through_the_autoencoder(factor: int, share: float) -> None:
    bagel: Any = Oracle()
    bagel.device, bagel.checkpoint = torch.device("cpu"), SimpleNamespace(autoencoder=Blur(factor))
    report = run(bagel, ["judge"], items=6, batch=4)
    assert {name: row["share"] for name, row in report["rows"].items()} == dict(
        zip(JUDGE_ROWS, (1.0, share), strict=True)
    )
    assert report["summary"] == {}  # the judge's rows say nothing of the model


def test_known_rows_are_not_run_again() -> None:
    bagel: Any = Idle()
    known = {"draw/colours": RowScore("draw/colours", 3, ITEMS, 1.0)}
    written: list[dict[str, Any]] = []
    report = run(bagel, ["draw/colours", "ask/count"], known=known, on_row=written.append)
    assert [row["right"] for row in report["rows"].values()] == [3, 0]
    assert written == [report]
    assert rows_of(report)["draw/colours"] == known["draw/colours"]


def test_rows_are_found_by_name_and_group() -> None:
    assert pick_rows(None) == list(ROWS)
    assert pick_rows(["draw"]) == [row for row in ROWS if row.startswith("draw/")]
    assert pick_rows(["edit/move", "ask/count"]) == ["ask/count", "edit/move"]
    with pytest.raises(SettingError, match="'dance' is unknown"):
        pick_rows(["dance"])


def test_the_summary_leaves_out_groups_that_did_not_run() -> None:
    assert summary({"riddle/draw thinking": 0.75, "ask/count": 0.5}) == {"mean of all rows": 0.625}
