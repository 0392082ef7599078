"""Memory for large blocks: by the C library's allocator, and outside it.

Every operation of a network makes a block for its result and soon frees it. By default glibc takes each block of more
than 32 MiB from the system (`mmap`) and gives it straight back, and so it does with the end of the heap: the kernel
maps and clears the same pages again in every operation, which on the CPU is 20 to 30% of a training step, and of a
denoising step of 1024 image tokens. Kept in the process, the pages are there already. The price is memory: the process
stays as large as it was at its peak, and the peak is higher, because holes between blocks are not always of the size
that is wanted next. Where memory is short, what is kept is given back (`return_freed_memory`).
"""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

# Parameters of mallopt, from <malloc.h>.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8

# Blocks below this size stay. glibc before 2.35 refuses more than 32 MiB and keeps its own value then. It is above the
# blocks of a denoising step, and below those of the autoencoder at the end of a large image, which are few and of
# many sizes: kept, the gaps between them made the peak a third higher.
LARGEST_KEPT = 1 << 27
# Training makes the same blocks in every step, and gains most from keeping them: with the bound above a step with a
# vocabulary of 150,000 took twice as long. The largest are the logits of 2,048 targets and, among several processes,
# the gathered embedding and head: more than 1 GiB both. It is the largest number that mallopt takes.
LARGEST_KEPT_IN_TRAINING = (1 << 31) - 1
_NEVER = -1
_OWN_PAGES = 1 << 16  # bytes from which pages of one's own cost next to nothing
_HUGE_PAGES = 1 << 23  # bytes from which large pages are asked for
_GROWTH = 1 << 26  # bytes by which the heap grows at least


def keep_freed_memory(largest: int = LARGEST_KEPT, *, in_all_threads: bool = False) -> bool:
    """Lets the process keep large blocks that were freed, for the next operation of the network to use.

    For the whole process, and for good.

    Args:
        largest: bytes below which blocks are kept.
        in_all_threads: whether threads that begin after this call take their blocks from the one heap of the process.
            By default glibc gives threads heaps of their own, of at most 64 MiB, which keep no larger blocks.

    Returns:
        Whether it took effect. It does on Linux with glibc alone; elsewhere nothing happens.
    """
    library = _glibc()
    if library is None:
        return False
    mallopt = library.mallopt
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    if in_all_threads:
        mallopt(_M_ARENA_MAX, 1)
    kept = any(mallopt(_M_MMAP_THRESHOLD, size) for size in (largest, 1 << 25))
    return bool(kept and mallopt(_M_TRIM_THRESHOLD, _NEVER) and mallopt(_M_TOP_PAD, _GROWTH))


def return_freed_memory() -> None:
    """Gives the system back what was freed and kept, so that it counts as free memory again. The next operations take
    it anew, at the price that keeping it saves.
    """
    library = _glibc()
    if library is not None:
        library.malloc_trim(ctypes.c_size_t(0))


def _glibc() -> ctypes.CDLL | None:
    """The C library, if it is glibc: others (musl) have no such settings."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None


def on_own_pages(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """An empty tensor outside the heap if it is large and on the CPU: its memory goes back to the system as soon as it
    is dropped, and it leaves no gap in the heap. Loading makes weights that stay among blocks that do not; in one heap
    they left gaps of half its size.
    """
    size = math.prod(shape) * dtype.itemsize
    if torch.device(device).type != "cpu" or size < _OWN_PAGES:
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    private = {} if sys.platform == "win32" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
    memory = mmap.mmap(-1, size, **private)
    if size >= _HUGE_PAGES and hasattr(mmap, "MADV_HUGEPAGE"):
        # Cleared by pages of 2 MiB where the system has them: filling them takes a third of the time.
        with suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8).view(dtype).view(tuple(shape))
