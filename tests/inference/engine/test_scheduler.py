"""Long prompts are read in parts: what is cut, what is not, and who goes on meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bagel_mot.inference.api import Bagel
from bagel_mot.inference.engine import scheduler
from bagel_mot.inference.engine.engine import Engine
from bagel_mot.inference.engine.ops import ForwardOp, Output, Steps
from bagel_mot.inference.prepare import Preparer
from bagel_mot.model.cache import Context
from bagel_mot.sequence import Segment, VitSegment, segment_length, vit_segment
from bagel_mot.task import Task


def engine_of(bagel: Bagel, limit: int) -> Engine:
    checkpoint = bagel.checkpoint
    return Engine(checkpoint.model, checkpoint.autoencoder, checkpoint.special, max_step_tokens=limit)


def prompt(bagel: Bagel, golden: Any) -> tuple[Segment, ...]:
    """A long text, an image, and a text."""
    image = Preparer(bagel.runtime).image(golden.image("wide"), Task.ASK)
    pixels = bagel.defaults.vit_transform(image.image)
    long, short = bagel.runtime.text("word " * 40), bagel.runtime.text("What is it?")
    return long, vit_segment(pixels, bagel.config.vit.patch_size), short


def reading(engine: Engine, segments: tuple[Segment, ...]) -> Steps[tuple[Tensor, Context]]:
    context = engine.new_context()
    op = ForwardOp(context, segments, Output.LOGITS)
    yield [op]
    return op.result, context


def relative(got: Tensor, expected: Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("limit", [1, 7, 30, 60])
def test_a_prompt_that_is_cut_is_the_same_prompt(bagel: Bagel, golden: Any, limit: int) -> None:
    segments = prompt(bagel, golden)
    whole, _ = bagel.engine.submit(reading(bagel.engine, segments)).result()
    engine = engine_of(bagel, limit)
    parts, context = engine.submit(reading(engine, segments)).result()
    assert engine.stats.forwards > 1
    assert engine.stats.prefill_tokens == sum(map(segment_length, segments))
    assert relative(parts, whole) < 1e-5
    assert context.segments == segments, "the context knows its segments, and can be cut back to them"
    for count, entry in enumerate(context.entries, start=1):
        assert entry.length == sum(map(segment_length, segments[:count]))


def test_a_prompt_that_fits_is_not_cut(bagel: Bagel, golden: Any) -> None:
    segments = prompt(bagel, golden)
    whole, _ = bagel.engine.submit(reading(bagel.engine, segments)).result()
    engine = engine_of(bagel, sum(map(segment_length, segments)))
    again, _ = engine.submit(reading(engine, segments)).result()
    assert engine.stats.forwards == 1
    assert torch.equal(again, whole)


def test_images_are_never_cut(bagel: Bagel, golden: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(bagel, 7)
    seen: list[Segment] = []
    forward = engine.runner.forward

    def watched(batch: list[ForwardOp]) -> None:
        seen.extend(segment for op in batch for segment in op.part)
        forward(batch)

    monkeypatch.setattr(engine.runner, "forward", watched)
    segments = prompt(bagel, golden)
    engine.submit(reading(engine, segments)).result()
    assert [segment for segment in seen if isinstance(segment, VitSegment)] == [segments[1]]
    assert all(segment_length(segment) <= 7 for segment in seen if not isinstance(segment, VitSegment))


def test_a_long_prompt_does_not_hold_up_what_is_written(
    bagel: Bagel, golden: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "_CHUNK", 16)
    pieces: list[str] = []
    expected = bagel.ask(None, "What?", max_new_tokens=12)
    writing = bagel.submit(["What?"], output="text", max_new_tokens=12, on_text=pieces.append)
    for _ in range(2):
        bagel.engine.step()
    segments = prompt(bagel, golden)
    long = bagel.engine.submit(reading(bagel.engine, segments))
    largest, steps = 0, 0
    while not writing.done():
        before = bagel.engine.stats.prefill_tokens
        bagel.engine.step()
        largest, steps = max(largest, bagel.engine.stats.prefill_tokens - before), steps + 1
    assert steps <= 12, "a token in every step"
    assert largest <= max(16, segment_length(segments[1]))
    assert writing.result().text == expected
    whole, _ = engine_of(bagel, 10**6).submit(reading(bagel.engine, segments)).result()
    assert relative(long.result()[0], whole) < 1e-5


def test_a_request_longer_than_a_pass_is_answered(bagel: Bagel) -> None:
    expected = bagel.ask(None, "word " * 60, max_new_tokens=5)
    bagel.engine.max_step_tokens = 20
    assert bagel.ask(None, "word " * 60, max_new_tokens=5) == expected


def test_beside_a_text_being_written_no_second_prompt_adds_an_image(
    bagel: Bagel, golden: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a chunk has left after the first prompt is not enough for an image, and images are never cut."""
    monkeypatch.setattr(scheduler, "_CHUNK", 16)
    long, image, _ = prompt(bagel, golden)
    assert segment_length(image) > 4
    writing = ForwardOp(bagel.engine.new_context(), (bagel.runtime.text("a"),), Output.TOKEN, record=False)
    first = ForwardOp(bagel.engine.new_context(), (bagel.runtime.text("word " * 2),))
    second = ForwardOp(bagel.engine.new_context(), (image, long))
    for op in (writing, first, second):
        op.begin(None)
    assert first.tokens < 16 < second.tokens
    (batch,) = scheduler.forward_batches([writing, first, second], 1 << 20)
    assert batch == [writing, first]
    (batch,) = scheduler.forward_batches([writing, second], 1 << 20)
    assert batch == [writing, second]
    assert second.part == (image,), "alone it is read, though it is longer than a chunk"
