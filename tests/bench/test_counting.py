"""Bounds of what the main paths ask of PyTorch: operators and memory, which no load of the machine changes.

Recorded at the widths of `golden` in float32, a few percent above what was counted: a path that grows beyond its bound
has become slower or larger. A change that lowers a count lowers its bound with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from bagel_mot.bench import config_named, ours, random_autoencoder, random_model
from bagel_mot.bench.counting import CallCounts, count
from bagel_mot.bench.settings import SPECIAL
from bagel_mot.inference.engine.engine import Engine

CPU = torch.device("cpu")


def test_operators_and_their_memory_are_counted() -> None:
    x = torch.zeros(1000)

    def call() -> None:
        first = x + 1  # 4,000 bytes
        first.add_(1)  # none
        first.view(10, 100).mul(2)  # a view, and 4,000 bytes

    found = count(call, CPU)
    assert (found.operators, found.allocations, found.allocated_bytes) == (4, 2, 8000)
    assert 8000 <= found.peak_bytes < 9000


def engine_of(layers: int) -> Engine:
    config = config_named("golden")
    config = replace(config, decoder=replace(config.decoder, num_layers=layers))
    model = random_model(config, torch.float32, CPU)
    return Engine(model, random_autoencoder(config.vae, torch.float32, CPU), SPECIAL)


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[Engine, Engine]]:
    """Engines of 2 and 4 layers: what a layer takes is their difference."""
    with torch.inference_mode():
        yield engine_of(2), engine_of(4)


def denoising(engine: Engine) -> Callable[[], object]:
    """A step of two branches, 64 image tokens, behind 20 tokens of text."""
    context = engine.new_context(20 + 66)
    ours.read_text(engine, [7] * 20, context)
    run = ours.Denoising(engine, [context, engine.new_context(66)], (8, 8))
    latents = torch.randn(64, engine.model.config.latent_dim)
    return lambda: run.velocities(latents, 0.5)


def decoding(engine: Engine) -> Callable[[], object]:
    """A token behind 20."""
    context = engine.new_context(30)
    ours.read_text(engine, [7] * 20, context)
    return lambda: ours.read_text(engine, [7], context.fork(), record=False)


def prefill(engine: Engine) -> Callable[[], object]:
    """64 tokens of text."""
    return lambda: ours.read_text(engine, [7] * 64, engine.new_context(64))


def a_layer(engines: tuple[Engine, Engine], path: Callable[[Engine], Callable[[], object]]) -> CallCounts:
    """The counts of a layer, and the peak of the deeper engine."""
    shallow, deep = (count(path(engine), CPU) for engine in engines)
    return CallCounts(
        (deep.operators - shallow.operators) // 2,
        (deep.allocations - shallow.allocations) // 2,
        (deep.allocated_bytes - shallow.allocated_bytes) // 2,
        deep.peak_bytes,
    )


@pytest.mark.parametrize(
    ("path", "bound"),
    [
        (denoising, CallCounts(operators=64, allocations=44, allocated_bytes=870_000, peak_bytes=570_000)),
        (decoding, CallCounts(operators=34, allocations=23, allocated_bytes=6_600, peak_bytes=3_800)),
        (prefill, CallCounts(operators=37, allocations=23, allocated_bytes=440_000, peak_bytes=310_000)),
    ],
)
def test_a_layer_takes_no_more_than_recorded(
    engines: tuple[Engine, Engine], path: Callable[[Engine], Callable[[], object]], bound: CallCounts
) -> None:
    with torch.inference_mode():
        found = a_layer(engines, path)
    assert found.operators <= bound.operators
    assert found.allocations <= bound.allocations
    assert found.allocated_bytes <= bound.allocated_bytes
    assert found.peak_bytes <= bound.peak_bytes


def test_a_peak_does_not_grow_with_the_depth(engines: tuple[Engine, Engine]) -> None:
    """Activations of a layer are gone when the next one computes."""
    with torch.inference_mode():
        shallow, deep = (count(denoising(engine), CPU).peak_bytes for engine in engines)
    assert deep <= 1.02 * shallow
