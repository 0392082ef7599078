"""The most bytes that a computation keeps alive at once, found by going through it without values."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

M = TypeVar("M", bound=nn.Module)


class Tracker(TorchDispatchMode):
    """Counts the tensors that operations make, as long as they live.

    Args:
        before: tensors that are there before the computation begins, such as weights: they do not count.
    """

    def __init__(self, before: list[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata: weakref.ref(tensor.untyped_storage()) for tensor in before}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        known = self._known.get(key)
        if known is not None and known() is not None:
            return
        self.live += size
        self.peak = max(self.peak, self.live)

        def gone(_: weakref.ref[torch.UntypedStorage]) -> None:
            self.live -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, gone)


def peak(prepare: Callable[[], tuple[list[Tensor], Callable[[], object]]]) -> int:
    """The most bytes alive at once beyond what a computation begins with.

    Args:
        prepare: makes what the computation begins with; returns those tensors, and the computation.
    """
    with FakeTensorMode(), torch.no_grad():
        before, compute = prepare()
        with Tracker(before) as tracker:
            compute()
    return tracker.peak


def without_values(module: M, dtype: torch.dtype) -> M:
    """The module with weights of a type, made within `peak`."""
    for part in module.modules():
        for kind in (part._parameters, part._buffers):
            for name, tensor in kind.items():
                if tensor is not None:
                    kind[name] = nn.Parameter(torch.empty(tensor.shape, dtype=dtype), requires_grad=False)
    return module.eval()
