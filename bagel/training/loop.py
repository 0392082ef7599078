"""The training loop: one for everything that is trained.

A `Task` says what a step's batches are, what they count and what they lose; the loop adds accumulation, clipping,
schedule, EMA, checkpoints, metrics and exact resuming. Losses are sums and counts: a step's loss is `Σ weight · (Σ
sum / Σ count)` over all its packs, so accumulation gives what one large pack would.
"""

from __future__ import annotations

import contextlib
import math
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from bagel.errors import TrainingError
from bagel.training import checkpoints
from bagel.training.metrics import Metrics
from bagel.training.optimizer import Ema, Optimizers, schedule_factor
from bagel.training.recipe import Recipe

Batch = TypeVar("Batch")
Network = TypeVar("Network", bound=nn.Module)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Task(ABC, Generic[Network, Batch]):
    """What is trained, and on what."""

    module: Network
    loss_weights: dict[str, float]

    @abstractmethod
    def next_batch(self) -> Batch:
        """The next pack, or batch, of the data stream."""

    @abstractmethod
    def counts(self, batch: Batch) -> dict[str, float]:
        """What each loss of this batch is divided by: tokens, or pictures."""

    @abstractmethod
    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Summed losses, under the same names. All randomness comes from `generator` (on the CPU)."""

    @abstractmethod
    def tokens(self, batch: Batch) -> int:
        """Tokens (or pictures) in a batch, for the throughput."""

    @abstractmethod
    def data_state(self) -> Any:
        """Where the data stream stands just after the last `next_batch`."""

    @abstractmethod
    def load_data_state(self, state: Any) -> None:
        """Puts the data stream back there."""

    @abstractmethod
    def write_weights(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Writes the averaged weights in the official layout."""

    @abstractmethod
    def write_samples(self, path: Path, checkpoint: Path) -> None:
        """Draws a sheet of samples with a checkpoint's weights."""

    def close(self) -> None:
        """Ends background work."""


@contextlib.contextmanager
def _until_interrupted() -> Iterator[list[bool]]:
    """Turns the first SIGINT or SIGTERM into a flag, so that the step at hand ends and is saved."""
    stop = [False]

    def handle(number: int, frame: object) -> None:
        if stop[0]:
            raise KeyboardInterrupt
        stop[0] = True

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError):  # not in the main thread: no signals here
            before[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def train(recipe: Recipe, task: Task[Any, Any], *, stop_after: int | None = None) -> Path | None:
    """Runs, or resumes, a recipe; returns the last checkpoint's folder.

    Args:
        recipe: what every run has.
        task: what this one trains. Its weights must be initialised.
        stop_after: end after this many steps in this call, as an interruption would (saved, resumable).
    """
    device = next(task.module.parameters()).device
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    run = recipe.output
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizers = Optimizers(task.module.named_parameters(), recipe.optimizer)
    ema = Ema(task.module, recipe.ema)
    step = 0
    state = checkpoints.load_latest(run)
    if state is not None:
        step = state["step"]
        task.module.load_state_dict(state["module"])
        optimizers.load_state_dict(state["optimizers"])
        ema.load_state_dict(state["ema"])
        generator.set_state(state["generator"])
        task.load_data_state(state["data"])
        del state

    def save() -> Path:
        return checkpoints.save(
            run,
            step,
            {
                "step": step,
                "module": task.module.state_dict(),
                "optimizers": optimizers.state_dict(),
                "ema": ema.state_dict(),
                "generator": generator.get_state(),
                "data": task.data_state(),
            },
            lambda folder: task.write_weights(folder, ema.average),
            recipe.keep,
        )

    last: Path | None = None
    first = step
    autocast = torch.autocast(device.type, DTYPES[recipe.precision], enabled=recipe.precision != "float32")
    try:
        with _until_interrupted() as stop, Metrics(run, recipe.steps, step) as metrics:
            if step:
                metrics.note(f"resuming {run} at step {step}")
            while step < recipe.steps and not stop[0]:
                batches = [task.next_batch() for _ in range(recipe.accumulate)]
                totals: dict[str, float] = {}
                for batch in batches:
                    for name, count in task.counts(batch).items():
                        totals[name] = totals.get(name, 0.0) + count
                means = dict.fromkeys(totals, 0.0)
                for batch in batches:
                    with autocast:
                        sums = task.losses(batch, generator)
                    parts = {name: value / max(totals[name], 1.0) for name, value in sums.items()}
                    loss = sum(task.loss_weights[name] * part for name, part in parts.items())
                    if isinstance(loss, Tensor) and loss.requires_grad:
                        loss.backward()
                    for name, part in parts.items():
                        means[name] += float(part.detach())
                factor = schedule_factor(recipe.schedule, step, recipe.steps)
                norm = optimizers.step(factor)
                if not math.isfinite(norm):
                    raise TrainingError(
                        f"the gradient of step {step + 1} is {norm}: the last checkpoint is {last or 'none'}; "
                        "lower the learning rate, or train in float32"
                    )
                ema.update()
                step += 1
                metrics.add(
                    {**means, "grad_norm": norm, "lr": factor * recipe.optimizer.lr},
                    sum(task.tokens(b) for b in batches),
                )
                if step % recipe.log_every == 0 or step == recipe.steps:
                    metrics.report(step)
                finished = step == recipe.steps
                stopping = stop[0] or (stop_after is not None and step - first >= stop_after)
                sampling = step % recipe.sample_every == 0 or finished
                if step % recipe.save_every == 0 or sampling or stopping:
                    last = save()
                    if sampling:
                        task.write_samples(run / "samples" / f"step-{step:08d}.png", last)
                if stopping:
                    metrics.note(f"stopped at step {step}; run the same command to go on")
                    break
    finally:
        task.close()
    return last
