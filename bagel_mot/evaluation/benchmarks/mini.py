"""`bagel eval mini`: every ability on fresh scenes, judged by the parser.

Each row is a set of items from a fixed seed and the share that came out exactly right, with a 95% Wilson interval.
Nothing is judged by the model itself, and nothing is half right. Two rows judge the judge: how often it recovers the
very scene of a fresh image, and of one that went through the autoencoder, which bounds every image the model draws.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from bagel_mot.errors import SettingError
from bagel_mot.images import to_pixels, to_uint8
from bagel_mot.inference.session import draw_together
from bagel_mot.task import Task
from bagel_mot.worlds.mini.draw import draw
from bagel_mot.worlds.mini.edits import EDIT_KINDS
from bagel_mot.worlds.mini.items import (
    DRAW_ROWS,
    HELD_OUT_DRAW_ROWS,
    ask_items,
    chain_items,
    draw_is_right,
    draw_items,
    edit_is_right,
    edit_items,
    riddle_items,
    scene_items,
)
from bagel_mot.worlds.mini.parser import parse, same_scene
from bagel_mot.worlds.mini.questions import QUESTION_TYPES
from bagel_mot.worlds.mini.riddles import RIDDLE_TASKS

if TYPE_CHECKING:
    from bagel_mot.inference.api import Bagel

Report = Callable[[str, int, int], None]
_CHAIN_LENGTH = 3
_ANSWER_TOKENS = 12
_THINK_TOKENS = 96

JUDGE_ROWS = ("judge/fresh pictures", "judge/through the autoencoder")
ROWS: tuple[str, ...] = (
    *JUDGE_ROWS,
    *(f"draw/{row}" for row in DRAW_ROWS),
    *(f"draw held out/{row}" for row in HELD_OUT_DRAW_ROWS),
    *(f"ask/{kind}" for kind in QUESTION_TYPES),
    *(f"edit/{kind}" for kind in EDIT_KINDS),
    f"edit/chain of {_CHAIN_LENGTH}",
    *(f"riddle/{task} {mode}" for task in RIDDLE_TASKS for mode in ("thinking", "not thinking")),
)


@dataclass(frozen=True)
class Score:
    """One line of the report."""

    name: str
    right: int
    total: int
    seconds: float

    @property
    def share(self) -> float:
        return self.right / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95% Wilson score interval of the share."""
        return wilson(self.right, self.total)


