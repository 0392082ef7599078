"""A recorder for the CPU, where no device records anything: it notes each operation with its tensors, and computes a
pass again by running just these operations on just these tensors, as a graph of a device does. What Python decides
while a pass is recorded stays as it was; what waits for a number of the device cannot be recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bagel_mot.inference.engine.graphs import Outputs

WAITING = {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::masked_select", "aten::equal"}


def _places(tree: Any) -> set[int]:
    return {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}


class _Noting(TorchDispatchMode):
    """Notes the operations that compute something, and not those that only make views."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[Callable[[], None]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.name in WAITING:
            raise RuntimeError(f"{func._schema.name} waits for the device")
        found = func(*args, **kwargs)
        if func._schema.is_mutable:
            self.noted.append(lambda: func(*args, **kwargs))
        elif not _places(found) & _places((args, kwargs)):

            def again() -> None:
                for old, new in zip(tree_leaves(found), tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(old, Tensor):
                        old.copy_(new)

            self.noted.append(again)
        return found


class OperationRecorder:
    """See above. `fails` makes every recording fail."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails

    def record(self, run: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")
        with _Noting() as noting:
            outputs = run()
        noted = noting.noted

        def replay() -> None:
            with torch.inference_mode():
                for each in noted:
                    each()

        for output in outputs:
            output.fill_(float("nan"))  # a device computes nothing while it records
        return replay, outputs
