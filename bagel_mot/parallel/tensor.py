"""Tensor parallelism: the heads and the MLPs of each layer, of both experts, are divided among processes.

The matrices into heads and MLP are divided by output, those out of them by input: two sums over processes a layer and
expert, none inside attention.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from bagel_mot.errors import RecipeError
from bagel_mot.parallel.ranks import Ranks
from bagel_mot.parallel.shards import local

_INTO = ("q", "k", "v", "gate", "up")
_OUT_OF = ("o", "down")


def divide_experts(layers: Iterable[Any], ranks: Ranks) -> None:
    """Divides both experts of each layer among the processes of `ranks.tensor_mesh`.

    Raises:
        RecipeError: a matrix is no plain one, as with quantised or adapted weights.
    """
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    plan: dict[str, Any] = {name: ColwiseParallel() for name in _INTO}
    plan |= {name: RowwiseParallel() for name in _OUT_OF}
    for layer in layers:
        for expert in (layer.und, layer.gen):
            for name in plan:
                if type(getattr(expert, name)) is not nn.Linear:
                    raise RecipeError(
                        f"parallel.tensor_parallel_degree is {ranks.degrees.tensor}, but {name} is a "
                        f"{type(getattr(expert, name)).__name__}, which cannot be divided: set it to 1"
                    )
            parallelize_module(expert, ranks.tensor_mesh, plan)


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
