"""Layers that are read from a mapped file whenever they compute, for models larger than memory.

On the CPU the weights are used where the file is mapped: a thread lets the system read the next layer while one
computes, and layers that have computed are released, so that this process keeps no more than two in memory. (The system
keeps the pages that it read as long as nobody else wants the memory: a file that fits is read only once.)
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bagel_mot.placement.weights import Experts

_POPULATE_READ = 22  # MADV_POPULATE_READ of Linux 5.14, which Python has no name for


class Mapped:
    """Reads layers one ahead of the layer that computes, and returns their memory.

    Args:
        layers: the weights, views of mapped files, in the order in which they compute.
    """

    def __init__(self, layers: Sequence[Experts]) -> None:
        self._layers = layers
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bagel-layers")
        self._arrivals: dict[tuple[int, str], Future[None]] = {}
        for expert in (expert for layer in layers for expert in layer.values()):
            for weight in expert:
                drop(weight.home)  # its first pages are there since the file was opened

    @contextmanager
    def ready(self, layer: int, experts: tuple[str, ...]) -> Iterator[None]:
        """Within it, the weights of a layer's `experts` are in memory."""
        try:
            for expert in experts:
                self._fetch(layer, expert).result()
            if len(self._layers) > 1:
                for expert in experts:
                    self._fetch((layer + 1) % len(self._layers), expert)
            yield
        finally:
            for expert in experts:
                if self._arrivals.pop((layer, expert), None) is not None:
                    for weight in self._layers[layer][expert]:
                        drop(weight.home)

    def _fetch(self, layer: int, expert: str) -> Future[None]:
        if (layer, expert) not in self._arrivals:
            self._arrivals[layer, expert] = self._thread.submit(self._read, layer, expert)
        return self._arrivals[layer, expert]

    def _read(self, layer: int, expert: str) -> None:
        for weight in self._layers[layer][expert]:
            read(weight.home)


def read(tensor: Tensor) -> None:
    """Brings the pages of a mapped tensor into memory."""
    if not (_advise(tensor, _POPULATE_READ) if sys.platform == "linux" else False):
        tensor.flatten().view(torch.uint8)[:: mmap.PAGESIZE].sum()


def drop(tensor: Tensor) -> None:
    """Takes the pages of a mapped tensor out of this process. Its values come from the file when they are used again.

    Never to be called on memory that is not mapped from a file: it would be cleared.
    """
    if hasattr(mmap, "MADV_DONTNEED"):
        _advise(tensor, mmap.MADV_DONTNEED)


def _advise(tensor: Tensor, advice: int) -> bool:
    """Tells the system what will be done with the pages that a tensor touches; whether it listened."""
    advise = _madvise()
    if advise is None or not tensor.nbytes:
        return False
    start = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    return advise(start, tensor.data_ptr() + tensor.nbytes - start, advice) == 0


@cache
def _madvise() -> Any:
    """The C library's madvise; None where there is none."""
    if sys.platform == "win32":
        return None
    function = getattr(ctypes.CDLL(None), "madvise", None)
    if function is not None:
        function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    return function
