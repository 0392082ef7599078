"""Private operations of PyTorch are called in one file alone, and only where they compute what they should."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import bagel_mot
from bagel_mot.model import kernels

PRIVATE = re.compile(r"torch\.ops\.(?!bitsandbytes)|torch\._(?!_|dynamo|inductor|foreach)")


def test_no_other_file_calls_a_private_operation() -> None:
    root = Path(bagel_mot.__file__).parent
    calling = {str(path.relative_to(root)) for path in root.rglob("*.py") if PRIVATE.search(path.read_text("utf-8"))}
    assert calling == {"model/kernels.py"}


@pytest.mark.parametrize(
    ("operation", "probe"),
    [
        ("prepack", lambda: kernels.can_prepack.__wrapped__(torch.float32)),
        ("int8_weight_matmul", lambda: kernels.has_int8_kernel.__wrapped__("cpu", torch.float32)),
        ("int4_weight_matmul", lambda: kernels.has_int4_kernel.__wrapped__("cpu", torch.float32)),
        ("flash_attention", lambda: kernels._flash_works_on_cpu.__wrapped__(torch.float32)),
    ],
)
def test_an_operation_that_is_gone_or_computes_otherwise_is_not_used(
    operation: str, probe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*args: Any) -> Any:
        raise AttributeError(operation)

    monkeypatch.setattr(kernels, operation, gone)
    assert not probe()
    monkeypatch.undo()
    original = getattr(kernels, operation)

    def other(*args: Any) -> Any:
        first, *others = args
        return original(first * 2, *others)

    if not probe():
        pytest.skip("this processor has none")
    monkeypatch.setattr(kernels, operation, other)
    assert not probe()


def test_statistics_of_a_large_map_keep_their_digits() -> None:
    """A third of the map is one constant, as in a padded image: added up pixel by pixel it loses four digits."""
    x = torch.randn(1, 4, 384, 64) + 2
    x[:, :, 128:256] = 0.7
    mean, variance = kernels.channel_statistics(x.contiguous(memory_format=torch.channels_last))
    exact = x.double()
    torch.testing.assert_close(mean, exact.mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance, exact.var((0, 2, 3), correction=0), rtol=1e-6, atol=0)
