"""`bagel eval mini`: every ability on fresh scenes, judged by the parser.

Each row is a set of items from a fixed seed and the share that came out exactly right, with a 95% Wilson interval.
Nothing is judged by the model itself, and nothing is half right. Two rows judge the judge: how often it recovers the
very scene of a fresh image, and of one that went through the autoencoder, which bounds every image the model draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from bagel_mot.errors import SettingError
from bagel_mot.evaluation.base import (
    Benchmark,
    BenchmarkInfo,
    BenchmarkOptions,
    Item,
    ItemResult,
    Score,
    Summary,
    SummaryRow,
)
from bagel_mot.evaluation.judges.base import Judges
from bagel_mot.evaluation.statistics import wilson
from bagel_mot.images import open_image
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
from bagel_mot.worlds.mini.scene import WORLD, Scene, Thing
from bagel_mot.worlds.mini.spec import Spec, ThingSpec

_CHAIN_LENGTH = 3
_ANSWER_TOKENS = 12
_THINK_TOKENS = 96
ITEMS = 200
"""Items in each row, where nothing else is said."""

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
GROUPS: dict[str, tuple[str, ...]] = {
    "draw": tuple(f"draw/{row}" for row in DRAW_ROWS),
    "draw, the rows that have held-out combinations": tuple(f"draw/{row}" for row in HELD_OUT_DRAW_ROWS),
    "draw held out": tuple(f"draw held out/{row}" for row in HELD_OUT_DRAW_ROWS),
    "ask": tuple(f"ask/{kind}" for kind in QUESTION_TYPES),
    "edit": tuple(f"edit/{kind}" for kind in EDIT_KINDS),
    "chains": (f"edit/chain of {_CHAIN_LENGTH}",),
    "riddles thinking": tuple(f"riddle/{task} thinking" for task in RIDDLE_TASKS),
    "riddles not thinking": tuple(f"riddle/{task} not thinking" for task in RIDDLE_TASKS),
}
"""The abilities, whose means the summary gives, with their rows."""


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


def summary(shares: Mapping[str, float]) -> dict[str, float]:
    """Means over groups of rows, and what thinking adds; groups that were not run are left out.

    The mean of all rows is that of the model's rows: without the judge's.

    Args:
        shares: the share that is right, by row.
    """
    means = {
        label: round(sum(shares[name] for name in names) / len(names), 4)
        for label, names in GROUPS.items()
        if shares.keys() >= set(names)
    }
    if "riddles thinking" in means and "riddles not thinking" in means:
        means["gain of thinking"] = round(means["riddles thinking"] - means["riddles not thinking"], 4)
    models = [share for name, share in shares.items() if name not in JUDGE_ROWS]
    if models:
        means["mean of all rows"] = round(sum(models) / len(models), 4)
    return means


class Mini(Benchmark):
    """The evaluation of the small image world. Its items come from seeds, so there are no data to be had.

    Args:
        options: only the protocol's name counts; all protocols are one.
        rows: names of rows or groups, as `pick_rows` takes them.
        count: the number of items in a row.
        seed: the seed of the items; item i of a row is drawn with seed i.
        side: the width and height of the scenes in pixels.
        settings: settings of drawing, over the model's defaults.
    """

    info = BenchmarkInfo(
        name="mini",
        title="mini",
        ability="drawing, held-out drawing, questions, edits, chains of edits, riddles",
        items=len(ROWS) * ITEMS,
        needs="",
        source="made from seeds by this package",
        licence="Apache-2.0",
    )

    def __init__(
        self,
        options: BenchmarkOptions | None = None,
        *,
        rows: Sequence[str] | None = None,
        count: int = ITEMS,
        seed: int = 0,
        side: int = WORLD,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(options or BenchmarkOptions(Path()))
        if count < 1:
            raise SettingError(f"items is {count}; at least 1 is needed")
        self.rows, self.count, self.seed, self.side = pick_rows(rows), count, seed, side
        self.settings = dict(settings or {})

    def items(self) -> list[Item]:
        return [item for row in self.rows for item in self.items_of(row)]

    def items_of(self, row: str) -> list[Item]:
        """The items of one row."""
        return list(self._made(row))

    def fingerprint(self) -> str:
        """The items follow from their number, the seed and the side alone; rows may be added to a run."""
        return f"{self.count} items a row, seed {self.seed}, {self.side} pixels"

    def score(self, item: Item, result: ItemResult, judges: Judges) -> Score:
        """1 if the answer or image is exactly right, else 0."""
        facts = item.facts
        if item.kind == "ask":
            return _right(result.texts[0].strip() == facts["answer"])
        image = open_image(result.images[0])
        if item.kind == "reconstruct":
            return _right(same_scene(parse(image), _scene(facts["scene"])))
        if "spec" in facts:
            return _right(draw_is_right(image, _spec(facts["spec"])))
        scene, after = _scene(facts["scene"]), _scene(facts["result"])
        return _right(edit_is_right(draw(scene, self.side), image, scene, after))

    def aggregate(self, scores: Mapping[str, Score]) -> Summary:
        found: dict[str, list[float]] = {}
        for id, score in scores.items():
            found.setdefault(id.rpartition("/")[0], []).append(score.values["right"] or 0.0)
        rows = {}
        for name in (row for row in ROWS if row in found):
            right, total = sum(found[name]), len(found[name])
            rows[name] = SummaryRow(right / total, total, wilson(round(right), total))
        means = summary({name: row.value or 0.0 for name, row in rows.items()})
        return Summary(rows, tuple(rows), {"summary": means})

    def _made(self, row: str) -> Iterator[Item]:
        group, _, name = row.partition("/")
        n, seed = self.count, self.seed
        if group == "judge":
            for i, scene in enumerate(scene_items(n, seed)):
                facts = {"scene": asdict(scene)}
                settings = {"passes": int(row == JUDGE_ROWS[1])}
                yield Item(
                    f"{row}/{i}", "reconstruct", "", (self._image(scene),), settings=settings, seeds=(i,), facts=facts
                )
        elif group in ("draw", "draw held out"):
            split = "held_out" if group == "draw held out" else "train"
            for i, drawing in enumerate(draw_items(name, n, seed, split)):
                yield self._drawing(row, i, drawing.prompt, drawing.spec, {})
        elif group == "ask":
            for i, asked in enumerate(ask_items(name, n, seed)):
                yield self._question(row, i, asked.scene, asked.question, asked.answer, _ANSWER_TOKENS)
        elif group == "riddle":
            yield from self._riddles(row, *name.split(" ", 1))
        elif name in EDIT_KINDS:
            for i, edit in enumerate(edit_items(name, n, seed)):
                yield self._edit(row, i, edit.scene, (edit.instruction,), edit.result, {})
        else:
            for i, chain in enumerate(chain_items(n, _CHAIN_LENGTH, seed)):
                instructions = tuple(edit.instruction for edit in chain.edits)
                yield self._edit(row, i, chain.scene, instructions, chain.result, {})

    def _riddles(self, row: str, task: str, mode: str) -> Iterator[Item]:
        think = mode == "thinking"
        settings: dict[str, Any] = {"think": think, **({"max_think_tokens": _THINK_TOKENS} if think else {})}
        for i, riddle in enumerate(riddle_items(task, self.count, self.seed)):
            if task == "draw":
                assert riddle.spec is not None
                yield self._drawing(row, i, riddle.prompt, riddle.spec, settings)
                continue
            assert riddle.scene_before is not None
            if task == "edit":
                assert riddle.scene_after is not None
                yield self._edit(row, i, riddle.scene_before, (riddle.prompt,), riddle.scene_after, settings)
            else:
                tokens = _THINK_TOKENS if think else _ANSWER_TOKENS
                yield self._question(row, i, riddle.scene_before, riddle.prompt, riddle.answer, tokens, think=think)

    def _image(self, scene: Scene) -> Callable[[], Image.Image]:
        return partial(draw, scene, self.side)

    def _drawing(self, row: str, i: int, prompt: str, spec: Spec, settings: Mapping[str, Any]) -> Item:
        settings = {**settings, **self.settings}
        return Item(f"{row}/{i}", "generate", prompt, settings=settings, seeds=(i,), facts={"spec": asdict(spec)})

    def _question(
        self, row: str, i: int, scene: Scene, question: str, answer: str | None, tokens: int, **settings: Any
    ) -> Item:
        settings = {**settings, "max_new_tokens": tokens}
        facts = {"answer": answer}
        return Item(f"{row}/{i}", "ask", question, (self._image(scene),), settings=settings, seeds=(i,), facts=facts)

    def _edit(
        self, row: str, i: int, scene: Scene, instructions: Sequence[str], result: Scene, settings: Mapping[str, Any]
    ) -> Item:
        return Item(
            f"{row}/{i}",
            "edit",
            instructions[0],
            (self._image(scene),),
            turns=tuple(instructions[1:]),
            settings={**settings, **self.settings},
            seeds=(i,),
            facts={"scene": asdict(scene), "result": asdict(result)},
        )


def _right(is_right: bool) -> Score:
    return Score({"right": float(is_right)})


def _scene(facts: Mapping[str, Any]) -> Scene:
    return Scene(facts["background"], tuple(Thing(**thing) for thing in facts["things"]))


def _spec(facts: Mapping[str, Any]) -> Spec:
    things = tuple(ThingSpec(**thing) for thing in facts["things"])
    return Spec(facts["background"], things, tuple((i, side, j) for i, side, j in facts["relations"]))
