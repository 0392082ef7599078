"""The machine and the configurations that are measured: processor, memory."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bagel_mot.checkpoint.official import read_config
from bagel_mot.checkpoint.opening import open_checkpoint
from bagel_mot.config import NAMED_CONFIGS, BagelConfig, DecoderConfig, VaeConfig, VitConfig
from bagel_mot.errors import SettingError
from bagel_mot.inference.loading import MINI, MINI_FOLDER
from bagel_mot.placement.system_memory import free_memory
from bagel_mot.threads import usable_cores

_GOLDEN = BagelConfig(
    decoder=DecoderConfig(
        hidden_size=64, num_layers=3, num_heads=4, num_kv_heads=2, intermediate_size=160, vocab_size=424
    ),
    vit=VitConfig(hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64),
    vae=VaeConfig(ch=32, ch_mult=(1, 1, 2, 2), num_res_blocks=1),
)


def config_named(name: str) -> BagelConfig:
    """The configuration called `name` (`0.5b`, `7b`, `mini`, `golden`), or that of a checkpoint folder.

    Raises:
        SettingError: there is no such name or folder.
    """
    if name == "golden":
        return _GOLDEN
    if name in NAMED_CONFIGS:
        return NAMED_CONFIGS[name]
    folder = MINI_FOLDER if name == MINI else Path(name)
    if not folder.is_dir():
        known = ", ".join(sorted({*NAMED_CONFIGS, MINI, "golden"}))
        raise SettingError(f"there is no configuration {name!r}: give {known}, or a checkpoint folder.")
    return read_config(open_checkpoint(folder))


def machine(device: torch.device) -> dict[str, Any]:
    """A description of the machine that the figures were measured on, ready for JSON."""
    facts: dict[str, Any] = {
        "platform": platform.platform(),
        "processor": processor(),
        "instructions": instructions(),
        "cores": usable_cores(),
        "governor": governor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def processor() -> str:
    """The name of the CPU, as the system tells it."""
    return _cpu_fact("model name") or platform.processor()


def instructions() -> list[str]:
    """The CPU's extensions for vectors and matrices: those whose names begin with avx or amx, where the system lists
    them.
    """
    return sorted(flag for flag in _cpu_fact("flags").split() if flag.startswith(("avx", "amx")))


def governor() -> str | None:
    """The rule by which the system chooses the clock rate of the first core; None where it does not say."""
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _cpu_fact(name: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name)
    except (OSError, StopIteration):
        return ""


def peak_allocated(device: torch.device, call: Callable[[], object]) -> int:
    """The peak size in bytes of the tensors that a call allocates, beyond those that exist before it.

    On the CPU these are the requests to PyTorch's allocator, so that other memory of the process does not count; MPS
    keeps no peak, so there it is what the driver holds more after the call.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    if device.type == "mps":
        before = torch.mps.driver_allocated_memory()
        call()
        return max(0, torch.mps.driver_allocated_memory() - before)
    # Else PyTorch's profiler writes two lines to the terminal each time that it runs; it reads this at its first run.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    assert profiled.profiler is not None
    assert profiled.profiler.kineto_results is not None
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in events), initial=0))  # a freed tensor has negative nbytes


def layers_that_fit(config: BagelConfig, dtype: torch.dtype, device: torch.device) -> int:
    """The number of decoder layers, at least one, that fit twice (for ours and for the plain loop) into two thirds of
    the free memory."""
    d = config.decoder
    attention = d.hidden_size * d.head_dim * (2 * d.num_heads + 2 * d.num_kv_heads)
    layer = 2 * (attention + 3 * d.hidden_size * d.intermediate_size)
    size = torch.finfo(dtype).bits // 8
    room = free_memory(device) / 3 - 2 * d.vocab_size * d.hidden_size * size
    return max(1, min(d.num_layers, int(room / (layer * size))))
