"""Optimisers, learning-rate schedules and the exponential moving average."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from bagel_mot.config import Decay, NotNegative, Positive, Section, Share, Whole, must_be
from bagel_mot.training.trainable import OfficialName, matching

_Rates = Annotated[dict[str, Positive], must_be("learning rates by preset or pattern, such as {und: 1e-5}")]


@dataclass(frozen=True)
class OptimizerConfig(Section):
    """`muon` uses Muon for the matrices inside layers and AdamW for the rest; `adamw` uses AdamW for everything."""

    name: Literal["adamw", "muon"] = "adamw"
    lr: Positive = 1e-4  # AdamW's
    muon_lr: Positive = 5e-3  # scaled so that an update's RMS is 0.2·lr, as AdamW's about is
    muon_weight_decay: NotNegative = 0.0
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    eps: Positive = 1e-15
    weight_decay: NotNegative = 0.0
    clip: Positive = 1.0
    lr_of: _Rates = Field(default_factory=dict)  # AdamW's for parts, named as in `trainable`; Muon's in proportion


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
    """One or two torch optimisers behind one step, with clipping, over the parameters that train."""

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        config: OptimizerConfig,
        official_name: OfficialName = lambda name: name,
    ) -> None:
        """The optimisers that a configuration asks for.

        Args:
            named: parameters by their names in the network; those that require a gradient train.
            config: the configuration.
            official_name: a parameter's name in the official layout, for `config.lr_of`.

        Raises:
            RecipeError: a key of `config.lr_of` matches no parameter that trains.
        """
        self.config = config
        named = [(name, p) for name, p in named if p.requires_grad]
        self.parameters = [p for _, p in named]
        factors = rate_factors(config, [name for name, _ in named], official_name)
        matrices = {n for n, p in named if config.name == "muon" and is_layer_matrix(n, p)}
        self.optimizers: list[torch.optim.Optimizer] = []
        # Each optimiser's numbers as the configuration has them, and the rate of each of its groups.
        self._numbers: list[tuple[dict[str, Any], list[float]]] = []
        adamw = {"betas": config.betas, "eps": config.eps, "weight_decay": config.weight_decay}
        muon = {"weight_decay": config.muon_weight_decay}
        for taken, rate, numbers in (
            ([(n, p) for n, p in named if n not in matrices], config.lr, adamw),
            ([(n, p) for n, p in named if n in matrices], config.muon_lr, muon),
        ):
            if not taken:
                continue
            groups: dict[float, list[nn.Parameter]] = {}
            for name, parameter in taken:
                groups.setdefault(factors[name], []).append(parameter)
            rates = [rate * factor for factor in groups]
            params = [{"params": p, "lr": lr} for p, lr in zip(groups.values(), rates, strict=True)]
            self._numbers.append((numbers, rates))
            self.optimizers.append(
                torch.optim.AdamW(params, **numbers)
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
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        for optimizer, (_, rates) in zip(self.optimizers, self._numbers, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> list[dict[str, Any]]:
        """Each optimiser's state."""
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Takes moments and counts from the state, and the numbers from the configuration, which may differ."""
        for optimizer, part, (numbers, rates) in zip(self.optimizers, state, self._numbers, strict=True):
            optimizer.load_state_dict(part)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group.update(numbers, lr=rate)


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


class Ema:
    """Exponential moving average of the parameters that train, in float32. Its decay warms up as (1+n)/(10+n)."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.average = {n: p.detach().float().clone() for n, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the parameters."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averages = list(self.average.values())
        current = [p.detach().float() for p in self.parameters.values()]
        torch._foreach_lerp_(averages, current, 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        """The averages by the parameters' names, and the number of updates."""
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes averages and their count from a state."""
        self.updates = state["updates"]
        for name, value in state["average"].items():
            self.average[name].copy_(value)
