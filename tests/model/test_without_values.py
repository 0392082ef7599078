"""Modules that get their weights from a file are made without any, and are otherwise the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bagel_mot.bench.machine import config_named
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.vae import Autoencoder
from bagel_mot.model.without_values import without_values


class Names(TorchDispatchMode):
    """The names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_nothing_is_computed_for_weights() -> None:
    with Names() as plain, torch.device("meta"):
        parts: Iterator[nn.Module] = iter((nn.Linear(8, 8), nn.Conv2d(8, 8, 3), nn.Embedding(8, 8)))
        assert len(list(parts)) == 3
    with Names() as names, without_values():
        nn.Linear(8, 8), nn.Conv2d(8, 8, 3), nn.Embedding(8, 8)
    assert any("uniform" in name for name in plain.seen)
    assert names.seen == {"empty"}


def test_what_is_made_after_it_has_values(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="later"), without_values():
        raise ValueError("later")
    assert nn.Linear(64, 64).weight.std() > 0


def test_shapes_are_those_of_a_model_with_values() -> None:
    config = config_named("golden")
    with without_values():
        made = {**BagelModel(config).state_dict(), **Autoencoder(config.vae).state_dict()}
    real = {**BagelModel(config).state_dict(), **Autoencoder(config.vae).state_dict()}
    assert {name: (t.shape, t.dtype) for name, t in made.items()} == {n: (t.shape, t.dtype) for n, t in real.items()}
    assert {t.device.type for t in made.values()} == {"meta"}
