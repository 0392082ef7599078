"""Compiled passes against the same arithmetic in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bagel_mot.model import measuring, passes
from bagel_mot.model.decoder import rope

LIBRARY = passes.compiled()

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="no compiler, or another system than Linux")

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 4e-3}


def made(dtype: torch.dtype) -> passes.Passes:
    assert LIBRARY is not None
    return passes.Passes(LIBRARY, dtype)


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found.double() - expected).norm() <= TOLERANCE[found.dtype] * expected.norm())


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.double()
    return wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.double()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rows", [0, 1, 5, 130])
def test_numbers(rows: int, dtype: torch.dtype) -> None:
    own = made(dtype)
    x, weight = torch.randn(rows, 70).to(dtype), torch.randn(70).to(dtype)
    assert close(own.norm(x, weight, 1e-5), normed(x, weight, 1e-5))

    qkv, (q_weight, k_weight) = torch.randn(rows, 7 * 20).to(dtype), torch.randn(2, 20).to(dtype)
    cos, sin = rope(torch.arange(rows) + 3, 20, 1e4)
    found = own.heads(qkv, q_weight, k_weight, 1e-6, (cos, sin), 3)
    q, k, v = qkv.view(rows, 7, 20).split([3, 2, 2], 1)
    for mine, heads, by in ((found[0], q, q_weight), (found[1], k, k_weight)):
        wide = normed(heads, by, 1e-6)
        assert close(mine, wide * cos.double() + wide.roll(10, -1) * sin.double())
    assert torch.equal(found[2], v)

    both = 4 * torch.randn(rows, 66).to(dtype)
    gate, up = both.double().chunk(2, -1)
    assert close(own.gated(both), gate * gate.sigmoid() * up)

    x = 4 * torch.randn(1, 18, rows, 3).to(dtype).to(memory_format=torch.channels_last)
    scale, shift = torch.randn(2, 18)
    out = torch.zeros(1, 18, rows + 2, 3).to(dtype).to(memory_format=torch.channels_last)
    own.activated(x, scale, shift, out[:, :, 1 : rows + 1])
    wide = x.double() * scale.double()[:, None, None] + shift.double()[:, None, None]
    assert close(out[:, :, 1 : rows + 1], wide * wide.sigmoid())
    assert not out[:, :, [0, rows + 1]].any()


def test_what_is_not_finite_stays_so() -> None:
    gate = torch.tensor([math.nan, math.inf, -math.inf, 300.0, -300.0, -90.0, 0.0, 88.9])
    found = made(torch.float32).gated(torch.cat([gate, torch.ones(8)])[None])[0]
    assert found.isnan().tolist() == [True, False, True, False, False, False, False, False]
    assert found[1] == math.inf
    assert found[3] == 300.0
    assert torch.allclose(found[4:], torch.nn.functional.silu(gate[4:]), atol=1e-30)
    for bad in (math.nan, math.inf):
        x = torch.ones(2, 40)
        x[1, 7] = bad
        assert made(torch.float32).norm(x, torch.ones(40), 1e-6)[1].isnan().any()


def test_passes_that_compute_something_else_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes.Passes, "gated", lambda self, both: both[:, : both.shape[1] // 2])
    assert passes.passes_for.__wrapped__(torch.float32, 64, 96, 16) is None
    assert passes.passes_for.__wrapped__(torch.float16, 64, 96, 16) is None
    monkeypatch.setattr(passes.Passes, "activated", lambda self, x, scale, shift, out: out.zero_())
    assert passes.activation_for.__wrapped__(torch.float32, 32) is None
    assert passes.activation_for.__wrapped__(torch.float16, 32) is None


@pytest.mark.parametrize(("factor", "slower"), [(0.5, False), (1.0, False), (1.4, False), (3.0, True)])
def test_only_what_is_clearly_slower_is_not_taken(monkeypatch: pytest.MonkeyPatch, factor: float, slower: bool) -> None:
    clock = [0.0]

    def takes(seconds: float) -> Callable[[], None]:
        moments = iter(range(100))

        def call() -> None:  # every second call is disturbed by other work
            clock[0] += seconds * (1 + next(moments) % 2)

        return call

    monkeypatch.setattr(measuring.time, "perf_counter", lambda: clock[0])
    assert passes.clearly_slower(takes(factor), takes(1.0)) == slower


def test_without_a_compiler_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "a-compiler-that-is-not-here")
    assert passes.compiled.__wrapped__() is None
    assert not passes.to_be_compiled()
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    assert passes.compiled.__wrapped__() is None
    assert not list(tmp_path.rglob("*.so"))


def test_the_cache_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert passes.to_be_compiled()
    assert passes.compiled.__wrapped__() is not None
    assert not passes.to_be_compiled()
    assert [place.suffix for place in (tmp_path / "bagel_mot").iterdir()] == [".so"]
    monkeypatch.setattr(passes, "_compile", lambda *_: pytest.fail("it was compiled again"))
    assert passes.compiled.__wrapped__() is not None
