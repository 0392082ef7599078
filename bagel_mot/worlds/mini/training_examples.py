"""Training examples: texts and scenes in order, and which of them the model learns to produce.

Thinking examples begin with one of the published system prompts, in a segment of its own, as in inference.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from bagel_mot.prompts import SYSTEM_PROMPT_GENERATE, SYSTEM_PROMPT_UNDERSTAND
from bagel_mot.worlds.mini.captions import caption, describe, tell
from bagel_mot.worlds.mini.edits import Edit, sample_edit
from bagel_mot.worlds.mini.questions import question, questions
from bagel_mot.worlds.mini.riddles import sample_riddle
from bagel_mot.worlds.mini.sampling import sample_scene
from bagel_mot.worlds.mini.scene import Scene, SceneError


@dataclass(frozen=True)
class Say:
    """A text; `loss` marks the texts that the model learns to write."""

    text: str
    loss: bool


@dataclass(frozen=True)
class Show:
    """An image, as its scene; `target` marks the images that the model learns to draw."""

    scene: Scene
    target: bool


ExamplePart = Say | Show
TrainingExample = tuple[str, tuple[ExamplePart, ...]]
"""(task name, parts in order)."""

DESCRIBE_PROMPTS = ("Describe the picture.", "What is in the picture?", "What do you see?")
CHANGED_PROMPT = "What changed?"
DRAW_THING_COUNT_WEIGHTS = (38, 36, 14, 12)
"""Percentages of captioned images with one, two, three and four things: fewer things than in other scenes, because most
prompts of people name one or two."""
PLAIN_THINK_SHARE = 0.12
"""Share of thinking examples with a plain task, which the thinking merely restates."""


def sample_example(rng: random.Random, mix: Mapping[str, float] | None = None, split: str = "train") -> TrainingExample:
    """A random example of a task drawn by weight.

    Args:
        rng: the source of all randomness.
        mix: the weight of each task; missing tasks have weight 0. The default is DEFAULT_MIX.
        split: the split of every scene that is drawn or asked about.

    Raises:
        SceneError: a task is unknown, a weight is negative, or all weights are 0.
    """
    weights = DEFAULT_MIX if mix is None else mix
    unknown = sorted(set(weights) - set(EXAMPLE_TASKS))
    if unknown:
        raise SceneError(f"the mix names {', '.join(unknown)}; the tasks are {', '.join(EXAMPLE_TASKS)}")
    if any(weight < 0 for weight in weights.values()) or not sum(weights.values()) > 0:
        raise SceneError(f"the mix weighs its tasks {dict(weights)}; weights must be 0 or more, and one above 0")
    # The order of EXAMPLE_TASKS, not of the mapping, so that equal mixes give equal documents.
    task = rng.choices(EXAMPLE_TASKS, [weights.get(name, 0.0) for name in EXAMPLE_TASKS])[0]
    return task, _TASKS[task][0](rng, split)


def corpus(n: int, seed: int) -> Iterator[str]:
    """`n` texts as they occur in training examples, for training the tokenizer; the same ones for the same seed."""
    rng = random.Random(seed)
    mix = dict.fromkeys(EXAMPLE_TASKS, 1.0)
    given = 0
    while given < n:
        for part in sample_example(rng, mix)[1]:
            if isinstance(part, Say) and given < n:
                given += 1
                yield part.text


def _draw(rng: random.Random, split: str) -> tuple[ExamplePart, ...]:
    scene = sample_scene(rng, split, things=rng.choices((1, 2, 3, 4), DRAW_THING_COUNT_WEIGHTS)[0])
    return Say(caption(scene, rng), False), Show(scene, True)


def _edit(rng: random.Random, split: str) -> tuple[ExamplePart, ...]:
    before, edit = _scene_and_edit(rng, split)
    return Show(before, False), Say(edit.instruction, False), Show(edit.result, True)


def _scene_and_edit(rng: random.Random, split: str) -> tuple[Scene, Edit]:
    """A scene and an edit of it whose result is in the split."""
    while True:
        before = sample_scene(rng, split)
        try:
            return before, sample_edit(before, rng, split)
        except SceneError:
            continue


def _chain(rng: random.Random, split: str) -> tuple[ExamplePart, ...]:
    """Two or three edits in a row, sometimes of an image drawn in the same session."""
    while True:
        scene = sample_scene(rng, split)
        drawn = rng.random() < 0.4
        parts: list[ExamplePart] = (
            [Say(caption(scene, rng), False), Show(scene, True)] if drawn else [Show(scene, False)]
        )
        try:
            for _ in range(rng.choice((2, 3)) - drawn):
                edit = sample_edit(scene, rng, split)
                scene = edit.result
                parts += [Say(edit.instruction, False), Show(scene, True)]
        except SceneError:
            continue
        return tuple(parts)


def _ask(rng: random.Random, split: str) -> tuple[ExamplePart, ...]:
    scene = sample_scene(rng, split)
    parts: list[ExamplePart] = [Show(scene, False)]
    for qa in questions(scene, rng, rng.randint(3, 6)):
        parts += [Say(qa.question, False), Say(qa.answer, True)]
    return tuple(parts)


def _describe(rng: random.Random, split: str) -> tuple[ExamplePart, ...]:
    scene = sample_scene(rng, split)
    return Show(scene, False), Say(rng.choice(DESCRIBE_PROMPTS), False), Say(describe(scene), True)


def _session(rng: random.Random, split: str) -> tuple[ExamplePart, ...]:
    """An image drawn, asked about, edited, and asked about again."""
    while True:
        scene = sample_scene(rng, split)
        try:
            edit = sample_edit(scene, rng, split)
        except SceneError:
            continue
        first = question(scene, rng)
        parts: list[ExamplePart] = [Say(caption(scene, rng), False), Show(scene, True)]
        parts += [Say(first.question, False), Say(first.answer, True)]
        parts += [Say(edit.instruction, False), Show(edit.result, True)]
        if rng.random() < 0.35:
            return *parts, Say(CHANGED_PROMPT, False), Say(edit.change, True)
        last = question(edit.result, rng)
        return *parts, Say(last.question, False), Say(last.answer, True)


def _read(rng: random.Random, split: str) -> tuple[ExamplePart, ...]:
    scene = sample_scene(rng, split)
    parts: list[ExamplePart] = [Say(tell(scene, rng), False)]
    for qa in questions(scene, rng, rng.randint(3, 6)):
        parts += [Say(qa.question, False), Say(qa.answer, True)]
    return tuple(parts)


def _rewrite(rng: random.Random, split: str) -> tuple[ExamplePart, ...]:
    before, edit = _scene_and_edit(rng, split)
    return Say(tell(before, rng), False), Say(edit.instruction, False), Say(describe(edit.result), True)


def _foretell(rng: random.Random, split: str) -> tuple[ExamplePart, ...]:
    before, edit = _scene_and_edit(rng, split)
    return Show(before, False), Say(edit.instruction, False), Say(describe(edit.result), True)


def thought(think: str) -> str:
    """The thinking in its tags, as the model has to write it."""
    return f"<think>{think}</think>"


def _think_draw(rng: random.Random, split: str) -> tuple[ExamplePart, ...]:
    if rng.random() < PLAIN_THINK_SHARE:
        scene = sample_scene(rng, split)
        prompt = caption(scene, rng)
        think = f"so: {prompt.removeprefix('draw ')}."
    else:
        riddle = sample_riddle(rng, "draw", split)
        assert riddle.scene_after is not None
        scene, prompt, think = riddle.scene_after, riddle.prompt, riddle.think
    return Say(SYSTEM_PROMPT_GENERATE, False), Say(prompt, False), Say(thought(think), True), Show(scene, True)


def _think_edit(rng: random.Random, split: str) -> tuple[ExamplePart, ...]:
    if rng.random() < PLAIN_THINK_SHARE:
        before, edit = _scene_and_edit(rng, split)
        after, prompt, think = edit.result, edit.instruction, f"so: {edit.instruction}."
    else:
        riddle = sample_riddle(rng, "edit", split)
        assert riddle.scene_before is not None
        assert riddle.scene_after is not None
        before, after, prompt, think = riddle.scene_before, riddle.scene_after, riddle.prompt, riddle.think
    return (
        Say(SYSTEM_PROMPT_GENERATE, False),
        Show(before, False),
        Say(prompt, False),
        Say(thought(think), True),
        Show(after, True),
    )


def _think_answer(rng: random.Random, split: str) -> tuple[ExamplePart, ...]:
    if rng.random() < PLAIN_THINK_SHARE:
        scene = sample_scene(rng, split)
        qa = question(scene, rng)
        prompt, think, answer = qa.question, f"so: {qa.question}", qa.answer
    else:
        riddle = sample_riddle(rng, "answer", split)
        assert riddle.scene_before is not None
        assert riddle.answer is not None
        scene, prompt, think, answer = riddle.scene_before, riddle.prompt, riddle.think, riddle.answer
    return (
        Say(SYSTEM_PROMPT_UNDERSTAND, False),
        Show(scene, False),
        Say(prompt, False),
        Say(f"{thought(think)} {answer}", True),
    )


def _direct(task: str) -> Callable[[random.Random, str], tuple[ExamplePart, ...]]:
    """A maker of riddles with their solutions, without system prompt and thinking."""

    def make(rng: random.Random, split: str) -> tuple[ExamplePart, ...]:
        riddle = sample_riddle(rng, task, split)
        parts: list[ExamplePart] = [Show(riddle.scene_before, False)] if riddle.scene_before is not None else []
        parts.append(Say(riddle.prompt, False))
        parts.append(
            Show(riddle.scene_after, True) if riddle.scene_after is not None else Say(riddle.answer or "", True)
        )
        return tuple(parts)

    return make


_TASKS: dict[str, tuple[Callable[[random.Random, str], tuple[ExamplePart, ...]], float]] = {
    "draw": (_draw, 0.32),
    "edit": (_edit, 0.20),
    "chain": (_chain, 0.08),
    "ask": (_ask, 0.12),
    "describe": (_describe, 0.03),
    "think_draw": (_think_draw, 0.07),
    "think_edit": (_think_edit, 0.06),
    "think_answer": (_think_answer, 0.06),
    "session": (_session, 0.06),
    "read": (_read, 0.0),
    "rewrite": (_rewrite, 0.0),
    "foretell": (_foretell, 0.0),
    "direct_draw": (_direct("draw"), 0.0),
    "direct_edit": (_direct("edit"), 0.0),
    "direct_answer": (_direct("answer"), 0.0),
}
EXAMPLE_TASKS: tuple[str, ...] = tuple(_TASKS)
DEFAULT_MIX: dict[str, float] = {task: share for task, (_, share) in _TASKS.items()}
"""Share of each task. The "direct" tasks are riddles without thinking, for comparison with thinking; off by default.

"read" (questions about a described scene), "rewrite" (the described result of an edit of a described scene) and
"foretell" (the described result of an edit of an image) draw nothing. Through the dense loss of text they teach the und
expert which colour belongs to which thing, and which thing an instruction refers to; drawing builds on that.
"""
