"""Helpers of this folder as fixtures: damaged pictures, and a second reader of instructions and questions."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"mini_tests_{name}", Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def damage() -> ModuleType:
    """Pictures damaged like an autoencoder's, and nearly right ones."""
    return _load("damage")


@pytest.fixture(scope="session")
def reading() -> ModuleType:
    """Reads instructions and questions word by word, without the code that wrote them."""
    return _load("reading")
