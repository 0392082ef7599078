"""How much memory is left, on a device and in the machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from bagel_mot.allocator import kept_memory

_UNKNOWN = 4 << 30  # where the system does not say


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take on a device; for the CPU the least of what machine and container leave."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    found = [value for value in (_available(), _container(), _address_space()) if value is not None]
    return min(found, default=_UNKNOWN)


def room_for_work() -> int | None:
    """Bytes that work on the CPU can take at the very most before the system ends the process: what is free, what the
    process has kept, and what can be swapped out. None where the system does not say, or makes room by itself.
    """
    available, kept = _available(), kept_memory()
    if available is None or kept is None:
        return None
    swap = _meminfo("SwapFree")
    found = (available + swap, _container(most=True, swap=swap), _address_space())
    return kept + min(value for value in found if value is not None)


def _available() -> int | None:
    """What the kernel thinks can be had without swapping; None where it does not say."""
    return _meminfo("MemAvailable") or None


def _meminfo(name: str) -> int:
    """Bytes that the kernel reports under a name; 0 where it does not."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def _address_space() -> int | None:
    """What is left of this process's limit of address space (`ulimit -v`); None without one."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):  # on Windows, and where there is no such file
        return None
    return None if limit == resource.RLIM_INFINITY else max(0, limit - mapped)


# By the version of control groups: how the line of /proc/self/cgroup begins that names this process's group, where the
# groups stand, and in each of them its limit, what it has taken, its statistics, and what names in these begin with.
_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")
_VERSIONS = (
    ("0::", _GROUPS, "memory.max", "memory.current", "memory.stat", ""),
    (":memory:", _GROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", "total_"),
)
# Limit and use of swap, the first of version 2, the second of version 1, which counts memory with it.
_SWAP = (("memory.swap.max", "memory.swap.current"), ("memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes"))


def _container(*, most: bool = False, swap: int = 0) -> int | None:
    """What is left of the memory limits of this process's control group and of those around it; None without one.

    Args:
        most: all that the system gives up before it ends a process: cached files that were read lately too, not only
            long ago, and what can be swapped out.
        swap: free bytes of the machine's.
    """
    names = ("inactive_file", "active_file") if most else ("inactive_file",)
    left = []
    for group, (limit, used, statistics, beginning) in _groups():
        try:
            allowed, taken = (group / limit).read_text().strip(), int((group / used).read_text())
            found = dict(line.split() for line in (group / statistics).read_text().splitlines())
            files = sum(int(found.get(beginning + name, 0)) for name in names)
        except (OSError, ValueError):
            continue
        if allowed != "max":
            free = int(allowed) - taken
            left.append(free + files + (_swap_of(group, free, swap) if most else 0))
    return max(0, min(left)) if left else None


def _swap_of(group: Path, free: int, swap: int) -> int:
    """Bytes of swap that a control group may take still; none where it does not say.

    Args:
        group: its folder.
        free: bytes of memory that are left to it.
        swap: free bytes of the machine's.
    """
    for index, (limit, used) in enumerate(_SWAP):
        try:
            allowed, taken = (group / limit).read_text().strip(), int((group / used).read_text())
            own = swap if allowed == "max" else int(allowed) - taken - (free if index else 0)
        except (OSError, ValueError):
            continue
        return max(0, min(swap, own))
    return 0


def _groups() -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Folders of this process's control group and of those around it. In a container its own may be where the groups
    begin, under whatever name it has outside.
    """
    try:
        lines = _OWN_GROUP.read_text().splitlines()
    except OSError:
        lines = []
    for beginning, root, *files in _VERSIONS:
        own = next((line.partition(beginning)[2] for line in lines if beginning in line), "/")
        group = root / own.strip("/")
        while True:
            if group.is_dir():
                yield group, tuple(files)
            if group == root or root not in group.parents:
                break
            group = group.parent
