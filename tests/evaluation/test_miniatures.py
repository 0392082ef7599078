"""Miniatures of mini's own world in the layouts of MME, MMBench, GenEval, GEdit-Bench and WISE, run end to end with the
exact parser as detector and judge: a respondent that knows the answers is right throughout, and mini itself runs."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bagel_mot.evaluation.base import BenchmarkOptions, Item, ItemResult
from bagel_mot.evaluation.judges.base import Detection, JudgeImage, JudgeRequest, Judges
from bagel_mot.evaluation.registry import benchmark_named
from bagel_mot.evaluation.report.pages import write_report
from bagel_mot.evaluation.respondents.base import Answered, drawn_paths
from bagel_mot.evaluation.respondents.local import LocalRespondent
from bagel_mot.evaluation.run_summary import summarize, write_summary
from bagel_mot.evaluation.runner import ItemRunner
from bagel_mot.inference.api import Bagel
from bagel_mot.worlds.mini.draw import draw
from bagel_mot.worlds.mini.items import EditItem, ask_items, edit_items, riddle_items
from bagel_mot.worlds.mini.parser import matches, parse, same_scene
from bagel_mot.worlds.mini.sampling import sample_scene
from bagel_mot.worlds.mini.scene import Scene
from bagel_mot.worlds.mini.words import counted

Solutions = dict[str, Any]  # what the knowing respondent says or draws, by item
DRAWN = ("size", "vit_min_size", "num_timesteps", "cfg_renorm_min")


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def mme(folder: Path) -> Solutions:
    """Two pairs of questions of the task `existence`, each pair about one image."""
    images, questions = folder / "MME_Benchmark_release_version" / "existence", folder / "questions"
    images.mkdir(parents=True)
    questions.mkdir()
    lines, said = [], {}
    asked = ask_items("exist", 40)
    for number, answer in enumerate(("yes", "no")):
        scene = next(item for item in asked if item.answer == answer)
        draw(scene.scene).save(images / f"{number:04d}.png")
        for _ in range(2):
            lines.append(f"{number:04d}.png\t{scene.question}\t{answer.capitalize()}")
            said[f"existence/{len(lines)}"] = answer.capitalize()
    (questions / "existence.txt").write_text("\n".join(lines) + "\n")
    return said


def mmbench(folder: Path) -> Solutions:
    """Two questions with two options, and the rotation of each."""
    header = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category",
              "comment"]  # fmt: skip
    rows, said = ["\t".join(header)], {}
    for number, item in enumerate(ask_items("count", 2), 1):
        wrong = "nine" if item.answer != "nine" else "one"
        image = base64.b64encode(png(draw(item.scene))).decode()
        for turn, (a, b) in enumerate(((item.answer, wrong), (wrong, item.answer))):
            index, right = number + turn * 1_000_000, "BA"[a == item.answer]
            cells = [index, item.question, "", a, b, "", "", right, "count", image, "mini", "count", ""]
            rows.append("\t".join(map(str, cells)))
            said[str(index)] = right
    (folder / "mmbench_dev_20230712.tsv").write_text("\n".join(rows) + "\n")
    return said


def scene_with(kinds: Sequence[str], fits: Callable[[Scene], bool] = lambda scene: True) -> Scene:
    rng = random.Random(0)
    while True:
        scene = sample_scene(rng, things=len(kinds), kinds=list(kinds))
        if fits(scene):
            return scene


def geneval(folder: Path) -> Solutions:
    """One prompt of each tag that names no colour; the classes are things of both worlds."""
    car, boat, cat = ({"class": kind, "count": 1} for kind in ("car", "boat", "cat"))

    def left_of(scene: Scene) -> bool:
        x, y = {}, {}
        for thing in scene.things:
            x[thing.kind], y[thing.kind] = thing.centre
        return x["car"] < x["cat"] - 15 and abs(y["car"] - y["cat"]) < 8

    rows = [
        ({"tag": "single_object", "include": [car]}, counted("car"), scene_with(["car"])),
        ({"tag": "two_object", "include": [car, boat]}, "a car and a boat", scene_with(["car", "boat"])),
        ({"tag": "counting", "include": [{"class": "cat", "count": 3}], "exclude": [{"class": "cat", "count": 4}]},
         counted("cat", count=3), scene_with(["cat"] * 3)),
        ({"tag": "position", "include": [cat, {**car, "position": ["left of", 0]}]}, "a car left of a cat",
         scene_with(["car", "cat"], left_of)),
    ]  # fmt: skip
    lines = [json.dumps({**row, "prompt": f"a photo of {text}"}) for row, text, _ in rows]
    (folder / "evaluation_metadata.jsonl").write_text("\n".join(lines) + "\n")
    return {f"{number:05d}": draw(scene) for number, (*_, scene) in enumerate(rows)}


@cache
def readable_edit(kind: str) -> EditItem:
    """The first edit of a kind whose result the parser reads after JPEG too, as which the judge is sent it."""
    for item in edit_items(kind, 20):
        buffer = io.BytesIO()
        draw(item.result).save(buffer, format="JPEG")
        if same_scene(parse(Image.open(buffer)), item.result):
            return item
    raise AssertionError(kind)


def gedit(folder: Path) -> Solutions:
    """Two edits as rows of Parquet, with images as the hub stores them."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows, drawn = [], {}
    for task, kind in (("color_alter", "recolour"), ("subject-remove", "remove")):
        item = readable_edit(kind)
        data = png(draw(item.scene))
        rows.append({
            "key": kind, "task_type": task, "instruction": item.instruction, "instruction_language": "en",
            "input_image": {"bytes": data, "path": None}, "input_image_raw": {"bytes": data, "path": None},
            "Intersection_exist": True,
        })  # fmt: skip
        drawn[kind] = draw(item.result)
    (folder / "data").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "data" / "train-00000-of-00001.parquet")
    return drawn


