"""Compiled rounding makes the same bits as PyTorch's operations do, and serves where it is to be had."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bagel_mot.model import passes
from bagel_mot.model.quant import FORMATS, rounding

HAS_PASSES = passes.compiled() is not None
needs_passes = pytest.mark.skipif(not HAS_PASSES, reason="no compiler, or another system than Linux")
KINDS = ("int4", "int8", "nf4")


def plain(kind: str, weight: Tensor, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    with monkeypatch.context() as patched:
        patched.setattr(rounding, "_chosen", lambda *_: None)
        return FORMATS[kind].quantise(weight).tensors


def bits(tensor: Tensor) -> Tensor:
    """Its bytes, but for the sign of zeros: which of two zeros is the largest is nobody's business."""
    return (tensor + 0).contiguous().view(-1).view(torch.uint8)


def registers() -> int:
    return 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


WEIGHTS: dict[str, Callable[[], Tensor]] = {
    "normal": lambda: 0.05 * randn(320, 1024),
    "rows that no thread has whole": lambda: 0.05 * randn(192, 1408),
    "tiny": lambda: 1e-38 * randn(256, 1024),
    "huge": lambda: 1e30 * randn(256, 1024),
    "long tails": lambda: randn(256, 1024).pow(9),
    "zeros": lambda: torch.zeros(256, 1024),
    "zeros of both signs": lambda: randn(256, 1024) * 0.0,
    "one value": lambda: torch.full((256, 1024), -0.3),
    "one sign": lambda: 5 + torch.rand((256, 1024), generator=torch.Generator().manual_seed(0)),
    "the other sign": lambda: -5 - torch.rand((256, 1024), generator=torch.Generator().manual_seed(0)),
    "multiples of a step": lambda: (4 * randn(256, 1024)).round() / 16,
    "levels and their borders": lambda: (torch.arange(256 * 1024) % 255 - 127).view(256, 1024) / 127.0,
}


@needs_passes
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_bit_is_that_of_pytorch(
    kind: str, weight: str, dtype: torch.dtype, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = WEIGHTS[weight]().to(dtype)
    expected = plain(kind, w, monkeypatch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)  # of the passes; PyTorch's means depend on its own
    monkeypatch.setattr(FORMATS[kind], "_rounded", lambda *_: pytest.fail("PyTorch's operations served"))
    chosen = rounding.Rounding(dtype, registers())
    monkeypatch.setattr(rounding, "_chosen", lambda *_: chosen)
    found = FORMATS[kind].quantise(w).tensors
    assert found.keys() == expected.keys()
    assert all(torch.equal(bits(found[name]), bits(expected[name])) for name in expected)


@needs_passes
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_any_width(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last rows and values of a matrix are in no full register."""
    w = 0.05 * randn(321, 1001) if kind == "int8" else 0.05 * randn(320, 960)
    expected = plain(kind, w, monkeypatch)
    found = FORMATS[kind].quantise(w).tensors
    assert all(torch.equal(bits(found[name]), bits(expected[name])) for name in expected)


@needs_passes
def test_transposed_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    w = 0.05 * randn(512, 768).T
    expected = plain("int8", w, monkeypatch)["values"]
    assert torch.equal(FORMATS["int8"].quantise(w).tensors["values"], expected)


@needs_passes
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_is_left_to_pytorch(kind: str, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    w = 0.05 * randn(256, 1024)
    w[200, 777] = value
    served = []
    monkeypatch.setattr(rounding, "_chosen", lambda *_: rounding.Rounding(torch.float32, registers()))
    monkeypatch.setattr(
        FORMATS[kind], "_rounded", lambda weight, own=FORMATS[kind]._rounded: served.append(1) or own(weight)
    )
    FORMATS[kind].quantise(w)
    assert served == [1]


def test_small_and_other_weights_need_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "compiled", lambda: pytest.fail("a compiler was asked for"))
    rounding._chosen.cache_clear()
    for kind in KINDS:
        FORMATS[kind].quantise(0.05 * randn(128, 256))
        FORMATS[kind].quantise((0.05 * randn(512, 1024)).half())


def test_without_a_compiler_pytorch_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    w = 0.05 * randn(256, 1024)
    expected = plain("nf4", w, monkeypatch)
    monkeypatch.setattr(rounding, "compiled", lambda: None)
    rounding._chosen.cache_clear()
    found = FORMATS["nf4"].quantise(w).tensors
    rounding._chosen.cache_clear()
    assert all(torch.equal(bits(found[name]), bits(expected[name])) for name in expected)


@needs_passes
@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_that_rounds_otherwise_is_not_taken(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def otherwise(name: str, weight: Tensor, values: Tensor, *rest: Tensor | int) -> int:
        bad = passes.call_compiled(name, weight, values, *rest)
        if name != "to_8_bits":  # of the scales
            values.view(-1)[77] ^= 1
        return bad

    monkeypatch.setattr(rounding, "call_compiled", otherwise)
    asked: list[object] = []
    chosen = rounding._chosen.__wrapped__
    monkeypatch.setattr(rounding, "_chosen", lambda *given: asked.append(chosen(*given)))
    FORMATS[kind].quantise(0.05 * randn(256, 1024))
    assert asked == [None]
