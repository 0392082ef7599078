"""Compiled layers: few shapes, whatever the lengths of prompts. A compiler that counts stands in for the real one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch

from bagel_mot.checkpoint.official import Checkpoint
from bagel_mot.inference.api import Bagel
from bagel_mot.inference.defaults import Defaults
from bagel_mot.inference.request import Recorder
from bagel_mot.model.buckets import token_bucket


class Counting:
    """A compiler that leaves everything as it is."""

    calls = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        self.calls += 1
        return graph.forward


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    counting = Counting()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counting))
    torch.compiler.reset()
    yield counting
    torch.compiler.reset()


@pytest.fixture
def bagel(checkpoint: Checkpoint, defaults: Defaults, compiler: Counting) -> Bagel:
    weights = {id(tensor): tensor for tensor in (*checkpoint.model.parameters(), *checkpoint.model.buffers())}
    twin = copy.deepcopy(checkpoint.model, weights)
    return Bagel(Checkpoint(**{**vars(checkpoint), "model": twin}), defaults=defaults, compile=True)


def prompts(bagel: Bagel, size: int) -> list[str]:
    """Prompts of different lengths, all of which have `size` slots."""
    found = {}
    for n in range(1, 80):
        prompt = "how many cars " * n
        length = bagel.runtime.text(prompt).und_len
        if token_bucket(length) == size:
            found[length] = prompt
    assert len(found) > 1
    return list(found.values())


def test_a_prompt_of_another_length_compiles_nothing(bagel: Bagel, compiler: Counting) -> None:
    first, *others = prompts(bagel, 64)
    bagel.ask(None, first, max_new_tokens=2)
    compiled = compiler.calls
    assert compiled >= 2
    for other in others:
        bagel.ask(None, other, max_new_tokens=2)
    assert compiler.calls == compiled
    bagel.ask(None, prompts(bagel, 128)[0], max_new_tokens=2)
    assert compiler.calls > compiled, "a size that is new is compiled, else this could not fail"


def test_nor_does_an_image_of_another_prompt(bagel: Bagel, compiler: Counting) -> None:
    first, *others = prompts(bagel, 64)
    bagel.generate(first, seed=0, num_timesteps=3)
    compiled = compiler.calls
    for other in others[:2]:
        bagel.generate(other, seed=0, num_timesteps=3)
    assert compiler.calls == compiled


def test_results_are_those_without_compiling(bagel: Bagel, checkpoint: Checkpoint, defaults: Defaults) -> None:
    """Slots that are there in vain change nothing but last digits."""
    plain = Bagel(checkpoint, defaults=defaults)
    for size in ((48, 32), (32, 32)):
        recorded = []
        for each in (bagel, plain):
            recorder = Recorder()
            each.interleave(["a red car"], recorder=recorder, seed=0, size=size)
            recorded.append(recorder.latent)
        assert torch.allclose(recorded[0], recorded[1], atol=1e-4)
    question = prompts(bagel, 64)[0]
    assert bagel.ask(None, question) == plain.ask(None, question)


def test_slots_are_few_sizes_and_close_to_what_is_needed() -> None:
    sizes = {token_bucket(n) for n in range(1, 32769)}
    assert len(sizes) == 48
    assert token_bucket(0) == 0
    for side, branches in [((64, 64), 3), ((48, 64), 3), ((36, 64), 2), ((32, 32), 3)]:
        for count in range(1, branches + 1):
            tokens = count * side[0] * side[1]
            assert token_bucket(tokens) == tokens, "images of the trained sizes have no padding"
    assert all(token_bucket(n) < 1.125 * n for n in range(1025, 32769))