def wise(folder: Path) -> Solutions:
    """Two riddles, explained by their thinking."""
    rows, drawn = [], {}
    for number, riddle in enumerate(riddle_items("draw", 2), 1):
        assert riddle.scene_after is not None
        rows.append({
            "Prompt": riddle.prompt, "Explanation": riddle.think, "Category": "Cultural knowledge",
            "Subcategory": "Riddle", "prompt_id": number, "Hint": "",
        })  # fmt: skip
        drawn[str(number)] = draw(riddle.scene_after)
    (folder / "final_data.json").write_text(json.dumps(rows))
    return drawn


class ParsingDetector:
    """The parser as a detector: each thing with a box around its centre."""

    def detect(self, image: Image.Image) -> list[Detection]:
        scale = image.width // 64
        boxes = []
        for thing in parse(image).things:
            (x, y), half = thing.centre, {"small": 5, "medium": 7, "large": 9}[thing.size]
            box = (scale * (x - half), scale * (y - half), scale * (x + half), scale * (y + half))
            boxes.append(Detection(thing.kind, 0.99, box))
        return boxes


class ParsingJudge:
    """The parser as a judge: it finds the edit or riddle by its text, and compares scenes."""

    def complete(self, request: JudgeRequest) -> str:
        parts = [part for message in request.messages for part in message.content]
        text = "\n".join(part for part in parts if isinstance(part, str))
        last = [part for part in parts if isinstance(part, JudgeImage)][-1]
        seen = parse(Image.open(io.BytesIO(last.data)))
        for riddle in riddle_items("draw", 2):
            if riddle.prompt in text:
                assert riddle.spec is not None
                points = 2 * matches(seen, riddle.spec)
                return f"Consistency: {points}\nRealism: {points}\nAesthetic Quality: {points}"
        edits = [readable_edit(kind) for kind in ("recolour", "remove")]
        wanted = [edit.result for edit in edits if edit.instruction in text] or [edit.result for edit in edits]
        points = 10 if any(same_scene(seen, scene) for scene in wanted) else 1
        return json.dumps({"score": [points, points], "reasoning": "parsed"})


class Solving:
    """Gives the right answer or image of every item."""

    def __init__(self, solutions: Solutions) -> None:
        self.solutions, self.facts = solutions, {"model": "solving"}

    def answer(self, items: Sequence[Item], folder: Path) -> list[Answered]:
        found: list[Answered] = []
        for item in items:
            if item.kind == "ask":
                found.append(ItemResult(texts=(self.solutions[item.id],)))
                continue
            paths = tuple(folder / path for path in drawn_paths(item))
            for path in paths:
                path.parent.mkdir(parents=True, exist_ok=True)
                self.solutions[item.id].save(path)
            found.append(ItemResult(texts=("",) * len(paths), images=paths))
        return found


class Mini(LocalRespondent):
    """mini at its own size and in few steps: these sets ask for images of 1024 pixels."""

    def answer(self, items: Sequence[Item], folder: Path) -> list[Answered]:
        small = []
        for item in items:
            settings = {name: value for name, value in item.settings.items() if name not in DRAWN}
            small.append(replace(item, settings=settings | ({} if item.kind == "ask" else {"num_timesteps": 6})))
        return super().answer(small, folder)


SETS: dict[str, tuple[Callable[[Path], Solutions], str, float]] = {
    "mme": (mme, "existence", 200.0),
    "mmbench": (mmbench, "circular", 1.0),
    "geneval": (geneval, "position", 1.0),
    "gedit": (gedit, "en/G_O", 10.0),
    "wise": (wise, "Cultural", 1.0),
}


@pytest.mark.slow
def test_miniatures_from_the_data_to_the_report(tmp_path: Path) -> None:
    judges = Judges(chat=ParsingJudge(), detector=ParsingDetector())
    with Bagel.from_pretrained("mini", threads=1) as bagel:
        for name, (make, row, best) in SETS.items():
            data = tmp_path / name
            data.mkdir()
            solutions = make(data)
            kind = benchmark_named(name)
            benchmark = kind(BenchmarkOptions(data, partial=True))
            items = list(benchmark.items())
            assert {item.id for item in items} == solutions.keys(), name
            for respondent in (Solving(solutions), Mini(bagel, {"model": "mini"})):
                folder = tmp_path / "runs" / respondent.facts["model"] / name
                runner = ItemRunner(benchmark, respondent, folder, judges, judge={"model": "parser"})
                runner.run(items)
                report = summarize(runner, items, len(items))
                assert (report["scored"], report["failed"], report["unscored"]) == (len(items), {}, []), name
                value = report["rows"][row]["value"]
                if isinstance(respondent, Solving):
                    assert value == pytest.approx(best), (name, report["rows"])
                else:
                    assert 0 <= value <= best
                found = runner.outcomes(items)
                for path in benchmark.write_submission(folder, found.results, found.scores):
                    assert path.is_file()
                write_summary(folder, report)
    files, content = write_report(tmp_path / "runs" / "solving", tmp_path / "runs" / "mini")
    assert {run["benchmark"] for run in content["runs"]} == SETS.keys()
    assert len(content["differences"]) == len(SETS)
    assert all(path.stat().st_size > 5_000 for path in files)
