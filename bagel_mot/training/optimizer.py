"""Optimisers, learning-rate schedules and the exponential moving average.

Where parameters are sharded, each process updates its own parts of them, as plain tensors; what needs more than an
element, the norm of all gradients and Muon's orthogonalisation, is computed together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from bagel_mot.config import Decay, NotNegative, Positive, Section, Share, Whole, must_be
from bagel_mot.parallel.muon import OwnedMuon
from bagel_mot.parallel.ranks import Ranks
from bagel_mot.parallel.shards import as_shard, is_sharded, local, shard_dims
from bagel_mot.parallel.tensor import add_up_gradients
from bagel_mot.training.trainable import OfficialName, matching

_Rates = Annotated[dict[str, Positive], must_be("learning rates by preset or pattern, such as {und: 1e-5}")]


@dataclass(frozen=True)
class OptimizerConfig(Section):
    """`muon` uses Muon for the matrices inside layers and AdamW for the rest; `adamw` uses AdamW for everything.

    `implementation` is that of AdamW: one operation for each tensor, for all tensors, or for the whole step. By default
    PyTorch chooses; but on the CPU it is the whole step, which reads and writes the least.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: Positive = 1e-4  # AdamW's
    muon_lr: Positive = 5e-3  # scaled so that an update's RMS is 0.2·lr, as AdamW's about is
    muon_weight_decay: NotNegative = 0.0
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    eps: Positive = 1e-15
    weight_decay: NotNegative = 0.0
    clip: Positive = 1.0
    lr_of: _Rates = Field(default_factory=dict)  # AdamW's for parts, named as in `trainable`; Muon's in proportion
    implementation: Literal["for-loop", "foreach", "fused"] | None = None


@dataclass(frozen=True)
class ScheduleConfig(Section):
    """Learning-rate factor by step: warm-up, then constant, cosine, or constant with a final linear decay (`wsd`)."""

    name: Literal["constant", "cosine", "wsd"] = "constant"
    warmup: Whole = 0
    decay: Whole = 0  # wsd: steps of the final decay
    floor: Share = 0.0  # the factor at the end

    def factor(self, step: int, steps: int) -> float:
        """The factor of the learning rates at `step`, counted from 0, of `steps`."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.name == "constant":
            return 1.0
        if self.name == "cosine":
            progress = (step - self.warmup) / max(steps - self.warmup, 1)
            return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        remaining = (steps - step) / max(self.decay, 1)
        return self.floor + (1 - self.floor) * min(max(remaining, 0.0), 1.0)


def is_layer_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon should take a parameter: the matrices inside layers, not embeddings, heads, norms or biases."""
    return parameter.ndim == 2 and ".layers." in name


