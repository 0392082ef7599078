"""The weights of a layer's experts, one by one: the module that each belongs to, and its home while it is not used.

Weights that are used from somewhere else are put in place for the time of one call, and those at home put
back after it: whatever else looks at the module (a state dictionary, a count of parameters) sees it as it was loaded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bagel_mot.model.decoder import DecoderLayer

_BLOCK = 1 << 30  # bytes of pinned memory asked for at once


@dataclass
class Weight:
    """A parameter or buffer.

    Attributes:
        module: the module that has it.
        name: its name in the module.
        home: the tensor that it is while nobody uses it.
    """

    module: nn.Module
    name: str
    home: Tensor

    @property
    def room(self) -> int:
        """Its bytes in a block, up to the next place where a tensor of any kind may begin."""
        return -(-max(self.home.nbytes, 1) // 256) * 256

    def put(self, tensor: Tensor) -> None:
        """Lets the module use this tensor."""
        if self.name in self.module._parameters:
            if not isinstance(tensor, nn.Parameter):
                tensor = nn.Parameter(tensor, requires_grad=False)
            self.module._parameters[self.name] = tensor
        else:
            self.module._buffers[self.name] = tensor


Experts = dict[str, list[Weight]]  # one layer's weights: "und" and, where images are drawn, "gen"


def experts_of(layer: DecoderLayer) -> Experts:
    """The weights of the experts that a layer has."""
    return {
        name: [
            Weight(module, leaf, tensor)
            for module in expert.modules()
            for leaf, tensor in (*module._parameters.items(), *module._buffers.items())
            if tensor is not None
        ]
        for name, expert in (("und", layer.und), ("gen", layer.gen))
        if expert is not None
    }


def pin(weights: Iterable[Weight]) -> None:
    """Moves weights into pinned memory, from which a GPU fetches them by itself.

    PyTorch rounds each block of pinned memory up to a power of two, which for a matrix may be nearly twice its size:
    here many share blocks that are powers of two.
    """
    for group in _groups(list(weights), _BLOCK):
        needed = sum(weight.room for weight in group)
        block = torch.empty(1 << (needed - 1).bit_length(), dtype=torch.uint8, pin_memory=True)
        start = 0
        for weight in group:
            weight.home = carve(block, start, weight.home).copy_(weight.home)
            weight.put(weight.home)
            start += weight.room


def _groups(weights: list[Weight], size: int) -> list[list[Weight]]:
    """Weights that share a block each, the largest first, each in the first block that has room."""
    groups: list[list[Weight]] = []
    room: list[int] = []
    for weight in sorted(weights, key=lambda weight: weight.room, reverse=True):
        place = next((i for i, left in enumerate(room) if left >= weight.room), None)
        if place is None:
            place = len(groups)
            groups.append([])
            room.append(max(size, weight.room))
        groups[place].append(weight)
        room[place] -= weight.room
    return groups


def carve(block: Tensor, start: int, like: Tensor) -> Tensor:
    """A tensor of the shape and type of another inside a block of bytes."""
    return block[start : start + like.nbytes].view(like.dtype).view(like.shape)
