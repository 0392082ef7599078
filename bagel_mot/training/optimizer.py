"""Optimisers, learning-rate schedules and the exponential moving average."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bagel_mot.training.recipe import OptimizerRecipe, ScheduleRecipe


def schedule_factor(recipe: ScheduleRecipe, step: int, steps: int) -> float:
    """What the learning rates are multiplied by at `step` (counted from 0) of `steps`."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    if recipe.name == "constant":
        return 1.0
    if recipe.name == "cosine":
        progress = (step - recipe.warmup) / max(steps - recipe.warmup, 1)
        return recipe.floor + (1 - recipe.floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    remaining = (steps - step) / max(recipe.decay, 1)
    return recipe.floor + (1 - recipe.floor) * min(max(remaining, 0.0), 1.0)


def is_layer_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon should take a parameter: the matrices inside layers, not embeddings, heads, norms or biases."""
    return parameter.ndim == 2 and ".layers." in name


class Optimizers:
    """One or two torch optimisers behind one step, with schedule and clipping."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], recipe: OptimizerRecipe) -> None:
        self.recipe = recipe
        named = [(name, p) for name, p in named if p.requires_grad]
        self.parameters = [p for _, p in named]
        matrices = [p for n, p in named if recipe.name == "muon" and is_layer_matrix(n, p)]
        chosen = {id(p) for p in matrices}
        rest = [p for p in self.parameters if id(p) not in chosen]
        self.optimizers: list[torch.optim.Optimizer] = []
        self._numbers: list[dict[str, Any]] = []  # of each optimiser, as the recipe has them
        if rest:
            self._numbers.append(
                {"lr": recipe.lr, "betas": recipe.betas, "eps": recipe.eps, "weight_decay": recipe.weight_decay}
            )
            self.optimizers.append(torch.optim.AdamW(rest, **self._numbers[-1]))
        if matrices:
            self._numbers.append({"lr": recipe.muon_lr, "weight_decay": recipe.muon_weight_decay})
            self.optimizers.append(torch.optim.Muon(matrices, **self._numbers[-1], adjust_lr_fn="match_rms_adamw"))

    def step(self, factor: float) -> float:
        """Clips, updates and clears the gradients; returns their norm before clipping.

        Nothing is updated where the norm is not finite.
        """
        # A pack without a image, or without text, leaves parts of the network without gradient: treat it as zero, so
        # that moments decay and an update does not depend on which pack came before.
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        if not torch.isfinite(norm):
            return float(norm)
        for optimizer, numbers in zip(self.optimizers, self._numbers, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = numbers["lr"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Moments and counts are taken from the state, the numbers of a recipe from the recipe, which may differ."""
        for optimizer, part, numbers in zip(self.optimizers, state, self._numbers, strict=True):
            optimizer.load_state_dict(part)
            for group in optimizer.param_groups:
                group.update(numbers)


class Ema:
    """Exponential moving average of a module's parameters, in float32. Its decay warms up as (1+n)/(10+n)."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.parameters = dict(module.named_parameters())
        self.average = {n: p.detach().float().clone() for n, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averages = list(self.average.values())
        current = [p.detach().float() for p in self.parameters.values()]
        torch._foreach_lerp_(averages, current, 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        for name, value in state["average"].items():
            self.average[name].copy_(value)
