"""Sharded data parallelism by FSDP2: each process keeps a part of every parameter, gradient and moment.

A unit's weights are gathered when it computes. Gradients are added up over all processes, not averaged: the losses are
divided by counts over all packs already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bagel_mot.model.quant.linear import QuantisedWeight
from bagel_mot.parallel.config import ParallelConfig
from bagel_mot.parallel.ranks import Ranks
from bagel_mot.parallel.shards import local, place_of

ReadPart = Callable[[str, Sequence[int], Sequence[int]], Tensor]
"""Reads a part of a tensor of a network: by its name, the part's first entry and its entries along each axis."""
ShardValues = dict[str, Tensor] | ReadPart
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def shard(
    root: nn.Module,
    units: Iterable[nn.Module],
    methods: Sequence[str],
    ranks: Ranks,
    config: ParallelConfig,
    precision: str,
    device: torch.device,
    values: ShardValues | None = None,
) -> None:
    """Shards a network, and gives every process its part of the values.

    Where each process reads its own part none ever holds the whole. Else the first process's values count, and the
    others may hold the network on the meta device.

    Args:
        root: the network, changed in place.
        units: its parts whose weights are gathered one after another; the rest of the network is one more unit.
        methods: the names of the root's methods that compute, beside `forward`.
        ranks: the processes.
        config: the recipe's section.
        precision: the recipe's precision, in which weights are gathered unless the section says otherwise.
        device: the device that computes.
        values: a function that reads the values' parts; or the values, where `take_values` took them already.
    """
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        FSDPModule,
        MixedPrecisionPolicy,
        OffloadPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    values = take_values(root, ranks) if values is None else values
    gathered, reduced = config.mixed_precision_param or precision, config.mixed_precision_reduce
    policy = MixedPrecisionPolicy(
        param_dtype=None if gathered == "float32" else _DTYPES[gathered],
        reduce_dtype=None if gathered == reduced else _DTYPES[reduced],
        cast_forward_inputs=False,  # positions and noise levels stay exact; matmuls cast for themselves
    )
    offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if config.enable_cpu_offload else OffloadPolicy()
    options: dict[str, Any] = {"mesh": ranks.mesh, "mp_policy": policy, "offload_policy": offload}
    always = config.fsdp_reshard_after_forward == "always"
    for unit in units:
        fully_shard(unit, **options, reshard_after_forward=always)
    fully_shard(root, **options, reshard_after_forward=False)  # the backward pass needs it first
    for method in methods:
        register_fsdp_forward_method(root, method)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other with a factor
            if hasattr(module, "set_reduce_scatter_unused_params"):  # from PyTorch 2.13 on
                module.set_reduce_scatter_unused_params(True)
    place = torch.device("cpu") if config.enable_cpu_offload else device
    if callable(values):
        fill_parts(root, values, place)
    else:
        fill(root, values, ranks, place)
    for module in root.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)


@contextmanager
def quantised_apart(root: nn.Module, device: torch.device) -> Iterator[None]:
    """Within it quantised weights are out of a network. They do not train and are small, and every process has read all
    of them: nothing is divided, and nobody needs their values as plain numbers.

    Args:
        root: the network.
        device: the device that they are on afterwards.
    """
    found = [(name, module) for name, module in root.named_modules() if isinstance(module, QuantisedWeight)]
    for name, _ in found:
        root.set_submodule(name, nn.Identity())
    try:
        yield
    finally:
        for name, module in found:
            root.set_submodule(name, module.to(device))


def take_values(root: nn.Module, ranks: Ranks) -> dict[str, Tensor]:
    """Takes the values out of a network, which is left on the meta device; those of the first process are kept."""
    values = {name: tensor.detach() for name, tensor in root.state_dict().items()} if ranks.first else {}
    root.to("meta")
    return values


def fill(root: nn.Module, values: Mapping[str, Tensor], ranks: Ranks, device: torch.device) -> None:
    """Gives the parts of a divided network their values, tensor by tensor.

    Args:
        root: the network, on the meta device.
        values: all its values in the first process; nothing elsewhere.
        ranks: the processes.
        device: the device for the parts.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    root.to_empty(device=device)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=ranks.world > 1)
    set_model_state_dict(root, dict(values), options=options)


@torch.no_grad()
def fill_parts(root: nn.Module, read: ReadPart, device: torch.device) -> None:
    """Reads this process's parts of the values of a divided network, tensor by tensor.

    Args:
        root: the network, on the meta device.
        read: reads a part.
        device: the device for the parts.
    """
    root.to_empty(device=device)
    for name, tensor in root.state_dict().items():
        local(tensor).copy_(read(name, *place_of(tensor)))
