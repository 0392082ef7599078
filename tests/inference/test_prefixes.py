"""Shared beginnings: what is found, what is kept, and that results stay what they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from bagel_mot.checkpoint.official import Checkpoint
from bagel_mot.inference.api import Bagel
from bagel_mot.inference.defaults import Defaults
from bagel_mot.inference.prefixes import PrefixCache, worth_keeping
from bagel_mot.inference.prepare import Preparer
from bagel_mot.inference.request import keys_of
from bagel_mot.prompts import SYSTEM_PROMPT_GENERATE
from bagel_mot.task import Task


@pytest.fixture
def sharing(checkpoint: Checkpoint, defaults: Defaults) -> Bagel:
    bagel = Bagel(checkpoint, defaults=defaults)
    bagel.share_prefixes(4096)
    return bagel


def close(a: Image.Image, b: Image.Image) -> bool:
    """Equal but for what rounding does to a float32 computed in another order."""
    return bool(np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 1)


def prefixes(bagel: Bagel) -> PrefixCache:
    return bagel.runtime.prefixes


def test_an_image_is_read_once(sharing: Bagel, bagel: Bagel, golden: Any) -> None:
    image = golden.image("wide")
    questions = ["What is this?", "Which colour?", "How many?"]
    expected = [bagel.ask(image, question) for question in questions]
    alone = bagel.engine.stats.prefill_tokens
    assert [sharing.ask(image, question) for question in questions] == expected
    assert (prefixes(sharing).hits, prefixes(sharing).misses) == (2, 1)
    saved = alone - sharing.engine.stats.prefill_tokens
    assert saved == 2 * prefixes(sharing).tokens > 0


def test_edits_of_one_image(sharing: Bagel, bagel: Bagel, golden: Any) -> None:
    image = golden.image("tall")
    for seed, instruction in enumerate(["make it red", "make it blue"]):
        expected = bagel.edit(image, instruction, seed=seed)
        assert close(sharing.edit(image, instruction, seed=seed), expected)
    assert sharing.engine.stats.encoded == 1
    assert bagel.engine.stats.encoded == 2


def test_what_is_read_for_drawing_is_not_what_is_read_for_answering(sharing: Bagel, golden: Any) -> None:
    sharing.edit(golden.image("tall"), "make it red", seed=0)
    sharing.ask(golden.image("tall"), "What is this?")
    assert (prefixes(sharing).hits, prefixes(sharing).misses) == (0, 2)


def test_system_prompts_are_shared(sharing: Bagel, bagel: Bagel) -> None:
    for prompt in ("a red circle", "a blue square"):
        expected = bagel.generate(prompt, seed=1, think=True, max_think_tokens=5)
        assert close(sharing.generate(prompt, seed=1, think=True, max_think_tokens=5), expected)
    assert prefixes(sharing).hits == 1
    assert prefixes(sharing).tokens == len(bagel.tokenizer.encode(SYSTEM_PROMPT_GENERATE)) + 2


def test_a_longer_beginning_goes_on_from_a_shorter_one(sharing: Bagel, bagel: Bagel, golden: Any) -> None:
    first, second = Image.open(golden.image("wide")), Image.open(golden.image("tall"))
    for images in ([first], [first, second], [first, second], [second, first]):
        assert sharing.ask(images, "What is this?") == bagel.ask(images, "What is this?")
    assert (prefixes(sharing).hits, prefixes(sharing).misses) == (2, 2)
    assert len(prefixes(sharing)._kept) == 2  # the first alone is part of the first two


def test_together_as_alone(sharing: Bagel, bagel: Bagel, golden: Any) -> None:
    image = golden.image("wide")
    prompts = [f"text number {i}" for i in range(4)]
    sharing.edit(image, "warm up", seed=9)
    together = sharing.edit([image] * 4, prompts, seed=[1, 2, 3, 4])
    for i, drawn in enumerate(together):
        assert close(drawn, bagel.edit(image, prompts[i], seed=i + 1))


def test_the_least_recently_used_is_forgotten(sharing: Bagel, golden: Any) -> None:
    images = [golden.image(name) for name in ("wide", "tall", "tiny")]
    sizes = []
    for image in images:
        before = prefixes(sharing).tokens
        sharing.ask(image, "What is this?")
        sizes.append(prefixes(sharing).tokens - before)
    sharing.share_prefixes(sum(sizes) - 1)
    for index in (0, 1, 0, 2):  # the second is now the oldest
        sharing.ask(images[index], "What is this?")
    assert prefixes(sharing).tokens <= sum(sizes) - 1
    hits = prefixes(sharing).hits
    sharing.ask(images[0], "Why?")
    assert prefixes(sharing).hits == hits + 1
    sharing.ask(images[1], "Why?")
    assert prefixes(sharing).hits == hits + 1


def test_what_is_too_large_is_not_kept(sharing: Bagel, golden: Any) -> None:
    sharing.share_prefixes(3)
    sharing.ask(golden.image("wide"), "What is this?")
    assert prefixes(sharing).tokens == 0
    sharing.share_prefixes(4096)
    sharing.ask(golden.image("wide"), "What is this?")
    assert prefixes(sharing).tokens > 0
    sharing.share_prefixes(0)
    assert prefixes(sharing).tokens == 0


def test_only_beginnings_are_kept(bagel: Bagel) -> None:
    prepare, image, other = Preparer(bagel.runtime), Image.new("RGB", (40, 40)), Image.new("RGB", (40, 40), "red")

    def keys(*values: Any, task: Task = Task.EDIT) -> Any:
        return keys_of(prepare.inputs(values, task))

    system = bagel.runtime.system_prompt(Task.ASK)
    assert worth_keeping(keys("a")) == 0
    assert worth_keeping(keys("a", image, "b")) == 2
    assert worth_keeping(keys_of([system, *prepare.inputs(["b"], Task.ASK)])) == 1
    assert keys(image) == keys(image.copy())
    assert keys(image) != keys(other)
    assert keys(image) != keys(image, task=Task.ASK)
