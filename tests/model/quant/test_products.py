"""Compiled passes that multiply with quantised matrices, and dequantise them, against float64 and PyTorch's bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bagel_mot.model import passes
from bagel_mot.model.passes import compiled
from bagel_mot.model.quant import FORMATS, Fp8Matrix, Int4Matrix, Nf4Matrix, QuantisedMatrix, base, nf4, products
from bagel_mot.model.quant.linear import QuantisedLinear
from bagel_mot.threads import Threads

pytestmark = pytest.mark.skipif(compiled() is None, reason="no compiler, or another system than Linux")

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}


def weight(out: int, inner: int) -> Tensor:
    return torch.randn(out, inner, generator=torch.Generator().manual_seed(0)) * 0.05


def with_float_scales(matrix: QuantisedMatrix) -> QuantisedMatrix:
    """An NF4 matrix whose scales are float32, as files may bring them."""
    assert isinstance(matrix, Nf4Matrix)
    return Nf4Matrix(matrix.shape, {"values": matrix.tensors["values"], "scale": matrix.scales()})


def matrices(out: int, inner: int) -> dict[str, QuantisedMatrix]:
    found = {name: kind.quantise(weight(out, inner)) for name, kind in FORMATS.items() if kind.fits((out, inner))}
    if "nf4" in found:
        found["nf4 with float scales"] = with_float_scales(found["nf4"])
    return found


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("out", "inner"), [(192, 640), (64, 96), (37, 192), (5, 21), (128, 512 + 32)])
def test_products(out: int, inner: int, dtype: torch.dtype) -> None:
    """Widths that fill no part of a row, rows that fill no block of the matrix, groups of 32 in INT4."""
    draws = torch.Generator().manual_seed(1)
    for name, matrix in matrices(out, inner).items():
        wide = matrix.dequantise_plainly(torch.float32, 0, out).double()
        for rows in (1, 2, 3, 4, 7, 16):
            x = torch.randn(rows, inner, generator=draws).to(dtype)
            found, wanted = matrix.multiply_by_pass(x), F.linear(x.double(), wide)
            assert found.dtype == dtype
            assert (found.double() - wanted).norm() <= TOLERANCE[dtype] * wanted.norm(), (name, rows)


def test_rows_and_threads_change_no_bit() -> None:
    x = torch.randn(11, 640, generator=torch.Generator().manual_seed(1))
    for matrix in matrices(192, 640).values():
        together = matrix.multiply_by_pass(x)
        for threads in (1, 3):
            with Threads(threads, asked=True).at_work():
                for rows in (slice(0, 1), slice(3, 5), slice(4, 11)):
                    assert torch.equal(matrix.multiply_by_pass(x[rows]), together[rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("out", "inner"), [(192, 640), (64, 96), (256, 64)])
def test_what_is_dequantised_has_the_bits_of_pytorch(out: int, inner: int, dtype: torch.dtype) -> None:
    for name, matrix in matrices(out, inner).items():
        for start, stop in ((0, out), (3, 61), (out - 1, out)):
            found = matrix.dequantise_by_pass(dtype, start, stop)
            assert torch.equal(found, matrix.dequantise_plainly(dtype, start, stop)), (name, start, stop)


def test_nf4_of_other_blocks() -> None:
    """Files of bitsandbytes may have larger blocks; those that end inside a row are left to PyTorch."""
    matrix = Nf4Matrix.quantise(weight(8, 384))
    scale = torch.rand(8 * 384 // 128) + 0.5
    wider = Nf4Matrix((8, 384), {"values": matrix.tensors["values"], "scale": scale})
    assert wider.block == 128
    assert wider.has_pass()
    x = torch.randn(3, 384)
    wide = wider.dequantise_plainly(torch.float32, 0, 8)
    assert torch.allclose(wider.multiply_by_pass(x), F.linear(x, wide), rtol=1e-4, atol=1e-4)
    assert torch.equal(wider.dequantise_by_pass(torch.float32, 2, 7), wide[2:7])
    across = Nf4Matrix((8, 384), {"values": matrix.tensors["values"], "scale": torch.rand(8 * 384 // 256)})
    assert not across.has_pass()


def test_only_e4m3_is_multiplied_by_a_pass() -> None:
    scale = torch.ones(4)
    for dtype, has in ((torch.float8_e4m3fn, True), (torch.float8_e5m2, False)):
        assert Fp8Matrix((4, 8), {"values": torch.zeros(4, 8).to(dtype), "scale": scale}).has_pass() == has


def test_every_number_of_float8() -> None:
    numbers = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn)
    numbers = numbers[numbers.float().isfinite()][None]
    matrix = Fp8Matrix((1, numbers.shape[1]), {"values": numbers, "scale": torch.tensor([0.5])})
    one_by_one = matrix.multiply_by_pass(torch.eye(numbers.shape[1]))[:, 0]
    assert torch.equal(one_by_one, 0.5 * numbers[0].float())


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    calls: list[str] = []
    plain = passes.call_compiled

    def call(name: str, *arguments: Tensor | int | None) -> int:
        calls.append(name)
        return plain(name, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(products, "call_compiled", call)
        yield calls


def test_few_rows_are_multiplied_by_a_pass_and_many_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_multiplies", lambda kind, dtype: True)  # whatever is faster here
    matrix = Int4Matrix.quantise(weight(512, 512))
    linear = QuantisedLinear(matrix, torch.ones(512), torch.float32)
    with counted(monkeypatch) as calls, torch.inference_mode():
        for rows, passes in ((1, 1), (48, 1), (49, 0)):
            x = torch.randn(rows, 512)
            calls.clear()
            wanted = F.linear(x, matrix.dequantise(torch.float32), torch.ones(512))
            assert torch.allclose(linear(x), wanted, rtol=1e-4, atol=1e-4)
            assert len(calls) == passes
        small = Int4Matrix.quantise(weight(64, 512))  # whose compilation would not pay
        QuantisedLinear(small, None, torch.float32)(torch.randn(1, 512))
        assert not calls


@pytest.mark.parametrize("slow", [True, False])
def test_a_pass_that_is_slow_or_wrong_is_not_taken(slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    base._multiplies.cache_clear()
    try:
        monkeypatch.setattr(base, "clearly_slower", lambda mine, other: slow)
        assert base._multiplies(Nf4Matrix, torch.float32) == (not slow)
        base._multiplies.cache_clear()
        monkeypatch.setattr(base, "clearly_slower", lambda mine, other: False)
        monkeypatch.setattr(nf4, "by_nf4", lambda x, rows, *rest: x.new_zeros(x.shape[0], rows))
        assert not base._multiplies(Nf4Matrix, torch.float32)
    finally:
        base._multiplies.cache_clear()
