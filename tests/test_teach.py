"""The lessons of examples/teach: their data, their judges, and a training in miniature by the commands of the docs."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from bagel_mot.data.readers.folder import CaptionedImages, ImagePairs
from bagel_mot.data.sources.folder import found_task
from bagel_mot.worlds.mini.draw import draw
from bagel_mot.worlds.mini.parser import parse, same_scene
from bagel_mot.worlds.mini.scene import QUADRANTS, SIZES

ROOT = Path(__file__).parent.parent


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _lesson(name: str) -> ModuleType:
    return _module(ROOT / "examples" / "teach" / f"{name}.py")


def test_hats_are_judged_by_place_size_background_and_colour(tmp_path: Path) -> None:
    lesson = _lesson("new_thing")
    rng = random.Random(3)
    for _ in range(3):
        hat = lesson.Hat.random(rng)
        image = hat.draw(rng.randint(-2, 2), rng.randint(-2, 2))
        assert lesson.is_right(image, hat)
        assert not lesson.is_right(image, lesson.Hat.random(random.Random(99)))
    hat = lesson.Hat("grass", "in the middle", "large")
    assert not lesson.is_right(lesson.background("grass"), hat)
    pixels = np.asarray(hat.draw()).copy()
    pixels[(pixels == lesson.LAVENDER).all(2)] = (216, 38, 40)
    assert not lesson.is_right(Image.fromarray(pixels), hat)
    lesson.write_data(tmp_path, 5)
    assert found_task(tmp_path) == "t2i"
    assert all("lavender hat" in row["captions"][0] for row in CaptionedImages(tmp_path).rows)


def test_mirrored_pairs(tmp_path: Path) -> None:
    lesson = _lesson("new_edit")
    lesson.write_data(tmp_path, 4)
    assert found_task(tmp_path) == "edit"
    assert len(ImagePairs(tmp_path).rows) == 4
    scene = lesson.random_scene(random.Random(1))
    assert lesson.mirrored(lesson.mirrored(scene)) == scene
    assert same_scene(parse(draw(lesson.mirrored(scene))), lesson.mirrored(scene))
    assert not same_scene(parse(draw(scene)), lesson.mirrored(scene))


def test_questions_about_the_biggest_thing(tmp_path: Path) -> None:
    lesson = _lesson("new_question")
    lesson.write_data(tmp_path, 30)
    assert found_task(tmp_path) == "chat"
    rows = [json.loads(line) for line in (tmp_path / "conversations.jsonl").read_text().splitlines()]
    assert {row["conversations"][1]["value"] for row in rows} == set(QUADRANTS)
    assert all((tmp_path / row["image"]).exists() for row in rows)
    rng = random.Random(0)
    for _ in range(20):
        scene = lesson.random_scene(rng)
        biggest = max(scene.things, key=lambda thing: SIZES.index(thing.size))
        assert lesson.answer(scene) == biggest.slot
        assert sum(thing.size == biggest.size for thing in scene.things) == 1
        assert lesson.answer(replace(scene, things=(biggest,))) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["new_thing", "new_edit", "new_question"])
def test_a_lesson_in_miniature(name: str, tmp_path: Path) -> None:
    result = tmp_path / "teach.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "teach.py"), name, "--smoke", "--json", str(result)]
    done = subprocess.run([*command, "--output", str(tmp_path / "runs")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(result.read_text())[name]
    assert 0 <= found["right_after"] <= 1
    assert found["old"]["draw"]["after"] >= 0
