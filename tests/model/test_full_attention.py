"""The choice of a kernel for an image's attention, feigned on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bagel_mot.model import attend_over, full_attention, kernels, measuring
from bagel_mot.model.buckets import bucket

CPU = torch.device("cpu")
SHAPE = (CPU, torch.float32, 2, 16, 256, 256)


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    full_attention.chosen.cache_clear()
    yield
    full_attention.chosen.cache_clear()


@pytest.fixture
def takes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets seconds of each kernel, by a clock of their own, and what is wrong with one."""
    plain, now = F.scaled_dot_product_attention, [0.0]
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: now[0])

    def timed(seconds: float, fault: str = "") -> Callable[..., Tensor]:
        def run(query: Tensor, key: Tensor, value: Tensor, **more: Any) -> Tensor:
            now[0] += seconds
            if fault == "fails":
                raise RuntimeError("no kernel for this device")
            found = plain(query, key, value, **more)
            return found + 1 if fault == "wrong" else found

        return run

    def set_times(default: float, flash: float, cudnn: float, fault: str = "") -> None:
        monkeypatch.setattr(full_attention.F, "scaled_dot_product_attention", timed(default))
        monkeypatch.setattr(kernels, "flash_attention", lambda *given: (timed(flash)(*given), None))
        monkeypatch.setattr(kernels, "cudnn_attention", timed(cudnn, fault))

    return set_times


@pytest.mark.parametrize(
    ("seconds", "fault", "name"),
    [
        ((3, 2, 1), "", "cudnn"),
        ((3, 2, 1), "fails", "flash"),
        ((3, 2, 1), "wrong", "flash"),
        ((3, 1, 2), "", "flash"),
        ((1, 2, 3), "", "default"),
        ((1, 1, 1), "", "default"),
    ],
)
def test_the_quickest_that_is_right_is_taken(
    takes: Callable[..., None], seconds: tuple[float, float, float], fault: str, name: str
) -> None:
    takes(*seconds, fault)
    way = full_attention.chosen(*SHAPE)
    x = torch.randn(1, 2, 20, 16)
    began = measuring.time.perf_counter()
    way(x, x, x)
    took = measuring.time.perf_counter() - began
    assert took == dict(zip(("default", "flash", "cudnn"), seconds, strict=True))[name]
    assert (way is full_attention.F.scaled_dot_product_attention) == (name == "default")


def test_it_is_measured_once_for_each_size(takes: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    takes(3, 2, 1)
    assert full_attention.chosen(*SHAPE) is full_attention.chosen(*SHAPE)
    assert full_attention.chosen.cache_info().misses == 1
    full_attention.chosen(*SHAPE[:-1], 512)
    assert full_attention.chosen.cache_info().misses == 2


def test_images_take_it_and_texts_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def noted(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        asked.append(query.shape[2])
        return F.scaled_dot_product_attention(query, key, value)

    monkeypatch.setattr(attend_over, "full_attention", noted)
    for n, causal in ((40, False), (4, False), (40, True)):
        query = torch.empty(1, 4, n, 16, device="meta")
        pieces = [(torch.empty(1, 2, 60, 16, device="meta"),) * 2]
        assert attend_over.attend_over(query, pieces, causal=causal).shape == query.shape
    assert asked == [2 * 40], "of the image alone, whose grouped queries lie one behind the other"


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_buckets(steps: int) -> None:
    sizes = sorted({bucket(n, least=16, steps=steps) for n in range(1, 4097)})
    assert sizes[0] == 16
    assert sizes[-1] == 4096
    assert {16, 32, 1024} <= set(sizes)
    assert len(sizes) == 8 * steps + 1
    for n in range(17, 4097):
        assert n <= bucket(n, least=16, steps=steps) < n * (1 + 1 / steps) + 1
        assert bucket(bucket(n, least=16, steps=steps), least=16, steps=steps) == bucket(n, least=16, steps=steps)
