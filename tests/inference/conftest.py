"""The recorded model as a `Bagel`, with the picture sizes of its recording."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from bagel_mot.checkpoint.official import Checkpoint, load_checkpoint
from bagel_mot.images import ImageTransform
from bagel_mot.inference.api import Bagel
from bagel_mot.inference.defaults import Defaults
from bagel_mot.inference.engine.ops import TokenChoice


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """On a model this small, threads wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def checkpoint(golden: Any) -> Checkpoint:
    return load_checkpoint(golden.checkpoint, precision=torch.float32)


@pytest.fixture(scope="session")
def defaults(golden: Any) -> Defaults:
    def transform(name: str) -> ImageTransform:
        raw = golden.document[name]
        return ImageTransform(raw["max_image_size"], raw["min_image_size"], raw["image_stride"])

    quick = {"num_timesteps": 5, "size": (48, 32)}
    return Defaults(
        transform("vae_transform"),
        transform("vit_transform"),
        tasks={"generate": quick, "edit": {"num_timesteps": 5}, "ask": {"max_new_tokens": 12}},
    )


@pytest.fixture
def bagel(checkpoint: Checkpoint, defaults: Defaults) -> Bagel:
    """A fresh engine on the recorded weights. Pictures: 5 timesteps, 48×32 pixels; answers: 12 tokens at most."""
    return Bagel(checkpoint, defaults=defaults)


@pytest.fixture
def spoken(bagel: Bagel, monkeypatch: pytest.MonkeyPatch) -> Callable[[str | list[int]], None]:
    """Makes the model say a given text (or tokens) next, whatever it read, and then the end token."""
    from bagel_mot.inference.engine import runner

    def say(text: str | list[int]) -> None:
        tokens = [*(bagel.tokenizer.encode(text) if isinstance(text, str) else text), bagel.tokenizer.special.eos]

        def choose(logits: Tensor, choices: Sequence[TokenChoice]) -> list[int]:
            return [tokens[min(len(choice.tokens), len(tokens) - 1)] for choice in choices]

        monkeypatch.setattr(runner, "choose_tokens", choose)

    return say
