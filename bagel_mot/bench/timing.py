"""Timing of several implementations of the same work, in turn."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from bagel_mot.bench.roofline import ForwardTokens, flops, matmul_flops, roofline
from bagel_mot.model.bagel import BagelModel
from bagel_mot.placement.rates import seconds

Calls = dict[str, Callable[[], object]]


@dataclass
class Measured:
    """One measured quantity.

    Attributes:
        name: the quantity, such as "prefill of 1024 text tokens".
        seconds, median_seconds: the shortest and the median time of each implementation.
        numbers: figures that follow from them: rates, shares, memory in bytes.
        runs: every time of each implementation, in the order of the runs.
    """

    name: str
    seconds: dict[str, float]
    median_seconds: dict[str, float]
    numbers: dict[str, float] = field(default_factory=dict)
    runs: dict[str, list[float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        times = {"seconds": self.seconds, "median_seconds": self.median_seconds, "runs": self.runs}
        return {"name": self.name, **times, **self.numbers}


def measure(
    model: BagelModel,
    name: str,
    work: ForwardTokens,
    calls: Calls,
    rounds: int,
    device: torch.device,
    *,
    repeat: int = 1,
    **numbers: float,
) -> Measured:
    """Times each call, and the matmuls of the same work, in turn; one call does its work `repeat` times."""
    matmul = roofline(model, work)
    calls["matmul"] = lambda: [matmul() for _ in range(repeat)]
    for call in calls.values():  # once unmeasured: caches, allocations, kernels chosen
        call()
    times: dict[str, list[float]] = {way: [] for way in calls}
    for _ in range(rounds):
        for way, call in calls.items():
            times[way].append(seconds(call, device) / repeat)
    least = {way: min(values) for way, values in times.items()}
    rate = matmul_flops(model, work) / least["matmul"]
    numbers |= {
        "gflops": flops(model, work) / least["ours"] / 1e9,
        "matmul_gflops": rate / 1e9,
        "share": flops(model, work) / least["ours"] / rate,
    }
    if "per_token" in numbers:
        numbers["tokens_per_second"] = numbers.pop("per_token") / least["ours"]
    if "plain" in least:
        numbers["speedup"] = least["plain"] / least["ours"]
    gc.collect()
    return Measured(name, least, {way: statistics.median(v) for way, v in times.items()}, numbers, times)
