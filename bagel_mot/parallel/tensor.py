"""Tensor parallelism: the heads and the MLPs of each layer, of both experts, are divided among processes.

The matrices into heads and MLP are divided by output, those out of them by input: two sums over processes a layer and
expert, none inside attention. An adapter of a matrix is divided with it: B·A by output is B by output, with A whole;
by input it is A by input, with B whole, and one small sum between them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from bagel_mot.errors import RecipeError
from bagel_mot.model.joined import separate
from bagel_mot.parallel.ranks import Ranks
from bagel_mot.parallel.shards import local

_INTO = ("q", "k", "v", "gate", "up")
_OUT_OF = ("o", "down")


def divide_experts(layers: Iterable[Any], ranks: Ranks) -> None:
    """Divides both experts of each layer, and their adapters, among the processes of `ranks.tensor_mesh`.

    Raises:
        RecipeError: a matrix is no plain one, as with quantised weights.
    """
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    for layer in layers:
        for expert in (layer.und, layer.gen):
            plan: dict[str, Any] = {}
            for name in (*_INTO, *_OUT_OF):
                matrix = getattr(expert, name)
                adapters = list(getattr(matrix, "lora_A", ()))
                base = getattr(matrix, "base_layer", matrix)
                if type(base) is not nn.Linear:
                    raise RecipeError(
                        f"parallel.tensor_parallel_degree is {ranks.degrees.tensor}, but {name} is a "
                        f"{type(base).__name__}, which every process has whole, for its numbers share scales: set it "
                        "to 1, so that the processes share the packs, or leave the matrices as they are"
                    )
                separate(expert, name)
                place = name if base is matrix else f"{name}.base_layer"
                plan[place] = ColwiseParallel() if name in _INTO else RowwiseParallel()
                for adapter in adapters:
                    if name in _INTO:
                        plan[f"{name}.lora_B.{adapter}"] = ColwiseParallel()
                        _divide_magnitudes(matrix, adapter, ranks)
                    else:
                        plan[f"{name}.lora_A.{adapter}"] = RowwiseParallel()
                        _divide_dropout(matrix, adapter, ranks)
            parallelize_module(expert, ranks.tensor_mesh, plan)


def _divide_magnitudes(matrix: Any, adapter: str, ranks: Ranks) -> None:
    """Divides what DoRA keeps of the rows of an adapted matrix, if anything."""
    from torch.distributed.tensor import Shard, distribute_tensor

    if adapter in matrix.lora_magnitude_vector:
        held = matrix.lora_magnitude_vector[adapter]
        divided = distribute_tensor(held.weight.detach(), ranks.tensor_mesh, [Shard(0)])
        held.weight = nn.Parameter(divided, requires_grad=held.weight.requires_grad)
        if not hasattr(matrix.row_squares, "device_mesh"):
            matrix.row_squares = distribute_tensor(matrix.row_squares, ranks.tensor_mesh, [Shard(0)])


def _divide_dropout(matrix: Any, adapter: str, ranks: Ranks) -> None:
    """Lets the dropout before an adapter draw for its share of the inputs what one process draws for them."""
    dropout = matrix.lora_dropout[adapter]
    if isinstance(dropout, nn.Dropout):
        mesh = ranks.tensor_mesh
        matrix.lora_dropout[adapter] = DividedDropout(dropout.p, mesh.get_local_rank(), mesh.size())


class DividedDropout(nn.Module):
    """Dropout of this process's share of some channels. Each process draws for all channels, and so the same as one
    that has them all.
    """

    def __init__(self, p: float, part: int, parts: int) -> None:
        super().__init__()
        self.p, self.part, self.parts = p, part, parts

    def forward(self, x: Tensor) -> Tensor:
        """(…, channels / parts) -> the same shape"""
        if not self.training:
            return x
        kept = F.dropout(x.new_ones(*x.shape[:-1], x.shape[-1] * self.parts), self.p)
        return x * kept.chunk(self.parts, -1)[self.part]


def partial_parameters(layers: Iterable[Any]) -> list[nn.Parameter]:
    """The parameters that every process of `ranks.tensor_mesh` has whole but whose gradient it has of its heads alone:
    the norms of queries and keys.
    """
    return [
        norm.weight
        for layer in layers
        for expert in (layer.und, layer.gen)
        for norm in (expert.q_norm, expert.k_norm)
        if norm.weight.requires_grad
    ]


def add_up_gradients(parameters: Iterable[nn.Parameter], ranks: Ranks) -> None:
    """Adds the gradients of such parameters up over the processes that share heads."""
    gradients: list[Tensor] = [local(p.grad) for p in parameters if p.grad is not None]
    if gradients:
        ranks.sum_in_place(gradients, ranks.tensor_mesh)
