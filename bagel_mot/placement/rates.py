"""Rates of a device, at multiplying and at reading its memory: measured here within a second, or nominal.

Nominal rates put ways of running in order, so that loading measures nothing; seconds are predicted from measured ones
alone (`bagel_mot.placement.speed`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bagel_mot.errors import DeviceError
from bagel_mot.model.prepacked import prepack_weights
from bagel_mot.placement.system_memory import free_memory

_BUDGET = 0.25  # seconds of measuring for each rate
_ROWS, _WIDTH = 512, 4096  # of a matmul on the CPU: 0.02 to 0.2 s
_WIDE = 8192  # rows and width on an accelerator: 2 to 50 ms
_BLOCK = 256 << 20  # bytes that are read, more than any cache holds; on an accelerator four times as many
_SHARE = 8  # of the free memory, at most one part in so many is taken for measuring


@dataclass(frozen=True)
class DeviceRates:
    """The work that a device does in a second.

    Attributes:
        matmul: operations per second of matmuls of many rows, by the type of the numbers.
        memory: bytes per second of reading memory in order.
    """

    matmul: Mapping[torch.dtype, float]
    memory: float

    def to_json(self) -> dict[str, Any]:
        """The rates by name, ready for JSON."""
        matmul = {str(dtype).removeprefix("torch."): rate for dtype, rate in self.matmul.items()}
        return {"matmul_flops_per_second": matmul, "memory_bytes_per_second": self.memory}


def _nominal(half: float, memory: float) -> DeviceRates:
    return DeviceRates({torch.bfloat16: half, torch.float16: half, torch.float32: 0.3 * half}, memory)


NOMINAL = {"cuda": _nominal(3e14, 2e12), "mps": _nominal(1e13, 2e11), "cpu": _nominal(1e12, 2.5e10)}
"""Rates of an ordinary device of each kind, for putting ways of running in order."""


def measure_rates(device: torch.device, dtypes: Iterable[torch.dtype]) -> DeviceRates:
    """The rates of a device, the best of several calls within a quarter of a second each.

    Args:
        device: the device.
        dtypes: the types whose matmuls are measured.

    Raises:
        DeviceError: less memory is free than measuring takes.
    """
    on_cpu = device.type == "cpu"
    block = _BLOCK if on_cpu else 4 * _BLOCK
    if free_memory(device) < _SHARE * block:
        raise DeviceError(f"too little memory is free on {device} to measure how fast it is.")
    with torch.inference_mode():
        numbers = torch.ones(block // 8, dtype=torch.int64, device=device)
        memory = block / _best(numbers.sum, device)
        del numbers
        return DeviceRates({dtype: _matmul_rate(device, dtype, on_cpu) for dtype in dict.fromkeys(dtypes)}, memory)


def _matmul_rate(device: torch.device, dtype: torch.dtype, on_cpu: bool) -> float:
    rows, width = (_ROWS, _WIDTH) if on_cpu else (_WIDE, _WIDE)
    with torch.device(device):
        module = nn.ModuleList([nn.utils.skip_init(nn.Linear, width, width, bias=False, dtype=dtype, device=device)])
        x = torch.full((rows, width), 0.5, dtype=dtype)
    for parameter in module.parameters():
        parameter.requires_grad_(False).fill_(0.5)
    if on_cpu:  # as loaded models are
        prepack_weights(module)
    linear = module[0]
    return 2.0 * rows * width * width / _best(lambda: linear(x), device)


def _best(call: Callable[[], object], device: torch.device) -> float:
    """The shortest time of a call in seconds, after one that is not counted."""
    call()
    end = time.perf_counter() + _BUDGET
    best = seconds(call, device)
    while time.perf_counter() < end:
        best = min(best, seconds(call, device))
    return best


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """The time that one call takes, the device's work included."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Waits until the device has finished all submitted work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
