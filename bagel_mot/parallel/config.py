"""The `parallel` section of a recipe: how a run is spread over processes, and how a step saves memory.

The keys have the names that torchtitan gives them.
"""

from __future__ import annotations

from math import prod
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from bagel_mot.config import Count, DecoderConfig, Flag, Section, must_be
from bagel_mot.errors import RecipeError

Dtype = Literal["float32", "bfloat16"]
_ShardDegree = Annotated[int, Field(strict=True), must_be("-1 (all the processes that are left) or a number above 0")]


@dataclass(frozen=True, kw_only=True)
class ParallelConfig(Section):
    """The division of a run among its processes.

    Attributes:
        data_parallel_replicate_degree: copies of the model, each of which is sharded.
        data_parallel_shard_degree: processes among which one copy is sharded; -1: those that the others leave.
        tensor_parallel_degree: processes that share the heads and the MLPs of each layer.
        context_parallel_degree: processes that share the tokens of each pack.
        fsdp_reshard_after_forward: whether a layer's gathered weights are freed between the two passes.
        mixed_precision_param: the type in which sharded weights are gathered; by default the recipe's `precision`.
        mixed_precision_reduce: the type in which their gradients are added up.
        enable_cpu_offload: keep weights, gradients and moments in main memory; each layer's weights come to the device
            when it computes.
        offload_optimizer: keep a copy of the weights and the moments in main memory, and make the optimiser's step
            there.
        activation_checkpoint: the activations that a layer keeps for the backward pass: all ("none"), the results of
            its matmuls and of attention ("selective"), or its input alone ("full").
        enable_float8: multiply the matrices inside layers in float8, by torchao.
    """

    data_parallel_replicate_degree: Count = 1
    data_parallel_shard_degree: _ShardDegree = -1
    tensor_parallel_degree: Count = 1
    context_parallel_degree: Count = 1
    fsdp_reshard_after_forward: Literal["always", "never"] = "always"
    mixed_precision_param: Dtype | None = None
    mixed_precision_reduce: Dtype = "float32"
    enable_cpu_offload: Flag = False
    offload_optimizer: Flag = False
    activation_checkpoint: Literal["none", "selective", "full"] = "none"
    enable_float8: Flag = False

    def __post_init__(self) -> None:
        if self.data_parallel_shard_degree < 1 and self.data_parallel_shard_degree != -1:
            raise ValueError(
                f"data_parallel_shard_degree is {self.data_parallel_shard_degree}; it must be -1 (all the processes "
                "that are left) or a number above 0"
            )
        if self.enable_cpu_offload and self.offload_optimizer:
            raise ValueError("enable_cpu_offload keeps the optimiser in main memory already: leave offload_optimizer")

    def degrees(self, world: int) -> Degrees:
        """The degrees for a number of processes.

        Raises:
            RecipeError: they do not multiply to it.
        """
        fixed = (self.data_parallel_replicate_degree, self.context_parallel_degree, self.tensor_parallel_degree)
        shard = self.data_parallel_shard_degree
        if shard == -1:
            shard = max(1, world // prod(fixed))
        degrees = Degrees(fixed[0], shard, *fixed[1:])
        if degrees.world != world:
            raise RecipeError(
                f"this run has {world} {'process' if world == 1 else 'processes'}, but its parallel section needs "
                f"{'a multiple of ' if self.data_parallel_shard_degree == -1 else ''}{degrees.world} "
                f"(replicate {degrees.replicate} × shard {degrees.shard} × context {degrees.context} × tensor "
                f"{degrees.tensor}): change a degree, or the number of processes"
            )
        return degrees


@dataclass(frozen=True)
class Degrees:
    """The degrees of a run, all of them known."""

    replicate: int = 1
    shard: int = 1
    context: int = 1
    tensor: int = 1

    @property
    def data(self) -> int:
        """The number of different packs that are computed at a time."""
        return self.replicate * self.shard

    @property
    def world(self) -> int:
        """The number of processes."""
        return self.data * self.context * self.tensor

    def check_streams(self, streams: int) -> None:
        """Checks that the streams of a run can be shared among its data-parallel processes.

        Raises:
            RecipeError: they cannot.
        """
        if streams % self.data:
            raise RecipeError(
                f"packs_per_step is {streams}, which {self.data} data-parallel processes cannot share: take a number "
                f"of them that divides {streams}, or begin a run with another packs_per_step"
            )

    def check_decoder(self, decoder: DecoderConfig, slots: tuple[int, int]) -> None:
        """Checks that a decoder and its packs can be divided.

        Args:
            decoder: the decoder's shape.
            slots: the und and gen slots of a pack, in all its rows.

        Raises:
            RecipeError: they cannot.
        """
        for name, number in (
            ("attention heads", decoder.num_heads),
            ("KV heads", decoder.num_kv_heads),
            ("channels in its MLPs", decoder.intermediate_size),
        ):
            if number % self.tensor:
                raise RecipeError(
                    f"parallel.tensor_parallel_degree is {self.tensor}, which does not divide the model's {number} "
                    f"{name}"
                )
        heads, kv_heads = decoder.num_heads // self.tensor, decoder.num_kv_heads // self.tensor
        if heads % self.context or (kv_heads % self.context and self.context % kv_heads):
            raise RecipeError(
                f"parallel.context_parallel_degree is {self.context}; it must divide the {heads} attention heads of "
                f"each process, and divide its {kv_heads} KV heads or be a multiple of them"
            )
        for name, count in zip(("und", "gen"), slots, strict=True):
            if count % self.context:
                raise RecipeError(
                    f"parallel.context_parallel_degree is {self.context}, which does not divide the {count} {name} "
                    "slots of a pack: change pack.rows or the slots of a row"
                )
