"""The norm of gradients, clipping, and AdamW's implementation on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bagel_mot.training.optimizer import OptimizerConfig, Optimizers, clip_gradients


def _with_gradients(*gradients: torch.Tensor) -> list[nn.Parameter]:
    made = []
    for gradient in gradients:
        parameter = nn.Parameter(torch.zeros_like(gradient))
        parameter.grad = gradient.clone()
        made.append(parameter)
    return made


def test_the_norm_of_a_large_matrix_is_right() -> None:
    """PyTorch 2.13 adds up its squares one after another in float32 and finds 0.6% less."""
    (parameter,) = _with_gradients(torch.full((4096, 4096), 3.0))
    assert clip_gradients([parameter], 1.0).item() == pytest.approx(3 * 4096, rel=1e-6)
    assert parameter.grad is not None
    assert torch.allclose(parameter.grad, torch.tensor(1 / 4096), rtol=1e-6)


@pytest.mark.parametrize("limit", [0.5, 1e3])
def test_gradients_of_any_shape_are_clipped_as_pytorch_does(limit: float) -> None:
    torch.manual_seed(0)
    gradients = torch.randn(()), torch.randn(7), torch.randn(5, 3), torch.randn(2, 3, 4, 4), torch.randn(0, 3)
    ours, theirs = _with_gradients(*gradients), _with_gradients(*gradients)
    wanted = nn.utils.clip_grad_norm_(theirs, limit)
    assert clip_gradients(ours, limit).item() == pytest.approx(wanted.item(), rel=1e-6)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.grad is not None
        assert other.grad is not None
        assert torch.allclose(mine.grad, other.grad, rtol=1e-6)


def test_what_is_not_finite_shows_in_the_norm() -> None:
    bad = _with_gradients(torch.tensor([1.0, float("nan")]), torch.ones(2))
    assert clip_gradients(bad, 1.0).isnan()
    assert all(parameter.grad is not None and parameter.grad.isnan().all() for parameter in bad)


def test_without_gradients_the_norm_is_zero() -> None:
    assert clip_gradients([nn.Parameter(torch.ones(2))], 1.0).item() == 0


@pytest.mark.parametrize(("asked", "expected"), [(None, True), ("for-loop", None), ("fused", True)])
def test_on_the_cpu_the_whole_step_is_one_operation_unless_asked_otherwise(asked: Any, expected: bool | None) -> None:
    weight = nn.Parameter(torch.ones(3, 2))
    (optimizer,) = Optimizers([("weight", weight)], OptimizerConfig(implementation=asked)).optimizers
    assert optimizer.defaults["fused"] is expected


def test_all_implementations_make_the_same_steps() -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(40, 30), torch.randn(5, 40, 30)
    found = []
    for implementation in ("for-loop", "foreach", None):
        weight = nn.Parameter(start.clone())
        config = OptimizerConfig(lr=1e-2, weight_decay=0.1, implementation=implementation)  # type: ignore[arg-type]
        optimizers = Optimizers([("weight", weight)], config)
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizers.step(0.5)
        found.append(weight.detach())
    for other in found[1:]:
        assert torch.allclose(other, found[0], rtol=1e-5, atol=1e-7)
