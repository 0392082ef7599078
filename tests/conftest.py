"""What several tests need: the recorded cases in tests/golden, and the error they are judged by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"


class Golden:
    """A folder of recorded cases: `cases.json`, `expected.safetensors`, `images/` and `checkpoint/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = folder / "checkpoint"

    @cached_property
    def document(self) -> dict[str, Any]:
        """All of cases.json."""
        return json.loads((self.folder / "cases.json").read_text(encoding="utf-8"))

    @cached_property
    def expected(self) -> dict[str, Tensor]:
        """Tensors by "CASE/QUANTITY"."""
        return load_file(self.folder / "expected.safetensors")

    def cases(self, kind: str) -> list[dict[str, Any]]:
        """The cases of one kind, at least one."""
        found = [case for case in self.document["cases"] if case["kind"] == kind]
        assert found, f"no recorded case of kind {kind}"
        return found

    def image(self, name: str) -> Path:
        """The path of an input picture."""
        return self.folder / "images" / f"{name}.png"

    @staticmethod
    def error(got: Tensor, expected: Tensor) -> float:
        """‖got − expected‖ / ‖expected‖, after checking that the shapes agree."""
        assert got.shape == expected.shape, f"shape {tuple(got.shape)} instead of {tuple(expected.shape)}"
        return ((got.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """How several processes share the tests."""
    from tests.sharing import Sharing  # here, because pytest-xdist is not there wherever tests run

    return Sharing(config, log)


@pytest.fixture(scope="session")
def golden() -> Golden:
    """The recorded cases."""
    return Golden(GOLDEN)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every test starts from the same global random state and leaves the caller's as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
