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
