"""The training loop: one for everything that is trained.

A `TrainingTask` has a step's batches, their counts and their losses; the loop adds accumulation, clipping, schedule,
EMA, checkpoints, metrics and exact resuming. Losses are sums and counts: a step's loss is `Σ weight · (Σ sum / Σ
count)` over all its packs, so accumulation gives what one large pack would.

The data of a run are logical streams, `packs_per_step` of them: a step takes one pack from each, whichever process has
it. Nothing within a step waits for the device: its numbers stay tensors until they are reported or saved, and are read
then, all at once. A pack's randomness is drawn on the device, by a generator seeded by the run's seed, the step and the
pack's stream.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from bagel_mot.allocator import LARGEST_KEPT_IN_TRAINING, keep_freed_memory
from bagel_mot.errors import RecipeError, TrainingError
from bagel_mot.model.finite import first_not_finite, is_finite
from bagel_mot.threads import choose_threads
from bagel_mot.training import checkpoints
from bagel_mot.training.metrics import Averages, Metrics
from bagel_mot.training.optimizer import Ema, Optimizers
from bagel_mot.training.recipe import Recipe

Batch = TypeVar("Batch")
Network = TypeVar("Network", bound=nn.Module)
Kind = TypeVar("Kind", bound=Recipe)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TrainingTask(ABC, Generic[Network, Batch]):
    """The network that is trained, its data and its losses.

    Attributes:
        module: the network; the parameters that require a gradient train.
        loss_weights: the weight of each loss, by name.
    """

    module: Network
    loss_weights: dict[str, float]

    @abstractmethod
    def open_streams(self, streams: Sequence[int], total: int) -> None:
        """Opens the streams of data that this process takes its batches from. Called once, before the first batch.

        Args:
            streams: the numbers of this process's streams.
            total: the number of streams of the run; what a stream holds depends on its number and on this alone.
        """

    @abstractmethod
    def next_batches(self) -> list[Batch]:
        """The next pack, or batch, of each stream of this process, in the order in which they were opened."""

    @abstractmethod
    def counts(self, batch: Batch) -> dict[str, float]:
        """The divisor of each loss of a batch, such as tokens or images: known before the losses, and on the host."""

    @abstractmethod
    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Summed losses, scalars under the same names; all randomness comes from `generator`, on the device."""

    @abstractmethod
    def tokens(self, batch: Batch) -> int:
        """Tokens (or images) in a batch, for the throughput."""

    def kept_tensors(self) -> dict[str, Tensor]:
        """The tensors of the network that a training state keeps, by name: the parameters that train, and buffers,
        which a checkpoint may hold rounded.
        """
        trained = {name: p.detach() for name, p in self.module.named_parameters() if p.requires_grad}
        return {**trained, **dict(self.module.named_buffers())}

    def official_name(self, name: str) -> str:
        """The name in the official layout of a parameter of the network."""
        return name

    def notes(self) -> list[str]:
        """Sentences for the user, shown when the training begins."""
        return []

    def gauges(self, states: Sequence[Any]) -> dict[str, float]:
        """Further numbers to report, from the states of all streams of the run."""
        return {}

    @abstractmethod
    def data_state(self) -> dict[int, Any]:
        """Where each stream of this process stands just after the last `next_batches`, as JSON, by its number."""

    @abstractmethod
    def load_data_state(self, states: Sequence[Any]) -> None:
        """Puts the streams of this process back there, before the first batch.

        Args:
            states: the states of all streams of the run, by their numbers.
        """

    @abstractmethod
    def write_weights(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Writes a whole checkpoint in the official layout.

        Args:
            folder: the checkpoint's folder.
            weights: the averaged parameters that train, by their names in the module.
        """

    @abstractmethod
    def write_samples(self, path: Path, checkpoint: Path) -> None:
        """Draws a sheet of samples with a checkpoint's weights."""

    def close(self) -> None:
        """Ends background work."""


def step_seed(seed: int, step: int, stream: int = 0) -> int:
    """The seed of the randomness of the pack that a step takes from a stream."""
    name = f"noise {seed} {step} {stream}" if stream else f"noise {seed} {step}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


class Run:
    """A recipe being carried out: everything that changes with a step. A checkpoint holds all of it."""

    def __init__(self, recipe: Kind, make_task: Callable[[Kind], TrainingTask[Any, Any]]) -> None:
        """Begins, or goes on from the newest checkpoint.

        Raises:
            RecipeError: if the newest checkpoint is of another recipe, or damaged, or the weights to begin with are not
                finite.
        """
        state = checkpoints.load_latest(recipe.output)
        self.streams: int = recipe.packs_per_step or (1 if state is None else state["streams"])
        recipe = dataclasses.replace(recipe, packs_per_step=self.streams)
        if state is not None:
            recipe.check_resumes(state["recipe"])
        self.recipe, self.task = recipe, make_task(recipe)
        self.mine = range(self.streams)  # the streams of this process
        self.task.open_streams(self.mine, self.streams)
        module = self.task.module
        self.step = 0
        self.optimizers = Optimizers(module.named_parameters(), recipe.optimizer, self.task.official_name)
        self.ema = Ema(module, recipe.ema)
        self.generator = torch.Generator(next(module.parameters()).device)
        self.averages = Averages()
        self.checkpoint: Path | None = None
        if state is not None:
            self.checkpoint = checkpoints.latest(recipe.output)
            self._load_state_dict(state)
        if (name := self._not_finite()) is not None:
            whose = f"{self.checkpoint} holds" if self.checkpoint else "the checkpoint to start from holds"
            advice = "remove it to resume from the one before" if self.checkpoint else "download or convert it anew"
            raise RecipeError(f"{whose} infinite values or values that are not numbers in {name}: {advice}")
        self._saved = self.step

    def save(self) -> None:
        """Writes a checkpoint, unless there is one of this very step.

        Raises:
            TrainingError: if it cannot be written, or a gradient since the last report or a weight is not finite.
        """
        if self._saved != self.step:
            self.settle()
            if (name := self._not_finite()) is not None:
                raise self._lost(f"{name} is not finite after step {self.step}")
            self.checkpoint = checkpoints.save(
                self.recipe.output,
                self.step,
                self._state_dict(),
                lambda folder: self.task.write_weights(folder, self.ema.average),
                self.recipe.keep,
            )
            self._saved = self.step

    def _state_dict(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.stored(),
            "step": self.step,
            "module": self.task.kept_tensors(),
            "optimizers": self.optimizers.state_dict(),
            "ema": self.ema.state_dict(),
            "streams": self.streams,
            "data": self._data_states(),
            "averages": self.averages.state_dict(),
        }

    def _data_states(self) -> list[Any]:
        """The states of all streams, by their numbers."""
        states = self.task.data_state()
        return [states[number] for number in range(self.streams)]

    def notes(self) -> list[str]:
        """Sentences for the user, shown when the training begins."""
        return []

    def gauges(self) -> dict[str, float]:
        """The task's further numbers to report."""
        return self.task.gauges(self._data_states())

    def _load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        try:
            loaded = self.task.module.load_state_dict(state["module"], strict=False)
            if lacking := sorted(set(loaded.missing_keys) & self.ema.parameters.keys()):
                raise ValueError(f"there is no {lacking[0]}")
            self.optimizers.load_state_dict(state["optimizers"])
        except (RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise RecipeError(
                f"the weights or moments in {self.checkpoint} do not fit this recipe ({reason}): "
                "go on with the recipe they were trained with, or give another output"
            ) from error
        self.ema.load_state_dict(state["ema"])
        self.task.load_data_state(state["data"])
        self.averages.load_state_dict(state["averages"])

    def advance(self) -> int:
        """One step of the optimiser, over a batch of each stream; returns their tokens."""
        recipe, task = self.recipe, self.task
        batches = task.next_batches()
        seeds = [step_seed(recipe.seed, self.step, stream) for stream in self.mine]
        means = _backward(task, batches, seeds, self.generator, DTYPES[recipe.precision])
        factor = recipe.schedule.factor(self.step, recipe.steps)
        norm = self.optimizers.step(factor)
        self.ema.update()
        self.step += 1
        self.averages.add({**means, "grad_norm": norm, "lr": factor * recipe.optimizer.lr})
        return sum(task.tokens(batch) for batch in batches)

    def settle(self) -> None:
        """Reads the numbers of the steps since the last call from the device.

        Raises:
            TrainingError: if the gradient of one of them was not finite: the weights are lost.
        """
        steps = self.averages.settle()
        for step, numbers in enumerate(steps, self.step - len(steps) + 1):
            if not math.isfinite(numbers["grad_norm"]):
                raise self._lost(f"the gradient of step {step} is {numbers['grad_norm']}")

    def _lost(self, what: str) -> TrainingError:
        """The error of weights that are lost."""
        return TrainingError(
            f"{what}: the last checkpoint is {self.checkpoint or 'none'}; lower the learning rate, or train in float32"
        )

    def _not_finite(self) -> str | None:
        """The name of a weight, or of a weight's average, that is not finite; None if all are."""
        found = first_not_finite(self.task.module)
        if found is not None:
            return found[0]
        return next((name for name, average in self.ema.average.items() if not is_finite(average)), None)


def _backward(
    task: TrainingTask[Any, Batch],
    batches: Sequence[Batch],
    seeds: Sequence[int],
    generator: torch.Generator,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Adds up the gradients of a step's batches, each with the randomness of its seed; returns each loss, a scalar
    averaged over all of them. A loss that nothing counts for is left out.
    """
    totals: dict[str, float] = {}
    for batch in batches:
        for name, count in task.counts(batch).items():
            totals[name] = totals.get(name, 0.0) + count
    means: dict[str, Tensor] = {}
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
                means[name] = means.get(name, 0.0) + part.detach()
    return means


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turns the first SIGINT or SIGTERM into an answer to "was I interrupted?", so that what is at hand ends and is
    saved.

    A second signal raises KeyboardInterrupt at once, wherever the program is. Outside the main thread, where Python
    hears no signals, the answer stays False.
    """
    asked = False

    def handle(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError):  # not in the main thread
            before[number] = signal.signal(number, handle)
    try:
        yield lambda: asked
    finally:
        for number, old in before.items():
            # None: installed by something other than Python, which cannot put it back
            signal.signal(number, signal.SIG_DFL if old is None else old)


def train(recipe: Kind, make_task: Callable[[Kind], TrainingTask[Any, Any]], *, stop_after: int | None = None) -> Path:
    """Runs, or resumes, a recipe; returns the newest checkpoint's folder.

    The first SIGINT or SIGTERM lets the step or save at hand end, and saves before it is raised as KeyboardInterrupt;
    the second ends at once.

    Args:
        recipe: the run's recipe.
        make_task: makes the task, with its weights initialised.
        stop_after: end after this many steps, at least one, in this call (saved, resumable).

    Raises:
        RecipeError: if the run was begun with a recipe that this one cannot go on from.
        TrainingError: if a gradient is not finite, a checkpoint or the folder cannot be written, or a run is being
            trained in it already.
        KeyboardInterrupt: if a signal ended the run before its last step.
    """
    with choose_threads(asked=recipe.threads).at_work(), checkpoints.run_lock(recipe.output):
        run = Run(recipe, make_task)
        try:
            _carry_out(run, recipe.steps if stop_after is None else min(run.step + stop_after, recipe.steps))
        finally:
            run.task.close()
    assert run.checkpoint is not None  # a step was made, or the run was interrupted
    return run.checkpoint


def _carry_out(run: Run, end: int) -> None:
    """Steps up to `end`, with reports, samples and checkpoints."""
    recipe, task = run.recipe, run.task
    if next(task.module.parameters()).device.type == "cpu":
        keep_freed_memory(LARGEST_KEPT_IN_TRAINING)
    with interruptible() as interrupted, Metrics(recipe.output, recipe.steps, run.step) as metrics:
        if run.step:
            metrics.note(f"resuming {recipe.output} at step {run.step}")
        trained, whole = (sum(p.numel() for p in ps) for ps in (run.optimizers.parameters, task.module.parameters()))
        for note in (f"training {trained:,} of {whole:,} parameters", *task.notes()):
            metrics.note(note)
        while run.step < end and not interrupted():
            metrics.advance(run.advance())
            finished = run.step == recipe.steps
            if run.step % recipe.log_every == 0 or finished:
                run.settle()
                metrics.report(run.step, {**run.averages.take(), **run.gauges()})
            sampling = run.step % recipe.sample_every == 0 or finished
            if run.step % recipe.save_every == 0 or sampling:
                run.save()
            if sampling:
                _write_samples(run, metrics)
        run.save()  # a signal loses nothing; after an error the run goes on from its last checkpoint
        if run.step < recipe.steps:
            metrics.note(f"stopped at step {run.step}; run the same command to go on")
            if interrupted():
                raise KeyboardInterrupt


def _write_samples(run: Run, metrics: Metrics) -> None:
    """Writes the samples, which are to look at: where they cannot be made, the training goes on."""
    assert run.checkpoint is not None
    try:
        sheet = run.recipe.output / "samples" / f"step-{run.step:08d}.png"
        run.task.write_samples(sheet, run.checkpoint)
        metrics.samples(run.step, sheet)
    except Exception as error:
        metrics.note(f"no samples of step {run.step}: {type(error).__name__}: {error}")