class Optimizers:
    """One or two torch optimisers behind one step, with clipping, over the parameters that train.

    Args:
        named: the parameters by name; those that need no gradient are left out.
        config: the recipe's section.
        official_name: a parameter's name in the official layout, for `config.lr_of`.
        ranks: the processes that the parameters are sharded among, if they are.
        offload: whether a copy of the weights and the moments are kept in main memory, where the step is made.
        partial: parameters whose gradients are to be added up over the processes that share heads.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        config: OptimizerConfig,
        official_name: OfficialName = lambda name: name,
        ranks: Ranks | None = None,
        *,
        offload: bool = False,
        partial: Sequence[nn.Parameter] = (),
    ) -> None:
        """The optimisers that a configuration asks for.

        Raises:
            RecipeError: a key of `config.lr_of` matches no parameter that trains.
        """
        self.config, self.ranks, self.partial = config, ranks, list(partial)
        self.named = {name: p for name, p in named if p.requires_grad}
        self.parameters = list(self.named.values())
        matrices = {n: p for n, p in self.named.items() if config.name == "muon" and is_layer_matrix(n, p)}
        factors = rate_factors(config, self.named, official_name)
        # The optimisers work on a parameter itself, on its part in this process, or on a copy in main memory.
        self.worked: dict[str, nn.Parameter] = {}
        self.optimizers: list[torch.optim.Optimizer] = []
        # Each optimiser's numbers as the configuration has them, and the rate of each of its groups.
        self._numbers: list[tuple[dict[str, Any], list[float]]] = []
        self.owned: OwnedMuon | None = None
        chosen: dict[str, dict[str, Any]] = {
            "for-loop": {"foreach": False},
            "foreach": {"foreach": True},
            "fused": {"fused": True},
        }
        adamw = {"betas": config.betas, "eps": config.eps, "weight_decay": config.weight_decay}
        muon = {"weight_decay": config.muon_weight_decay}
        if matrices and ranks is not None and ranks.mesh is not None:
            rates = {name: config.muon_lr * factors[name] for name in matrices}
            self.owned = OwnedMuon(matrices, rates, ranks, **muon, adjust_lr_fn="match_rms_adamw")
        for name, parameter in self.named.items():
            if self.owned is None or name not in matrices:
                self.worked[name] = _worked_on(parameter, offload)
        for taken, rate, numbers in (
            ([name for name in self.worked if name not in matrices], config.lr, adamw),
            ([name for name in self.worked if name in matrices], config.muon_lr, muon),
        ):
            if not taken:
                continue
            groups: dict[float, list[nn.Parameter]] = {}
            for name in taken:
                groups.setdefault(rate * factors[name], []).append(self.worked[name])
            params = [{"params": same, "lr": lr} for lr, same in groups.items()]
            self._numbers.append((numbers, list(groups)))
            on_cpu = all(self.worked[name].device.type == "cpu" for name in taken)
            implementation = config.implementation or ("fused" if on_cpu else "")
            self.optimizers.append(
                torch.optim.AdamW(params, **numbers, **chosen.get(implementation, {}))
                if numbers is adamw
                else torch.optim.Muon(params, **numbers, adjust_lr_fn="match_rms_adamw")
            )

    def step(self, factor: float) -> Tensor:
        """Clips, updates and clears the gradients; nothing here waits for the device.

        Args:
            factor: the factor of the learning rates.

        Returns:
            The norm of all gradients before clipping, a scalar. Where it is not finite, neither are the weights now.
        """
        if self.partial and self.ranks is not None:
            add_up_gradients(self.partial, self.ranks)
        norm = clip_gradients(self.parameters, self.config.clip)
        for name, work in self.worked.items():
            if work is not (parameter := self.named[name]):
                work.grad = None if parameter.grad is None else local(parameter.grad).to(work.device)
        for optimizer, (_, rates) in zip(self.optimizers, self._numbers, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.owned is not None:
            self.owned.step(factor)
        for name, parameter in self.named.items():
            parameter.grad = None
            if name in self.worked and (work := self.worked[name]).data_ptr() != (part := local(parameter)).data_ptr():
                part.detach().copy_(work.detach())
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """The moments and counts as `PARAMETER.MOMENT`; sharded ones as the whole tensors that they are parts of."""
        found = {}
        for name, work in self.worked.items():
            for optimizer in self.optimizers:
                for key, value in optimizer.state.get(work, {}).items():
                    same = value.shape == work.shape and value.ndim > 0
                    found[f"{name}.{key}"] = as_shard(value, self.named[name]) if same else value
        if self.owned is not None and self.owned.optimizer is not None:
            for name, work in self.owned.own.items():
                for key, value in self.owned.optimizer.state.get(work, {}).items():
                    found[f"{name}.{key}"] = value
        return found

    def make_room(self, stored: Mapping[str, tuple[torch.Size, torch.dtype]]) -> dict[str, Tensor]:
        """Empty tensors for the moments of a checkpoint, for this process to load: then `tensors` are these.

        Args:
            stored: shape and type of each moment, as `PARAMETER.MOMENT`.

        Raises:
            ValueError: the moments are not those of the parameters that train.
        """
        if strange := sorted({key.rpartition(".")[0] for key in stored} - self.named.keys()):
            raise ValueError(f"{strange[0]} does not train")
        room: dict[str, Tensor] = {}
        optimizer_of = {p: one for one in self.optimizers for group in one.param_groups for p in group["params"]}
        for key, (shape, dtype) in stored.items():
            name, _, moment = key.rpartition(".")
            parameter = self.named[name]
            if self.owned is not None and name in self.owned.matrices:
                if name not in self.owned.own:
                    continue
                assert self.owned.optimizer is not None
                optimizer: torch.optim.Optimizer = self.owned.optimizer
                work = self.owned.own[name]
            else:
                work = self.worked[name]
                optimizer = optimizer_of[work]
            if shape == parameter.shape and len(shape):
                value = torch.zeros(work.shape, dtype=dtype, device=work.device)
                room[key] = value if name not in self.worked else as_shard(value, parameter)
            else:
                room[key] = value = torch.zeros(shape, dtype=dtype)
            optimizer.state[work][moment] = value
        return room

    def refresh(self) -> None:
        """Takes the weights anew into copies in main memory, after a checkpoint was loaded."""
        with torch.no_grad():
            for name, work in self.worked.items():
                if work.data_ptr() != (part := local(self.named[name])).data_ptr():
                    work.copy_(part)


def rate_factors(config: OptimizerConfig, names: Iterable[str], official_name: OfficialName) -> dict[str, float]:
    """The learning rate of each parameter, as a factor of `config.lr`: that of the last key of `config.lr_of` that
    matches it, else 1.

    Raises:
        RecipeError: a key matches none of the names.
    """
    factors = dict.fromkeys(names, 1.0)
    for pattern, rate in config.lr_of.items():
        for name in matching(pattern, factors, official_name, "optimizer.lr_of"):
            factors[name] = rate / config.lr
    return factors


def _worked_on(parameter: nn.Parameter, offload: bool) -> nn.Parameter:
    if offload:
        return nn.Parameter(local(parameter).detach().to("cpu", copy=True))
    return nn.Parameter(local(parameter).detach()) if is_sharded(parameter) else parameter


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
    """Scales all gradients so that their norm, over all processes, is at most `limit`; returns the norm before it, a
    scalar.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = global_norm(gradients)
    if not _surely_within(norm, limit):
        torch._foreach_mul_([local(g) for g in gradients], (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def _surely_within(norm: Tensor, limit: float) -> bool:
    """Whether a norm is known to be within a limit. On the CPU it is, and to multiply all gradients by 1 costs more
    than to ask; for another device the host would have to wait.
    """
    return norm.device.type == "cpu" and bool(norm <= limit)


def global_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of gradients that are sharded in several ways, a scalar: each number counts once."""
    import torch.distributed as dist

    ways: dict[tuple[str, ...], list[Tensor]] = {}
    for gradient in gradients:
        ways.setdefault(tuple(sorted(shard_dims(gradient))), []).append(gradient)
    total = local(gradients[0]).new_zeros(()) if gradients else torch.zeros(())
    for dims in sorted(ways):  # the same order in all processes
        square = torch.stack(_norms([local(g) for g in ways[dims]])).square().sum()
        for dim in dims:
            dist.all_reduce(square, group=ways[dims][0].device_mesh.get_group(dim))  # type: ignore[attr-defined]
        total = total + square.to(total.device)
    return total.sqrt()


def _norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The norm of each tensor, scalars on their device.

    On the CPU it is taken row by row: in one go PyTorch 2.13 adds up all squares one after another in float32, and the
    norm of a matrix of 16 million ones is 0.6% too small, that of an embedding of 136 million 1.4%.
    """
    if tensors[0].device.type != "cpu":
        return list(torch._foreach_norm(list(tensors)))
    rows = (tensor.flatten(1) if tensor.ndim > 1 else tensor for tensor in tensors)
    return [torch.linalg.vector_norm(torch.linalg.vector_norm(row, dim=-1)) for row in rows]


class Ema:
    """Exponential moving average of the parameters that train, in float32. Its decay warms up as (1+n)/(10+n).

    Attributes:
        average: the averages by name, sharded as the parameters are.
        updates: the number of updates so far.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.average = {n: as_shard(local(p).detach().float().clone(), p) for n, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the parameters."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averages = [local(average) for average in self.average.values()]
        current = [local(p).detach().float() for p in self.parameters.values()]
        torch._foreach_lerp_(averages, current, 1 - decay)
