"""Operator calls of one denoising step and of one decoded token at the official depth, counted at small widths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bagel_mot.bench import random_model
from bagel_mot.bench.ours import Denoising, read_text, run
from bagel_mot.bench.settings import SPECIAL, random_ids
from bagel_mot.config import BagelConfig, DecoderConfig, VaeConfig
from bagel_mot.inference.engine.engine import Engine
from bagel_mot.inference.engine.ops import ForwardOp, Output, TokenChoice
from bagel_mot.inference.settings import GenerationSettings
from bagel_mot.model import cached_attention, decoder, prepacked
from bagel_mot.model.cache import Context
from bagel_mot.model.kernels import can_prepack
from bagel_mot.model.passes import compiled
from bagel_mot.model.prepacked import prepack_weights
from bagel_mot.model.vae import Autoencoder
from bagel_mot.sequence import TextSegment

VOCABULARY = 128
CONFIG = BagelConfig(
    decoder=DecoderConfig(
        hidden_size=64, num_layers=28, num_heads=4, num_kv_heads=2, intermediate_size=96, vocab_size=VOCABULARY
    )
)
AUTOENCODER = VaeConfig(ch=32, ch_mult=(1,), num_res_blocks=1, z_channels=CONFIG.vae.z_channels)

pytestmark = pytest.mark.skipif(
    not can_prepack(torch.float32) or compiled() is None, reason="no prepacked weights or no compiler here"
)


class Counting(TorchDispatchMode):
    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def engine() -> Engine:
    """An engine with weights as large models have them: joined, prepacked, with compiled passes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepacked, "_SMALLEST_FLOAT32", 0)
        patch.setattr(decoder, "LEAST_WIDTH", 0)
        # Whether they are faster at such widths is not asked here.
        patch.setattr(decoder, "passes_for", lambda dtype, *_: decoder.Passes(compiled(), dtype))
        model = random_model(CONFIG, torch.float32, torch.device("cpu"))
        model.decoder.prepare(prepack=True)
        prepack_weights(model)
    return Engine(model, Autoencoder(AUTOENCODER), SPECIAL)


def calls(work: Callable[[], object]) -> int:
    """Operator calls of some work, after it was done once: layouts and views of scratch are there by then."""
    with torch.inference_mode():
        work()
        with Counting() as counting:
            work()
    return counting.calls


def context(engine: Engine, length: int) -> Context:
    made = engine.new_context(length + 40)
    if length:
        with torch.inference_mode():
            read_text(engine, random_ids(length, VOCABULARY).tolist(), made)
    return made


def denoising(engine: Engine, images: int, more: int = 0) -> int:
    """Images of 16 tokens, with and without their text, each of which is `more` tokens longer than the last."""
    contexts = [context(engine, length) for image in range(images) for length in (20 + image * more, 0)]
    run = Denoising(engine, contexts, (4, 4))
    latents = torch.randn(16, CONFIG.latent_dim)
    return calls(lambda: run.velocities(latents, 0.5))


def decoding(engine: Engine, texts: int) -> int:
    contexts = [context(engine, 20 + text) for text in range(texts)]
    settings = GenerationSettings(do_sample=False)

    def step() -> None:
        choices = [TokenChoice(settings, torch.Generator()) for _ in contexts]
        run(
            engine,
            [
                ForwardOp(own, (TextSegment((7,)),), Output.TOKEN, record=False, choice=choice)
                for own, choice in zip(contexts, choices, strict=True)
            ],
        )

    return calls(step)


def test_a_denoising_step_takes_few_calls_whatever_the_batch(engine: Engine) -> None:
    alone = denoising(engine, 1)
    assert alone <= 1030
    assert denoising(engine, 8) <= 1.2 * alone
    assert denoising(engine, 8, more=1) <= 1.2 * alone


def test_what_sees_much_has_calls_of_its_own_and_no_others(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """In each layer an image behind a context has a call of attention, and one that divides what it gives."""
    monkeypatch.setattr(cached_attention, "_SMALL_ROW", 0)
    two, eight, layers = denoising(engine, 2, more=1), denoising(engine, 8, more=1), CONFIG.decoder.num_layers
    # Six images of two contexts each; views are made for each of them once for all layers.
    assert eight - two <= 6 * 2 * (2 * layers + 12)


def test_a_decoded_token_takes_few_calls_whatever_the_batch(engine: Engine) -> None:
    alone = decoding(engine, 1)
    assert alone <= 500
    assert decoding(engine, 8) <= alone


def test_without_compiled_passes_it_is_half_as_many_again(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in engine.model.decoder.modules():
        if isinstance(part, decoder.Expert):
            monkeypatch.setattr(part, "passes", None)
    monkeypatch.setattr(engine.model.decoder, "passes", None)
    assert denoising(engine, 1) <= 1500
    assert decoding(engine, 1) <= 900
