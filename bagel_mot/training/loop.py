"""The training loop: one for everything that is trained, in one process or many.

It carries out the steps of a `Run`, reports them, saves checkpoints and samples, and ends when a signal asks for it.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch

from bagel_mot.allocator import LARGEST_KEPT_IN_TRAINING, keep_freed_memory
from bagel_mot.errors import DeviceError
from bagel_mot.inference.loading import choose_device
from bagel_mot.parallel.launch import Launch, launched
from bagel_mot.parallel.ranks import Ranks
from bagel_mot.placement.peaks import device_peak
from bagel_mot.threads import choose_threads
from bagel_mot.training import checkpoints
from bagel_mot.training.breakdown import with_ratios
from bagel_mot.training.metrics import Metrics, NoMetrics
from bagel_mot.training.recipe import Recipe
from bagel_mot.training.run import Run
from bagel_mot.training.task import TrainingTask
from bagel_mot.training.wandb_board import WandbBoard

Kind = TypeVar("Kind", bound=Recipe)


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
    with launched() as launch:
        config = recipe.parallel
        config.degrees(launch.world)  # before anything is loaded
        threads = choose_threads(asked=recipe.threads, processes=launch.local_world)
        with threads.at_work(), _own_folder(recipe.output, launch):
            device = own_device(choose_device(recipe.device), launch)
            if device.type == "cpu":  # before there are threads that gather weights
                keep_freed_memory(LARGEST_KEPT_IN_TRAINING, in_all_threads=True)
            ranks = Ranks(config, device, launch)
            run = Run(recipe, make_task, ranks)
            try:
                _carry_out(run, recipe.steps if stop_after is None else min(run.step + stop_after, recipe.steps))
            finally:
                run.task.close()
                run.saver.close()
    assert run.checkpoint is not None  # a step was made, or the run was interrupted
    return run.checkpoint


@contextlib.contextmanager
def _own_folder(folder: Path, launch: Launch) -> Iterator[None]:
    """Keeps other runs out of a run's folder; the first process does it for all."""
    if launch.rank:
        yield
        return
    with checkpoints.run_lock(folder):
        launch.report = folder
        yield


def own_device(device: torch.device, launch: Launch) -> torch.device:
    """The device of this process: with several on a machine, each takes the GPU of its number there.

    Raises:
        DeviceError: there are fewer GPUs than processes.
    """
    if device.type != "cuda" or launch.world == 1:
        return device
    count = torch.cuda.device_count()
    if launch.local_rank >= count:
        raise DeviceError(
            f"{launch.local_world} processes were started on this machine, which has {count} GPUs: start as many as "
            "there are, with --nproc_per_node"
        )
    torch.cuda.set_device(launch.local_rank)
    return torch.device("cuda", launch.local_rank)


def _carry_out(run: Run, end: int) -> None:
    """Steps up to `end`, with reports, samples and checkpoints."""
    recipe, task, ranks = run.recipe, run.task, run.ranks
    with interruptible() as asked, _metrics_of(run) as metrics:
        if run.step:
            metrics.note(f"resuming {recipe.output} at step {run.step}")
        trained, every = (sum(p.numel() for p in ps) for ps in (run.optimizers.parameters, task.module.parameters()))
        for note in (f"training {trained:,} of {every:,} parameters", *task.notes()):
            metrics.note(note)
        if 0 < recipe.steps < (warmup := recipe.schedule.warmup):
            share = recipe.schedule.factor(recipe.steps - 1, recipe.steps)
            metrics.note(
                f"the learning rate ends at {share:.0%} of optimizer.lr: schedule.warmup is {warmup} and steps is "
                f"{recipe.steps}"
            )
        interrupted = False
        while run.step < end and not (interrupted := ranks.any(asked())):
            metrics.advance(run.advance())
            finished = run.step == recipe.steps
            if run.step % recipe.log_every == 0 or finished:
                run.settle()
                metrics.report(run.step, {**with_ratios(run.averages.take()), **run.gauges()})
            if recipe.validation is not None and (run.step % recipe.validation.every == 0 or finished):
                with metrics.aside():
                    metrics.add(run.step, run.validate())
            sampling = run.step % recipe.sample_every == 0 or finished
            if run.step % recipe.save_every == 0 or sampling:
                run.save()
            if sampling:
                run.saver.wait()
                if ranks.first:
                    _write_samples(run, metrics)
        run.save()  # a signal loses nothing; after an error the run goes on from its last checkpoint
        run.saver.wait()
        if run.step < recipe.steps:
            metrics.note(f"stopped at step {run.step}; run the same command to go on")
            if interrupted or ranks.any(asked()):
                raise KeyboardInterrupt


def _metrics_of(run: Run) -> Metrics | NoMetrics:
    """The reports of the run, which the first process writes."""
    if not run.ranks.first:
        return NoMetrics()
    recipe, device = run.recipe, run.task.device
    one = device_peak(device) if recipe.peak_tflops is None else recipe.peak_tflops * 1e12
    board = None if recipe.wandb is None else WandbBoard(recipe.wandb, recipe.output, recipe.stored())
    return Metrics(
        recipe.output, recipe.steps, run.step, device=device, peak=one and one * run.ranks.world, wandb=board
    )


def _write_samples(run: Run, metrics: Metrics | NoMetrics) -> None:
    """Writes the samples, which are to look at: where they cannot be made, the training goes on."""
    assert run.checkpoint is not None
    try:
        sheet = run.recipe.output / "samples" / f"step-{run.step:08d}.png"
        run.task.write_samples(sheet, run.checkpoint)
        metrics.samples(run.step, sheet)
    except Exception as error:
        metrics.note(f"no samples of step {run.step}: {type(error).__name__}: {error}")
