"""Linear maps of one input, multiplied as one: queries, keys and values, and the two maps into an MLP.

One product with all of their rows is quicker than a few with some of them, and it is one operation instead of several.
The matrix of all rows is the only one in memory: the maps that were joined are views of it, by their own names in a
state dictionary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bagel_mot.model.prepacked import PrepackedLinear, can_be_prepacked, prepack_weights
from bagel_mot.model.widened import WidenedLinear, can_be_widened
from bagel_mot.model.without_values import without_values


class JoinedLinear:
    """Several linear maps as one, for inference: (T, in_features) -> (T, all their outputs, one after another).

    Attributes:
        whole: the map with all rows.
        sizes: the widths of the outputs.
        in_features, out_features: the widths of its input and of all outputs.
    """

    def __init__(self, whole: nn.Linear | PrepackedLinear, sizes: Sequence[int]) -> None:
        self.whole, self.sizes = whole, tuple(sizes)
        self.in_features, self.out_features = whole.in_features, whole.out_features

    def __call__(self, x: Tensor) -> Tensor:
        found: Tensor = self.whole(x)
        return found


class PrepackedRows(nn.Module):
    """One of several linear maps whose prepacked weights are joined. In a state dictionary it is as the `nn.Linear` it
    was made from. Alone it is slow: it computes the products of all.

    Args:
        whole: the map that has the rows of all.
        start, stop: its own rows.
    """

    bias: Tensor | None

    def __init__(self, whole: PrepackedLinear, start: int, stop: int) -> None:
        super().__init__()
        self.out_features, self.in_features = stop - start, whole.in_features
        self._whole = (whole,)  # no module of its own
        self._rows = slice(start, stop)
        self.register_buffer("bias", None if whole.bias is None else whole.bias[self._rows])

    def forward(self, x: Tensor) -> Tensor:
        """(T, in_features) -> (T, out_features)"""
        found: Tensor = self._whole[0](x)[:, self._rows]
        return found

    def dense(self) -> Tensor:
        """Its weight (out_features, in_features), a copy."""
        return self._whole[0].weight.to_dense()[self._rows].clone()

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.dense()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def join(owner: nn.Module, names: Sequence[str], *, prepack: bool) -> JoinedLinear | None:
    """Joins the plain linear maps of a module, which afterwards are views of one matrix.

    Args:
        owner: the module that has them.
        names: their names in it.
        prepack: keep the matrix in the order in which the CPU multiplies it, where that pays.

    Returns: all of them as one; None, and nothing is changed, where some are no plain maps, have no values yet, or are
        not all of one kind in one place.
    """
    parts = [getattr(owner, name) for name in names]
    if any(type(part) not in (nn.Linear, WidenedLinear) or any(p.is_meta for p in part.parameters()) for part in parts):
        return None
    if len({(p.weight.dtype, p.weight.device, p.in_features, p.bias is None) for p in parts}) > 1:
        return None
    sizes = [part.out_features for part in parts]
    with torch.no_grad():
        weight = torch.cat([part.weight for part in parts])
        bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
    if prepack and can_be_prepacked(weight):
        prepacked = PrepackedLinear(weight, bias)
        ends = torch.tensor(sizes).cumsum(0).tolist()
        for name, size, end in zip(names, sizes, ends, strict=True):
            setattr(owner, name, PrepackedRows(prepacked, end - size, end))
        return JoinedLinear(prepacked, sizes)
    if type(parts[0]) is WidenedLinear or (prepack and can_be_widened(weight)):
        for name in names:
            setattr(owner, name, WidenedLinear.of(getattr(owner, name).weight, getattr(owner, name).bias))
        parts = [getattr(owner, name) for name in names]
        whole: nn.Linear = WidenedLinear.of(weight, bias)
    else:
        with without_values():
            whole = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        whole.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            whole.bias = nn.Parameter(bias, requires_grad=False)
    for part, rows in zip(parts, weight.split(sizes), strict=True):
        part.weight = nn.Parameter(rows, requires_grad=False)
    for part, numbers in zip(parts, () if bias is None else bias.split(sizes), strict=bias is not None):
        part.bias = nn.Parameter(numbers, requires_grad=False)
    return JoinedLinear(whole, sizes)


def prepare(module: nn.Module, *, prepack: bool) -> None:
    """Joins what can be joined inside a module whose weights stay where they are, for inference alone.

    Args:
        module: the module.
        prepack: prepack everything inside where that pays.
    """
    for owner in list(module.modules()):
        for name, parts in getattr(owner, "JOINED", {}).items():
            if getattr(owner, name) is None:
                setattr(owner, name, join(owner, parts, prepack=prepack))
    if prepack:
        prepack_weights(module)


def separate(owner: nn.Module, name: str) -> None:
    """Gives a linear map of a module, and those that it is joined with, weights of their own, if it is joined."""
    for joined, parts in getattr(owner, "JOINED", {}).items():
        if name in parts and getattr(owner, joined) is not None:
            for part in parts:
                if isinstance(rows := getattr(owner, part), PrepackedRows):
                    bias = None if rows.bias is None else rows.bias.clone()
                    setattr(owner, part, PrepackedLinear(rows.dense(), bias))
            setattr(owner, joined, None)
