"""Training documents: their form, their shares, and the same ones from the same seed in any process."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bagel_mot.prompts import SYSTEM_PROMPT_GENERATE, SYSTEM_PROMPT_UNDERSTAND
from bagel_mot.worlds.mini.scene import Scene, SceneError, Thing
from bagel_mot.worlds.mini.training_examples import (
    DEFAULT_MIX,
    DESCRIBE_PROMPTS,
    EXAMPLE_TASKS,
    Say,
    Show,
    corpus,
    sample_example,
)
from bagel_mot.worlds.mini.words import BACKGROUND_PHRASES

GOLDEN_PROMPTS = Path(__file__).parents[2] / "golden" / "system_prompts.json"


def shape(parts: tuple[Say | Show, ...]) -> str:
    """A letter a part: s, S for text without and with loss, p, P for pictures given and to be drawn."""
    return "".join(("S" if p.loss else "s") if isinstance(p, Say) else ("P" if p.target else "p") for p in parts)


FORMS = {
    "draw": {"sP"},
    "edit": {"psP"},
    "chain": {"psPsP", "psPsPsP", "sPsP", "sPsPsP"},
    "ask": {"p" + "sS" * n for n in (3, 4, 5, 6)},
    "describe": {"psS"},
    "think_draw": {"ssSP"},
    "think_edit": {"spsSP"},
    "think_answer": {"spsS"},
    "session": {"sPsSsPsS"},
    "read": {"s" + "sS" * n for n in (3, 4, 5, 6)},
    "rewrite": {"ssS"},
    "foretell": {"psS"},
    "direct_draw": {"sP"},
    "direct_edit": {"psP"},
    "direct_answer": {"psS"},
}


@pytest.mark.parametrize("task", EXAMPLE_TASKS)
def test_form_of_each_task(task: str) -> None:
    rng = random.Random(task)
    shapes = set()
    for _ in range(150):
        name, parts = sample_example(rng, {task: 1.0})
        assert name == task
        shapes.add(shape(parts))
        assert all(part.text.strip() == part.text != "" for part in parts if isinstance(part, Say))
    assert shapes <= FORMS[task]
    assert len(shapes) == len(FORMS[task])


def test_thinking_documents() -> None:
    rng = random.Random(1)
    for _ in range(200):
        parts = sample_example(rng, {"think_draw": 1.0, "think_edit": 1.0})[1]
        assert isinstance(parts[0], Say)
        assert parts[0].text == SYSTEM_PROMPT_GENERATE
        assert isinstance(parts[-2], Say)
        assert parts[-2].text.startswith("<think>")
        assert parts[-2].text.endswith("</think>")
        parts = sample_example(rng, {"think_answer": 1.0})[1]
        assert isinstance(parts[0], Say)
        assert parts[0].text == SYSTEM_PROMPT_UNDERSTAND
        assert isinstance(parts[-1], Say)
        think, answer = parts[-1].text.split("</think> ")
        assert think.startswith("<think>")
        assert answer


@pytest.mark.skipif(not GOLDEN_PROMPTS.exists(), reason="the recorded system prompts are not there")
def test_system_prompts_to_the_letter() -> None:
    recorded = json.loads(GOLDEN_PROMPTS.read_text(encoding="utf-8"))
    assert recorded == {"understand": SYSTEM_PROMPT_UNDERSTAND, "generate": SYSTEM_PROMPT_GENERATE}


def test_chains_and_questions_are_right(reading: ModuleType) -> None:
    """Every instruction leads from the picture before it to the one after, every answer is that of the last picture."""
    rng = random.Random(2)
    checked = Counter()
    for _ in range(1500):
        task, parts = sample_example(rng, {"edit": 1, "chain": 1, "ask": 1, "session": 1})
        shown = None
        for before, after in pairwise(parts):
            if isinstance(before, Show):
                shown = before.scene
            if not isinstance(before, Say) or shown is None:
                continue
            if isinstance(after, Show):
                result, _ = reading.carry_out(shown, before.text)
                wanted = {(t.kind, t.colour, t.size, t.slot) for t in after.scene.things}
                assert {(t.kind, t.colour, t.size, t.slot) for t in result.things} == wanted, (task, before.text)
                checked["edits"] += 1
            elif after.loss and before.text != "What changed?":
                assert reading.answer(shown, before.text) == after.text
                checked["answers"] += 1
    assert checked["edits"] > 1500
    assert checked["answers"] > 1500


def told_scene(reading: ModuleType, text: str) -> Scene:
    """The scene that a complete listing of things and background tells of, read word by word."""
    for prefix in ("a picture of ", "a photo of ", "a drawing of ", "draw "):
        text = text.removeprefix(prefix)
    *listed, where = text.split(", ")
    background = next(name for name, phrases in BACKGROUND_PHRASES.items() if where in phrases)
    things = []
    for phrase in ", ".join(listed).replace(" and ", ", ").split(", "):
        if phrase != "nothing":
            found = {"size": "medium", **reading.attributes(phrase)}
            things.append(Thing(found["kind"], found["colour"], found["size"], found["slot"]))
    return Scene(background, tuple(things))


def looks(scene: Scene) -> tuple[Any, ...]:
    return scene.background, sorted((t.kind, t.colour, t.size, t.slot) for t in scene.things)


def test_questions_about_a_text_are_answered_right(reading: ModuleType) -> None:
    rng = random.Random(5)
    for _ in range(400):
        told, *rest = sample_example(rng, {"read": 1})[1]
        scene = told_scene(reading, told.text)
        for asked, answered in zip(rest[::2], rest[1::2], strict=True):
            assert reading.answer(scene, asked.text) == answered.text, (told.text, asked.text)


def test_what_an_edit_makes_is_told_right(reading: ModuleType) -> None:
    rng = random.Random(6)
    tasks = Counter()
    for _ in range(600):
        task, (before, instruction, after) = sample_example(rng, {"rewrite": 1, "foretell": 1})
        scene = before.scene if isinstance(before, Show) else told_scene(reading, before.text)
        result, _ = reading.carry_out(scene, instruction.text)
        assert looks(told_scene(reading, after.text)) == looks(result), (task, instruction.text)
        tasks[task] += 1
    assert min(tasks.values()) > 200


def test_descriptions_are_asked_for() -> None:
    rng = random.Random(3)
    asked = {sample_example(rng, {"describe": 1})[1][1].text for _ in range(60)}  # type: ignore[union-attr]
    assert asked == set(DESCRIBE_PROMPTS)


def test_shares_follow_the_mix() -> None:
    rng = random.Random(4)
    tasks = Counter(sample_example(rng)[0] for _ in range(4000))
    for task, share in DEFAULT_MIX.items():
        assert abs(tasks[task] / 4000 - share) < 0.03
    assert sum(DEFAULT_MIX.values()) == pytest.approx(1)
    only = Counter(sample_example(rng, {"draw": 3, "ask": 1})[0] for _ in range(800))
    assert set(only) == {"draw", "ask"}
    assert 0.68 < only["draw"] / 800 < 0.82


def test_order_of_the_mix_does_not_matter() -> None:
    a = [sample_example(random.Random(i), {"draw": 1, "ask": 2, "edit": 1}) for i in range(50)]
    b = [sample_example(random.Random(i), {"edit": 1, "ask": 2, "draw": 1}) for i in range(50)]
    assert a == b


@pytest.mark.parametrize(
    ("mix", "message"),
    [({"dance": 1.0}, "names dance"), ({"draw": -1.0}, "0 or more"), ({"draw": 0.0}, "0 or more"), ({}, "0 or more")],
)
def test_bad_mix(mix: dict[str, float], message: str) -> None:
    with pytest.raises(SceneError, match=message):
        sample_example(random.Random(0), mix)


def test_corpus() -> None:
    texts = list(corpus(2000, 1))
    assert len(texts) == 2000
    assert texts == list(corpus(2000, 1))
    assert texts != list(corpus(2000, 2))
    joined = " ".join(texts)
    assert SYSTEM_PROMPT_GENERATE in joined
    assert "<think>" in joined
    assert "How many" in joined
    assert list(corpus(0, 1)) == []


DIGEST_SCRIPT = """
import hashlib, random
from bagel_mot.worlds.mini.training_examples import EXAMPLE_TASKS, sample_example
from bagel_mot.worlds.mini.items import DRAW_ROWS, ask_items, chain_items, draw_items, edit_items, riddle_items
from bagel_mot.worlds.mini.draw import draw_array
from bagel_mot.worlds.mini.parser import parse
from bagel_mot.worlds.mini.sampling import sample_scene
rng = random.Random(11)
digest = hashlib.sha256()
for _ in range(300):
    digest.update(repr(sample_example(rng, dict.fromkeys(EXAMPLE_TASKS, 1.0))).encode())
for row in DRAW_ROWS:
    digest.update(repr(draw_items(row, 20)).encode())
digest.update(repr((ask_items("count", 20), edit_items("move", 20))).encode())
digest.update(repr((chain_items(10), riddle_items("draw", 20))).encode())
for split in ("train", "held_out"):
    picture = draw_array(sample_scene(rng, split))
    digest.update(picture.tobytes())
    digest.update(repr([(t.kind, t.colour, t.slot) for t in parse(picture).things]).encode())
print(digest.hexdigest())
"""


def test_same_seed_same_everything_in_every_process() -> None:
    digests = set()
    for hash_seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", DIGEST_SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(__file__).parents[3])},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout)
    assert len(digests) == 1
    assert len(digests.pop().strip()) == hashlib.sha256().digest_size * 2
