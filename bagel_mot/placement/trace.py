"""How much memory a computation takes, found by going through it without computing.

The model's own code runs on tensors that have shapes, types and lifetimes but no values. What is alive at once is
counted: a change of the model changes the prediction by itself.
"""

from __future__ import annotations

import weakref
from bisect import insort
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ALIGNING = 64 + 32  # bytes: PyTorch's alignment, and the smallest block of the C library

Workspace = Callable[[str, list[Tensor], list[Tensor]], tuple[int, int]]
"""Of an operation, with its inputs and results: bytes that it needs until its results are made, and until they are
filled.
"""


class Exact:
    """A device's memory, of which no more is taken than what is alive."""

    def __init__(self) -> None:
        self.live = self.peak = 0

    def allocate(self, size: int) -> int:
        """A handle for `free`."""
        self.live += size
        self.peak = max(self.peak, self.live)
        return size

    def free(self, handle: int) -> None:
        self.live -= handle


class Heap:
    """The C library's heap as `bagel_mot.allocator.keep_freed_memory` sets it up: blocks below a size are cut from the
    smallest gap that holds them, or put at the end, which never moves back; larger ones come from the system and return
    to it.

    Attributes:
        peak: most bytes that the process has had at once.
    """

    def __init__(self, largest_kept: int) -> None:
        self._largest_kept = largest_kept
        self._gaps: list[tuple[int, int]] = []  # (start, stop), ascending
        self._end = self._mapped = self.peak = 0
        self._blocks: dict[int, tuple[int, int]] = {}  # by handle
        self._handles = count()

    def allocate(self, size: int) -> int:
        """A handle for `free`."""
        handle = next(self._handles)
        if size == 0 or size >= self._largest_kept:
            self._mapped += size
            self._blocks[handle] = (-1, size)
        else:
            start = self._place(size)
            self._blocks[handle] = (start, start + size)
        self.peak = max(self.peak, self._end + self._mapped)
        return handle

    def _place(self, size: int) -> int:
        # An aligned block is cut out of a larger one: a gap of just its size is too small for it.
        fitting = [(stop - start, start, stop) for start, stop in self._gaps if stop - start >= size + _ALIGNING]
        if fitting:
            _, start, stop = min(fitting)
            self._gaps.remove((start, stop))
            if start + size < stop:
                insort(self._gaps, (start + size, stop))
            return start
        start = self._end
        if self._gaps and self._gaps[-1][1] == self._end:  # a gap at the end grows
            start = self._gaps.pop()[0]
        self._end = max(self._end, start + size)
        return start

    def free(self, handle: int) -> None:
        start, stop = self._blocks.pop(handle)
        if start < 0:
            self._mapped -= stop
            return
        before = next((gap for gap in self._gaps if gap[1] == start), None)
        after = next((gap for gap in self._gaps if gap[0] == stop), None)
        for gap in (before, after):
            if gap is not None:
                self._gaps.remove(gap)
                start, stop = min(start, gap[0]), max(stop, gap[1])
        insort(self._gaps, (start, stop))


class Tracker(TorchDispatchMode):
    """Lets an allocator hold all tensors that operations make, as long as they live.

    Args:
        allocator: is asked for each.
        workspace: what operations take beside inputs and results.
    """

    def __init__(self, allocator: Exact | Heap, workspace: Workspace) -> None:
        super().__init__()
        self._allocator, self._workspace = allocator, workspace
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        before, until_filled = map(self._allocator.allocate, self._workspace(func._schema.name, given, made))
        self._allocator.free(before)
        for tensor in made:
            self._count(tensor.untyped_storage())
        self._allocator.free(until_filled)
        return result

    def forget(self, tensors: list[Tensor]) -> None:
        """Leaves out what stands before the computation begins, such as weights."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._known[storage._cdata] = weakref.ref(storage)

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        known = self._known.get(key)
        if known is not None and known() is not None:
            return
        handle = self._allocator.allocate(storage.nbytes())

        def gone(_: weakref.ref[torch.UntypedStorage]) -> None:
            self._allocator.free(handle)
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, gone)


def no_workspace(operation: str, given: list[Tensor], made: list[Tensor]) -> tuple[int, int]:
    return 0, 0


@contextmanager
def without_values() -> Iterator[FakeTensorMode]:
    """Within it, tensors that are made have no values and take no memory."""
    with FakeTensorMode() as mode:
        yield mode


def trace(
    prepare: Callable[[], tuple[list[Tensor], Callable[[], object]]],
    allocator: Exact | Heap,
    workspace: Workspace = no_workspace,
) -> None:
    """Lets an allocator hold what a computation holds beyond what it begins with, as long as it does.

    Args:
        prepare: makes what the computation begins with; returns those tensors, and the computation.
        allocator: that of the device.
        workspace: what operations take beside inputs and results.
    """
    with without_values(), torch.no_grad():
        before, compute = prepare()
        with Tracker(allocator, workspace) as tracker:
            tracker.forget(before)
            compute()
