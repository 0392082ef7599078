"""TaylorSeer: which evaluations are computed, and extrapolation of what is known."""

from __future__ import annotations

import pytest
import torch

from bagel_mot.inference.taylorseer import TaylorSeer


def test_differences_are_taken_of_a_path_without_fresh_noise() -> None:
    """The last two velocities before the first extrapolation lie on one path."""
    assert TaylorSeer.SMOOTH_AFTER == TaylorSeer.WARM_UP - 2
    before = torch.tensor([1.0, 2.0, 3.0])
    seer = TaylorSeer()
    for value in (*torch.randn(TaylorSeer.WARM_UP - 2, 3), before, 2 * before):
        seer.update(value)
    assert torch.allclose(seer.predict(), 3 * before), "what came before those two does not matter"


def test_taylorseer_computes_the_first_five_then_every_third() -> None:
    seer = TaylorSeer()
    computed = []
    for k in range(20):
        if seer.must_compute:
            computed.append(k)
            seer.update(torch.zeros(1))
        else:
            seer.predict()
    assert computed == [0, 1, 2, 3, 4, 7, 10, 13, 16, 19]


def test_taylorseer_returns_what_was_computed() -> None:
    seer = TaylorSeer()
    value = torch.randn(3)
    assert torch.equal(seer.update(value), value)


def test_taylorseer_is_exact_on_straight_lines() -> None:
    seer = TaylorSeer()
    slope, start = torch.randn(2, 5, dtype=torch.float64).float()
    for k in range(24):
        truth = start + slope * k
        got = seer.update(truth) if seer.must_compute else seer.predict()
        assert torch.allclose(got, truth, atol=1e-4)


def test_taylorseer_differences_by_hand() -> None:
    """Orders rise by one at each computed evaluation from the fifth on; distances are to the last computed one."""
    f = [float((k - 6) ** 2) for k in range(12)]
    seer = TaylorSeer()
    got = [seer.update(torch.tensor(f[k])).item() if seer.must_compute else seer.predict().item() for k in range(12)]
    d1_4 = f[4] - f[3]
    assert got[5] == pytest.approx(f[4] + d1_4)
    assert got[6] == pytest.approx(f[4] + 2 * d1_4)
    d1_7 = (f[7] - f[4]) / 3
    d2_7 = (d1_7 - d1_4) / 3
    assert got[8] == pytest.approx(f[7] + d1_7 + d2_7 / 2)
    assert got[9] == pytest.approx(f[7] + 2 * d1_7 + 2 * d2_7)
    d1_10 = (f[10] - f[7]) / 3
    d2_10 = (d1_10 - d1_7) / 3
    d3_10 = (d2_10 - d2_7) / 3
    assert got[11] == pytest.approx(f[10] + d1_10 + d2_10 / 2 + d3_10 / 6)


def test_taylorseer_keeps_at_most_six_orders() -> None:
    seer = TaylorSeer()
    for _ in range(60):
        if seer.must_compute:
            seer.update(torch.randn(2))
        else:
            seer.predict()
    assert len(seer._differences) == 7