def wilson(right: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a binomial share (Wilson 1927)."""
    if total == 0:
        return 0.0, 1.0
    share = right / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def pick_rows(names: Sequence[str] | None) -> list[str]:
    """Rows by name or by group ("draw", "draw held out", "ask", "edit", "riddle"); all for None.

    Raises: SettingError for an unknown name.
    """
    if not names:
        return list(ROWS)
    chosen = []
    for name in names:
        found = [row for row in ROWS if row == name or row.split("/")[0] == name]
        if not found:
            raise SettingError(f"evaluation row {name!r} is unknown; rows are {', '.join(ROWS)}")
        chosen += found
    return [row for row in ROWS if row in chosen]


def evaluate(
    bagel: Bagel,
    *,
    rows: Sequence[str] | None = None,
    items: int = 200,
    seed: int = 0,
    batch: int = 25,
    progress: Report | None = None,
    known: Mapping[str, Score] | None = None,
    on_row: Callable[[dict[str, Any]], None] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Runs the evaluation.

    Args:
        bagel: a model of the image world.
        rows: names of rows or groups, as `pick_rows` takes them.
        items: the number of items in a row.
        seed: the seed of the items; item i of a row is drawn with seed i.
        batch: requests that run together.
        progress: called with a row's name, items done and items in all.
        known: rows that need not be run again, by name.
        on_row: called with the report so far after each row that was run.
        settings: settings of drawing, over the model's defaults.

    Returns: {"items", "seed", "rows": {name: {"right", "total", "share", "interval", "seconds"}}, "summary": {…}}.
    """
    if items < 1:
        raise SettingError(f"items is {items}; at least 1 is needed")
    runner = _MiniEvaluation(bagel, items, seed, batch, progress, settings)
    known = known or {}
    done: list[Score] = []
    for name in pick_rows(rows):
        done.append(known[name] if name in known else runner.run(name))
        if name not in known and on_row is not None:
            on_row(_report(done, items, seed))
    return _report(done, items, seed)


def _report(done: Sequence[Score], items: int, seed: int) -> dict[str, Any]:
    return {
        "items": items,
        "seed": seed,
        "rows": {
            row.name: {
                "right": row.right,
                "total": row.total,
                "share": round(row.share, 4),
                "interval": [round(bound, 4) for bound in row.interval],
                "seconds": round(row.seconds, 1),
            }
            for row in done
        },
        "summary": summary(done),
    }


def rows_of(report: Mapping[str, Any]) -> dict[str, Score]:
    """The rows of a report, for `known`."""
    return {
        name: Score(name, row["right"], row["total"], row["seconds"])
        for name, row in report["rows"].items()
        if row["total"] == report["items"]
    }


def summary(rows: Sequence[Score]) -> dict[str, float]:
    """Means over groups of rows, and what thinking adds; groups that were not run are left out.

    The mean of all rows is that of the model's rows: without the judge's.
    """
    shares = {row.name: row.share for row in rows}
    groups = {
        "draw": [f"draw/{row}" for row in DRAW_ROWS],
        "draw, the rows that have held-out combinations": [f"draw/{row}" for row in HELD_OUT_DRAW_ROWS],
        "draw held out": [f"draw held out/{row}" for row in HELD_OUT_DRAW_ROWS],
        "ask": [f"ask/{kind}" for kind in QUESTION_TYPES],
        "edit": [f"edit/{kind}" for kind in EDIT_KINDS],
        "chains": [f"edit/chain of {_CHAIN_LENGTH}"],
        "riddles thinking": [f"riddle/{task} thinking" for task in RIDDLE_TASKS],
        "riddles not thinking": [f"riddle/{task} not thinking" for task in RIDDLE_TASKS],
    }
    means = {
        label: round(sum(shares[name] for name in names) / len(names), 4)
        for label, names in groups.items()
        if shares.keys() >= set(names)
    }
    if "riddles thinking" in means and "riddles not thinking" in means:
        means["gain of thinking"] = round(means["riddles thinking"] - means["riddles not thinking"], 4)
    models = [row.share for row in rows if row.name not in JUDGE_ROWS]
    if models:
        means["mean of all rows"] = round(sum(models) / len(models), 4)
    return means


class _MiniEvaluation:
    def __init__(
        self, bagel: Bagel, items: int, seed: int, batch: int, progress: Report | None, settings: dict[str, Any]
    ) -> None:
        self.bagel, self.items, self.seed, self.batch, self.settings = bagel, items, seed, batch, settings
        self.progress = progress or (lambda name, done, total: None)
        size = bagel.defaults.of(Task.GENERATE).get("size")
        self.side = size[0] if size else 64

    def run(self, name: str) -> Score:
        """One row."""
        started = time.perf_counter()
        group, _, row = name.partition("/")
        items, seed = self.items, self.seed
        if group == "judge":
            outcomes = self._judge(through_autoencoder=name == JUDGE_ROWS[1])
        elif group in ("draw", "draw held out"):
            split = "held_out" if group == "draw held out" else "train"
            outcomes = self._draw([(item.prompt, item.spec) for item in draw_items(row, items, seed, split)])
        elif group == "ask":
            asked = [(item.scene, item.question, item.answer) for item in ask_items(row, items, seed)]
            outcomes = self._ask(asked, max_new_tokens=_ANSWER_TOKENS)
        elif group == "riddle":
            task, _, mode = row.partition(" ")
            outcomes = self._riddle(task, mode == "thinking")
        elif row in EDIT_KINDS:
            edits = edit_items(row, items, seed)
            outcomes = self._edit([(item.scene, item.instruction, item.result) for item in edits])
        else:
            outcomes = self._chain()
        right = total = 0
        for outcome in outcomes:
            right += outcome
            total += 1
            self.progress(name, total, self.items)
        return Score(name, right, total, time.perf_counter() - started)

    def _batches(self, items: Sequence[Any]) -> Iterator[tuple[list[Any], list[int]]]:
        for start in range(0, len(items), self.batch):
            yield list(items[start : start + self.batch]), list(range(start, min(start + self.batch, len(items))))

    @torch.no_grad()
    def _judge(self, through_autoencoder: bool) -> Iterator[bool]:
        autoencoder = self.bagel.checkpoint.autoencoder
        for scenes, _ in self._batches(scene_items(self.items, self.seed)):
            images = [draw(scene, self.side) for scene in scenes]
            if through_autoencoder:
                pixels = torch.stack([to_pixels(image) for image in images]).to(self.bagel.device)
                decoded = to_uint8(autoencoder.decode(autoencoder.encode(pixels)).float()).cpu().numpy()
                images = [Image.fromarray(image) for image in decoded]
            for scene, image in zip(scenes, images, strict=True):
                yield same_scene(parse(image), scene)

    def _draw(self, asked: Sequence[tuple[str, Any]], **options: Any) -> Iterator[bool]:
        """(prompt, the spec of what it asks for)"""
        for items, seeds in self._batches(asked):
            images = self.bagel.generate([prompt for prompt, _ in items], seed=seeds, **options, **self.settings)
            yield from (draw_is_right(image, spec) for image, (_, spec) in zip(images, items, strict=True))

    def _ask(self, asked: Sequence[tuple[Any, str, Any]], **options: Any) -> Iterator[bool]:
        """(scene, question, the right answer)"""
        for items, _ in self._batches(asked):
            images = [draw(scene, self.side) for scene, _, _ in items]
            answers = self.bagel.ask(images, [question for _, question, _ in items], **options)
            yield from (said.strip() == answer for said, (_, _, answer) in zip(answers, items, strict=True))

    def _edit(self, asked: Sequence[tuple[Any, str, Any]], **options: Any) -> Iterator[bool]:
        """(scene, instruction, the resulting scene)"""
        for items, seeds in self._batches(asked):
            given = [draw(scene, self.side) for scene, _, _ in items]
            texts = [instruction for _, instruction, _ in items]
            images = self.bagel.edit(given, texts, seed=seeds, **options, **self.settings)
            for before, after, (scene, _, result) in zip(given, images, items, strict=True):
                yield edit_is_right(before, after, scene, result)

    def _chain(self) -> Iterator[bool]:
        """Each chain in a session of its own; the image after the last edit is judged."""
        for items, seeds in self._batches(chain_items(self.items, _CHAIN_LENGTH, self.seed)):
            sessions = []
            for item in items:
                session = self.bagel.session()
                session.add(draw(item.scene, self.side))
                sessions.append(session)
            images: list[Image.Image] = []
            for turn in range(_CHAIN_LENGTH):
                for item, session in zip(items, sessions, strict=True):
                    session.add(item.edits[turn].instruction)
                images = draw_together(sessions, seed=seeds, **self.settings)
            for item, image in zip(items, images, strict=True):
                yield edit_is_right(draw(item.scene, self.side), image, item.scene, item.result)

    def _riddle(self, task: str, think: bool) -> Iterator[bool]:
        riddles = riddle_items(task, self.items, self.seed)
        if task == "answer":
            asked = [(riddle.scene_before, riddle.prompt, riddle.answer) for riddle in riddles]
            return self._ask(asked, think=think, max_new_tokens=_THINK_TOKENS if think else _ANSWER_TOKENS)
        options: dict[str, Any] = {"think": think, **({"max_think_tokens": _THINK_TOKENS} if think else {})}
        if task == "draw":
            return self._draw([(riddle.prompt, riddle.spec) for riddle in riddles], **options)
        return self._edit([(riddle.scene_before, riddle.prompt, riddle.scene_after) for riddle in riddles], **options)
