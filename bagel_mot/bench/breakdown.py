"""Where the time of a call goes: matmuls, attention, convolutions, and the rest."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch.profiler import ProfilerActivity, profile

from bagel_mot.placement.rates import seconds

KINDS = ("matmul", "attention", "convolution", "rest")
_MATMULS = frozenset({"matmul", "mv", "addmv", "einsum"})


class _Range(Protocol):
    start: float
    end: float


class OperatorCall(Protocol):
    """One call of an operator, as PyTorch's profiler records it; times are microseconds."""

    name: str
    thread: int
    time_range: _Range
    cpu_time_total: float
    device_time_total: float


def kind_of(name: str) -> str | None:
    """The kind of work that an operator does, such as "matmul" for "aten::addmm"; None for all work that
    is not told apart.
    """
    space, _, base = name.partition("::")
    if not base or space not in ("aten", "mkldnn", "onednn", "torchao", "cudnn"):
        return None
    if "attention" in base:
        return "attention"
    if "convolution" in base or "conv2d" in base:
        return "convolution"
    is_linear = "linear" in base and "bilinear" not in base
    return "matmul" if base in _MATMULS or base.endswith("mm") or "pack_mm" in base or is_linear else None


def where_time_goes(call: Callable[[], object], device: torch.device) -> dict[str, float]:
    """The shares of a call's time, by KINDS; they add up to 1.

    An operator's time is that of all it calls: attention that is made of matmuls is attention, and the change of layout
    before a convolution belongs to that. On a GPU an operator's time is that of its kernels, and waiting is rest.
    """
    # Else PyTorch's profiler writes two lines to the terminal each time that it runs; it reads this at its first run.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiled:
        whole = seconds(call, device)
    found = _totals(profiled.events() or (), on_cpu=device.type != "cuda")
    return shares(found, whole * 1e6)


def shares(found: dict[str, float], whole: float) -> dict[str, float]:
    """Times of the kinds as shares of the whole, in the same unit; what is left is the rest."""
    whole = max(whole, sum(found.values()))
    named = {kind: found.get(kind, 0.0) / whole for kind in KINDS[:-1]}
    return {**named, "rest": 1.0 - sum(named.values())}


def _totals(events: Iterable[OperatorCall], *, on_cpu: bool) -> dict[str, float]:
    """Microseconds of each kind: of operators that no other one of any kind calls."""
    totals: dict[str, float] = {}
    until: dict[int, float] = {}  # by thread: the end of the operator that is counted
    kinds: dict[str, str | None] = {}
    listed = []
    for event in events:
        if event.name not in kinds:
            kinds[event.name] = kind_of(event.name)
        if (kind := kinds[event.name]) is not None:
            listed.append((event.time_range.start, -event.time_range.end, kind, event))
    for start, _, kind, event in sorted(listed, key=lambda entry: entry[:2]):
        if start < until.get(event.thread, float("-inf")):
            continue
        until[event.thread] = event.time_range.end
        took = event.cpu_time_total if on_cpu else event.device_time_total
        totals[kind] = totals.get(kind, 0.0) + took
    return totals
