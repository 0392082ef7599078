"""Activations in 8 bits, and the choice of how they come to be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from bagel_mot.model import measuring
from bagel_mot.model.quant import Fp8Matrix, activations
from bagel_mot.model.quant.activations import quantise_rows, quantise_rows_plainly, quantiser

CPU = torch.device("cpu")
TYPES = [torch.int8, torch.float8_e4m3fn]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(activations, "_ROWS", 16)
    monkeypatch.setattr(activations, "_WIDTH", 64)
    quantiser.cache_clear()
    yield
    quantiser.cache_clear()


@pytest.mark.parametrize("dtype", TYPES)
def test_each_row_has_a_scale_of_its_own(dtype: torch.dtype) -> None:
    x = torch.randn(6, 96)
    x[0] *= 1e4
    x[1] = 0
    numbers, scale = quantise_rows(x, dtype)
    assert numbers.dtype == dtype
    assert (scale.dtype, scale.shape) == (torch.float32, (6, 1))
    most = 127 if dtype == torch.int8 else 448
    assert torch.allclose(scale[2:, 0] * most, x[2:].abs().amax(1))
    error = (numbers.float() * scale - x).norm(dim=1) / x.norm(dim=1).clamp(min=1)
    assert error.max() < (0.01 if dtype == torch.int8 else 0.04)
    assert not numbers[1].float().any()


@pytest.mark.parametrize("dtype", TYPES)
def test_rows_do_not_depend_on_their_neighbours(dtype: torch.dtype) -> None:
    x = torch.randn(6, 96)
    for whole, alone in zip(quantise_rows(x, dtype), quantise_rows(x[3:4], dtype), strict=True):
        assert torch.equal(whole[3:4].float(), alone.float())


def pretend(monkeypatch: pytest.MonkeyPatch, compiled: Callable[..., Any], quick: bool) -> None:
    """A compiler that makes `compiled` of everything, and a clock by which that is quick or slow."""
    monkeypatch.setattr(torch, "compile", lambda function, **how: compiled)
    now = [0.0]

    def clock() -> float:
        now[0] += 0.001
        return now[0]

    monkeypatch.setattr(measuring.time, "perf_counter", clock)

    def timed(*given: Any, **more: Any) -> Any:
        now[0] += 0.0 if quick else 1.0
        return plain(*given, **more)

    def slow(*given: Any, **more: Any) -> Any:
        now[0] += 0.5
        return plain(*given, **more)

    plain = quantise_rows_plainly
    monkeypatch.setattr(activations, "quantise_rows_plainly", slow)
    if compiled is same:
        monkeypatch.setattr(torch, "compile", lambda function, **how: timed)


def same(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return quantise_rows_plainly(x, dtype)


def wrong(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    numbers, scale = quantise_rows_plainly(x, dtype)
    return numbers, 2 * scale


def broken(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    raise RuntimeError("no compiler here")


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("compiled", "quick", "chosen"),
    [(same, True, "compiled"), (same, False, "plain"), (wrong, True, "plain"), (broken, True, "plain")],
    ids=["right and quick", "right and slow", "wrong", "broken"],
)
def test_a_compiled_pass_is_taken_where_it_is_right_and_faster(
    monkeypatch: pytest.MonkeyPatch, compiled: Callable[..., Any], quick: bool, chosen: str, dtype: torch.dtype
) -> None:
    pretend(monkeypatch, compiled, quick)
    found = quantiser(CPU, torch.bfloat16, dtype)
    assert (found is activations.quantise_rows_plainly) == (chosen == "plain")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TYPES)
def test_what_the_compiler_makes_is_right(dtype: torch.dtype) -> None:
    compiled = torch.compile(quantise_rows_plainly, dynamic=True)
    x = torch.randn(33, 128).bfloat16()
    assert activations._same(compiled(x, dtype), quantise_rows_plainly(x, dtype), dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_float8_products_with_scales_of_rows(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """By a stand-in for PyTorch's kernel, which is of GPUs, and takes just this."""

    def scaled(x: Tensor, other: Tensor, scale_a: Tensor, scale_b: Tensor, **how: Any) -> Tensor:
        assert how == {"out_dtype": torch.bfloat16, "use_fast_accum": True}
        assert x.dtype == other.dtype == torch.float8_e4m3fn
        assert x.is_contiguous()
        assert other.t().is_contiguous(), "columns one after another"
        assert (scale_a.shape, scale_b.shape) == ((5, 1), (1, 48))
        assert scale_a.dtype == scale_b.dtype == torch.float32
        assert scale_a.is_contiguous()
        assert scale_b.is_contiguous()
        return ((x.float() @ other.float()) * scale_a * scale_b).bfloat16()

    monkeypatch.setattr(torch, "_scaled_mm", scaled)
    weight, x = torch.randn(48, 64), torch.randn(5, 64)
    x[0] *= 1000
    got = Fp8Matrix.quantise(weight).multiply_dynamic(x.to(dtype))
    assert got.dtype == dtype
    wanted = x @ weight.t()
    error = (got.float() - wanted).norm(dim=1) / wanted.norm(dim=1)
    assert 0.005 < error.max() < 0.08
