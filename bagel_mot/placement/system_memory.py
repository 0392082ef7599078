"""Free memory, on a device and in the machine."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path

import torch

from bagel_mot.system_files import control_groups, system_lines

_UNKNOWN = 4 << 30  # where the system does not say


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take on a device; for the CPU the least of what machine and container leave."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    found = [value for value in (_meminfo("MemAvailable"), _container(), _address_space()) if value is not None]
    return min(found, default=_UNKNOWN)


def room_for_work() -> int | None:
    """Bytes that work on the CPU can take at the very most before the system ends the process: what is free, and what
    can be swapped out. None where the system does not say.
    """
    available, swap = _meminfo("MemAvailable"), _meminfo("SwapFree") or 0
    if available is None:
        return None
    found = (available + swap, _container(most=True, swap=swap), _address_space())
    return min(value for value in found if value is not None)


def _meminfo(name: str) -> int | None:
    """Bytes that the kernel reports under a name; None where it does not."""
    found = next((line for line in system_lines("proc/meminfo") if line.startswith(f"{name}:")), None)
    return None if found is None else int(found.split()[1]) * 1024


def _address_space() -> int | None:
    """Bytes left of this process's limit of address space (`ulimit -v`); None without one."""
    limit = next(
        (line.split()[3] for line in system_lines("proc/self/limits") if line.startswith("Max address space")), ""
    )
    mapped = system_lines("proc/self/statm")
    if not limit.isdecimal() or not mapped:
        return None
    return max(0, int(limit) - int(mapped[0].split()[0]) * mmap.PAGESIZE)


# The files of a control group, by its hierarchy (see `control_groups`): its limit, its use, and the beginning of names
# in its statistics; then the limit and use of swap, which version 1 counts with memory.
_FILES = {
    "": ("memory.max", "memory.current", "", "memory.swap.max", "memory.swap.current"),
    "memory": (
        *("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        *("memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes"),
    ),
}


def _container(*, most: bool = False, swap: int = 0) -> int | None:
    """Bytes left of the memory limits of this process's control group and of those around it; None without one.

    Args:
        most: count all that the system gives up before it ends a process: cached files that were read lately too, not
            only long ago, and what can be swapped out.
        swap: free bytes of the machine's swap.
    """
    names = ("inactive_file", "active_file") if most else ("inactive_file",)
    left = []
    for hierarchy, group in control_groups("memory"):
        limit, used, beginning, *swapping = _FILES[hierarchy]
        try:
            free = _left(group / limit, group / used)
            found = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            files = sum(int(found.get(beginning + name, 0)) for name in names)
        except (OSError, ValueError):
            continue
        if free is not None:
            with_memory = free if beginning else 0
            left.append(free + files + (_swap(group, swapping, swap, with_memory) if most else 0))
    return max(0, min(left)) if left else None


def _left(limit: Path, used: Path) -> int | None:
    """A control group's limit less what it has taken; None where it has no limit."""
    allowed, taken = limit.read_text().strip(), int(used.read_text())
    return None if allowed == "max" else int(allowed) - taken


def _swap(group: Path, files: Sequence[str], swap: int, with_memory: int) -> int:
    """Bytes of swap that a control group may still take; 0 where it does not say.

    Args:
        group: the group's folder.
        files: names of the files with its limit and use.
        swap: free bytes of the machine's swap.
        with_memory: bytes of memory that the limit counts too and that are still free.
    """
    try:
        own = _left(group / files[0], group / files[1])
    except (OSError, ValueError):
        return 0
    return max(0, swap if own is None else min(swap, own - with_memory))
