"""The choice among ways of computing the same, by correctness first and then by time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

_TURNS = 5
_CPU = torch.device("cpu")
Name = TypeVar("Name", bound=Hashable)


def shortest(
    calls: Mapping[Name, Callable[[], object]], *, turns: int = _TURNS, device: torch.device = _CPU
) -> dict[Name, float]:
    """The least seconds that each of several calls takes. They run in turn, and first once without being timed, since
    kernels are chosen then: so what is found depends on the machine, and hardly on what else it does at the moment.

    Args:
        calls: the calls by name.
        turns: the number of times that each is timed.
        device: the device that computes, for which the host waits here.
    """
    least = dict.fromkeys(calls, math.inf)
    for turn in range(1 + turns):
        for name, call in calls.items():
            _wait(device)
            start = time.perf_counter()
            call()
            _wait(device)
            if turn:
                least[name] = min(least[name], time.perf_counter() - start)
    return least


def fastest(
    ways: Mapping[str, Callable[..., Sequence[Tensor]]],
    inputs: Sequence[Tensor],
    device: torch.device,
    agree: Callable[[Sequence[Tensor], Sequence[Tensor]], bool],
) -> str:
    """The name of the way that takes least time, by the shortest of a few calls in turn. Ways that fail, or compute
    something else, are left out.

    Args:
        ways: functions of the inputs by name. The first is known to be right, and is taken where it is as fast.
        inputs: tensors, of any shape, of a usual size.
        device: the device that computes, for which the host waits here.
        agree: whether what a way found (first argument) is what the first one found (second argument).
    """
    first, *others = ways
    expected = ways[first](*inputs)
    right = {first: ways[first]}
    for name in others:
        try:
            if agree(ways[name](*inputs), expected):
                right[name] = ways[name]
        except Exception:  # compilers and private operations have errors of their own
            continue
    if len(right) == 1:
        return first
    seconds = shortest({name: partial(way, *inputs) for name, way in right.items()}, device=device)
    return min(seconds, key=lambda name: seconds[name])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
