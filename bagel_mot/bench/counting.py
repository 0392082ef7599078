"""CallCounts of operators and of blocks of memory that a call asks of PyTorch, which no load of the machine changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bagel_mot.bench.machine import peak_allocated


@dataclass(frozen=True)
class CallCounts:
    """The counts of one call.

    Attributes:
        operators: calls of operators.
        allocations: results in memory of their own, neither a view nor one of the arguments.
        allocated_bytes: the sizes of these, all together.
        peak_bytes: the largest total of what the call held at one time, beyond what there was before.
    """

    operators: int
    allocations: int
    allocated_bytes: int
    peak_bytes: int


class _Counter(TorchDispatchMode):
    """A mode that counts the operators called inside it, and the memory of their results."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = self.allocations = self.allocated_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {_place(tensor) for tensor in _tensors((args, kwargs))}
        result = func(*args, **kwargs)
        self.operators += 1
        made = {_place(tensor): tensor.untyped_storage().nbytes() for tensor in _tensors(result)}
        new = [size for place, size in made.items() if place not in given and size]
        self.allocations += len(new)
        self.allocated_bytes += sum(new)
        return result


def _tensors(values: object) -> Iterator[Tensor]:
    """The tensors among nested values; those in an order of oneDNN's own, which have no storage, are left out."""
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.layout == torch.strided)


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def count(call: Callable[[], object], device: torch.device) -> CallCounts:
    """The counts of a call, which runs twice: for its operators, and for its peak of memory."""
    with _Counter() as counter:
        call()
    return CallCounts(counter.operators, counter.allocations, counter.allocated_bytes, peak_allocated(device, call))
