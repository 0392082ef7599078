"""Fixtures of ComfyUI's nodes: a model that stays, and ComfyUI's own modules."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.integrations.comfy_modules import Inside
from tests.integrations.pack import handle, package


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On a model this small, threads wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    """A model that stays, since its handle does."""
    kept = handle()
    yield kept.load()
    del kept
    package.models.OWNER.unload()


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Inside:
    """ComfyUI around the nodes, which know of it."""
    found = Inside()
    for module in found.modules:
        monkeypatch.setitem(sys.modules, module.__name__, module)
    package.places.register()
    package.memory.follow_comfyui(package.models.OWNER)
    return found
