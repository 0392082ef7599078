"""Where time goes: operators have their kinds, one within another counts once, and shares add up to 1."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from bagel_mot.bench.breakdown import KINDS, _totals, kind_of, shares, where_time_goes


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::addmm", "matmul"),
        ("aten::bmm", "matmul"),
        ("aten::linear", "matmul"),
        ("mkldnn::_linear_pointwise", "matmul"),
        ("aten::_int_mm", "matmul"),
        ("aten::_scaled_mm", "matmul"),
        ("aten::_weight_int8pack_mm", "matmul"),
        ("aten::_weight_int4pack_mm_for_cpu", "matmul"),
        ("aten::scaled_dot_product_attention", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::mkldnn_convolution", "convolution"),
        ("aten::conv2d", "convolution"),
        ("mkldnn::_convolution_pointwise", "convolution"),
        ("aten::upsample_bilinear2d", None),
        ("aten::add", None),
        ("aten::native_group_norm", None),
        ("aten::linspace", None),
        ("cudaLaunchKernel", None),
        ("my own linear range", None),
    ],
)
def test_operators_have_their_kinds(name: str, kind: str | None) -> None:
    assert kind_of(name) == kind


def test_what_an_operator_calls_is_its_own_time() -> None:
    def event(name: str, start: float, end: float, thread: int = 1) -> SimpleNamespace:
        times = SimpleNamespace(start=start, end=end)
        return SimpleNamespace(
            name=name, thread=thread, time_range=times, cpu_time_total=end - start, device_time_total=2 * (end - start)
        )

    events = [
        event("aten::addmm", 12, 18),  # of the linear map
        event("aten::linear", 10, 20),
        event("aten::add", 20, 30),
        event("aten::scaled_dot_product_attention", 30, 50),
        event("aten::bmm", 31, 40),  # of attention
        event("aten::bmm", 50, 55),
        event("aten::conv2d", 31, 34, thread=2),
    ]
    assert _totals(events, on_cpu=True) == {"matmul": 15, "attention": 20, "convolution": 3}
    assert _totals(events, on_cpu=False) == {"matmul": 30, "attention": 40, "convolution": 6}


def test_shares_add_up_to_one() -> None:
    assert shares({"matmul": 2.0, "attention": 1.0}, 8.0) == {
        "matmul": 0.25,
        "attention": 0.125,
        "convolution": 0.0,
        "rest": 0.625,
    }
    assert shares({"matmul": 5.0}, 4.0)["rest"] == 0.0  # two threads at once


def test_the_time_of_a_call_is_told_apart() -> None:
    x, weight = torch.randn(64, 512), torch.randn(512, 512)
    pixels, kernel = torch.randn(1, 16, 64, 64), torch.randn(16, 16, 3, 3)

    def call() -> None:
        F.linear(x, weight)
        F.scaled_dot_product_attention(*(torch.randn(1, 2, 64, 32) for _ in range(3)))
        F.conv2d(pixels, kernel)

    found = where_time_goes(call, torch.device("cpu"))
    assert tuple(found) == KINDS
    assert sum(found.values()) == pytest.approx(1)
    assert all(share > 0 for share in found.values())
    alone = where_time_goes(lambda: x.add(1), torch.device("cpu"))
    assert alone["rest"] == 1.0
