"""A run: a recipe being carried out step by step, with all that a checkpoint holds of it.

Nothing within a step waits for the device: its numbers stay tensors until they are reported or saved, and are read
then, all at once. A pack's randomness is drawn on the device, by a generator seeded by the run's seed, the step and the
pack's stream.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from bagel_mot.errors import RecipeError, TrainingError
from bagel_mot.model.finite import is_finite
from bagel_mot.parallel.ranks import Ranks
from bagel_mot.parallel.shards import local, whole
from bagel_mot.training import checkpoints
from bagel_mot.training.breakdown import with_ratios
from bagel_mot.training.metrics import Averages
from bagel_mot.training.optimizer import Ema, Optimizers
from bagel_mot.training.recipe import Recipe
from bagel_mot.training.task import TrainingTask

Batch = TypeVar("Batch")
Kind = TypeVar("Kind", bound=Recipe)
_TOKENS = " tokens"  # no name of a loss


def step_seed(seed: int, step: int, stream: int = 0) -> int:
    """The seed of the randomness of the pack that a step takes from a stream."""
    name = f"noise {seed} {step} {stream}" if stream else f"noise {seed} {step}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


class Run:
    """A recipe being carried out: everything that changes with a step. A checkpoint holds all of it."""

    def __init__(
        self, recipe: Kind, make_task: Callable[[Kind], TrainingTask[Any, Any]], ranks: Ranks | None = None
    ) -> None:
        """Begins, or goes on from the newest checkpoint.

        Raises:
            RecipeError: if the newest checkpoint is of another recipe, or damaged, or the weights to begin with are not
                finite; or if the run cannot be divided among the processes.
        """
        self.ranks = ranks = ranks or Ranks.alone()
        newest = ranks.from_first(lambda: next(iter(checkpoints.checkpoint_folders(recipe.output)[::-1]), None))
        state = None if newest is None else checkpoints.read_state(newest)
        self.streams: int = recipe.packs_per_step or (ranks.degrees.data if state is None else state["streams"])
        recipe = dataclasses.replace(recipe, packs_per_step=self.streams)
        if state is not None:
            recipe.check_resumes(state["recipe"])
        self.mine = ranks.streams(self.streams)  # the streams of this process
        self.recipe, self.task = recipe, make_task(recipe)
        self.task.parallelise(ranks)
        self.task.open_streams(self.mine, self.streams)
        module = self.task.module
        self.step = 0
        self.optimizers = Optimizers(
            module.named_parameters(),
            recipe.optimizer,
            self.task.official_name,
            ranks,
            offload=recipe.parallel.offload_optimizer,
            partial=self.task.partial_parameters(),
        )
        self.ema = Ema(module, recipe.ema)
        self.generator = torch.Generator(self.task.device)
        self.averages = Averages()
        self.saver = checkpoints.Saver(
            recipe.output, recipe.keep, ranks, newest, background=recipe.save_async and self.task.writes_beside
        )
        if state is not None:
            self._load(state)
        if (name := self._not_finite()) is not None:
            whose = f"{newest} holds" if newest else "the checkpoint to start from holds"
            advice = "remove it to resume from the one before" if newest else "download or convert it anew"
            raise RecipeError(f"{whose} infinite values or values that are not numbers in {name}: {advice}")
        self._saved = self.step

    @property
    def checkpoint(self) -> Path | None:
        """The newest whole checkpoint."""
        return self.saver.newest

    def save(self) -> None:
        """Writes a checkpoint, unless there is one of this very step; with `save_async` it may still be written when
        this returns.

        Raises:
            TrainingError: if it, or the one before it, cannot be written, or a gradient since the last report or a
                weight is not finite.
        """
        if self._saved != self.step:
            self.settle()
            if (name := self._not_finite()) is not None:
                raise self._lost(f"{name} is not finite after step {self.step}")
            weights = self._official_weights()
            self.saver.save(
                self.step, self._tensors(), self._state(), lambda folder: self.task.write_weights(folder, weights)
            )
            self._saved = self.step

    def _official_weights(self) -> dict[str, Tensor]:
        """A copy of what the official layout holds, whole and in main memory, in the first process: the averages of the
        parameters that train, and everything else as it is.
        """
        weights: dict[str, Tensor] = {}
        dtype = self.task.stored_dtype
        for name, tensor in self.task.written_tensors().items():
            gathered = whole(self.ema.average.get(name, tensor).detach())
            if self.ranks.first:
                moved = gathered.to(dtype if gathered.is_floating_point() and dtype else gathered.dtype)
                weights[name] = moved.to("cpu", copy=moved.data_ptr() == gathered.data_ptr())
        return weights

    def _tensors(self) -> dict[str, Tensor]:
        return {
            **{f"module.{name}": tensor for name, tensor in self.task.kept_tensors().items()},
            **{f"ema.{name}": average for name, average in self.ema.average.items()},
            **{f"optimizer.{name}": tensor for name, tensor in self.optimizers.tensors().items()},
        }

    def _state(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.stored(),
            "step": self.step,
            "updates": self.ema.updates,
            "streams": self.streams,
            "data": self._data_states(),
            "averages": self.averages.state_dict(),
        }

    def _data_states(self) -> list[Any]:
        """The states of all streams, by their numbers."""
        states: dict[int, Any] = {}
        for part in self.ranks.gather(self.task.data_state()):
            states |= part
        return [states[number] for number in range(self.streams)]

    def gauges(self) -> dict[str, float]:
        """The task's further numbers to report."""
        return self.task.gauges(self._data_states())

    def validate(self) -> dict[str, float]:
        """The losses on validation data, of all processes."""
        own = self.task.validation()
        values = [float(value) for value in own.values()]
        return with_ratios(dict(zip(own, self.ranks.sum_over_all(values), strict=True)))

    def _load(self, state: dict[str, Any]) -> None:
        assert self.checkpoint is not None
        self.step, self.ema.updates = state["step"], state["updates"]
        stored = checkpoints.stored_tensors(self.checkpoint)
        moments = {n.removeprefix("optimizer."): s for n, s in stored.items() if n.startswith("optimizer.")}
        room = {name: tensor for name, tensor in self._tensors().items() if not name.startswith("optimizer.")}
        try:
            for name, tensor in room.items():
                if name not in stored or stored[name][0] != tensor.shape:
                    raise ValueError(f"there is no {name} of the shape {tuple(tensor.shape)}")
            made = self.optimizers.make_room(moments)
        except ValueError as error:
            raise RecipeError(
                f"the weights or moments in {self.checkpoint} do not fit this recipe ({error}): "
                "go on with the recipe they were trained with, or give another output"
            ) from error
        room |= {f"optimizer.{name}": tensor for name, tensor in made.items()}
        checkpoints.load_tensors(self.checkpoint, room, self.ranks)
        self.optimizers.refresh()
        self.task.load_data_state(state["data"])
        self.averages.load_state_dict(state["averages"])

    def advance(self) -> int:
        """One step of the optimiser, over a batch of each stream; returns their tokens."""
        recipe, task = self.recipe, self.task
        self.saver.poll()
        batches = task.next_batches()
        seeds = [step_seed(recipe.seed, self.step, stream) for stream in self.mine]
        counts = [task.counts(batch) for batch in batches]
        own = {name: sum(count[name] for count in counts) for name in counts[0]}
        total = self.ranks.sum_over_data({**own, _TOKENS: sum(task.tokens(batch) for batch in batches)})
        tokens = int(total.pop(_TOKENS))
        shares = backward(task, batches, seeds, total, self.generator, recipe.dtype)
        details = task.take_details()
        factor = recipe.schedule.factor(self.step, recipe.steps)
        norm = self.optimizers.step(factor)
        self.ema.update()
        self.step += 1
        self.averages.add({"grad_norm": norm, "lr": factor * recipe.optimizer.lr}, {**shares, **details})
        return tokens

    def settle(self) -> None:
        """Reads the numbers of the steps since the last call from the device, and adds up those of all processes.

        Raises:
            TrainingError: if the gradient of one of them was not finite: the weights are lost.
        """
        steps = self.averages.settle(self.ranks.sum_over_all)
        for step, numbers in enumerate(steps, self.step - len(steps) + 1):
            if not math.isfinite(numbers["grad_norm"]):
                raise self._lost(f"the gradient of step {step} is {numbers['grad_norm']}")

    def _lost(self, what: str) -> TrainingError:
        """The error of weights that are lost."""
        self.saver.wait()
        return TrainingError(
            f"{what}: the last checkpoint is {self.checkpoint or 'none'}; lower the learning rate, or train in float32"
        )

    def _not_finite(self) -> str | None:
        """The name of a weight, or of a weight's average, that is not finite in any process; None if all are."""
        named = [*self.task.module.state_dict().items(), *self.ema.average.items()]
        own = next((name for name, tensor in named if not is_finite(local(tensor.detach()))), None)
        return next((name for name in self.ranks.gather(own) if name is not None), None)


def backward(
    task: TrainingTask[Any, Batch],
    batches: Sequence[Batch],
    seeds: Sequence[int],
    totals: Mapping[str, float],
    generator: torch.Generator,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Adds up the gradients of this process's batches of a step, each with the randomness of its seed.

    Args:
        task: the task.
        batches, seeds: the batches and the seeds of their randomness.
        totals: the divisor of each loss, over the batches of all processes.
        generator: draws the randomness.
        dtype: the type of matmuls.

    Returns:
        This process's share of each loss, a scalar: they add up to the mean over all batches. A loss that nothing
        counts for is left out.
    """
    shares: dict[str, Tensor] = {}
    for batch, seed in zip(batches, seeds, strict=True):
        generator.manual_seed(seed)
        with torch.autocast(generator.device.type, dtype, enabled=dtype != torch.float32):
            sums = task.losses(batch, generator)
        parts = {name: value / max(totals[name], 1.0) for name, value in sums.items()}
        loss = torch.stack([task.loss_weights[name] * part for name, part in parts.items()]).sum()
        if loss.requires_grad:
            loss.backward()
        for name, part in parts.items():
            if totals[name]:
                shares[name] = shares.get(name, 0.0) + part.detach()
    return shares
