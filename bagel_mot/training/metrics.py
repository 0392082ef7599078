"""The reports of a run while it runs: a progress bar, TensorBoard, and a line of JSON for each report."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from bagel_mot.errors import TrainingError
from bagel_mot.files import write_text
from bagel_mot.training.board import Board
from bagel_mot.training.wandb_board import WandbBoard

METRICS_FILE = "metrics.jsonl"
FLOPS = ("flops", "flops_again", "flops_published")
"""Names of the operations of a step: useful ones, those that are done again, and the published count."""


class Averages:
    """Means of numbers since they were last taken, over the steps that had them. Part of a run's state: a resumed run
    reports what an uninterrupted one does, even where it was stopped between two reports.

    Numbers may be scalar tensors on any device: they are read together, by `settle`. Of some numbers each process of a
    run has a share; these are added up.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[dict[str, Tensor | float], dict[str, Tensor | float]]] = []
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, numbers: Mapping[str, Tensor | float], shares: Mapping[str, Tensor | float] | None = None) -> None:
        """Takes one step's numbers in, unread.

        Args:
            numbers: numbers that are the same in every process.
            shares: numbers that this process has a share of, the same ones in the same order in every process.
        """
        self._pending.append((dict(numbers), dict(shares or {})))

    def settle(self, add_up: Callable[[list[float]], list[float]] = list) -> list[dict[str, float]]:
        """The numbers of each step since the last call, read from their device in one transfer.

        Args:
            add_up: adds numbers up over all processes; the default is for one.
        """
        parts = [part for step in self._pending for part in step]
        tensors = [v.detach().float() for part in parts for v in part.values() if isinstance(v, Tensor)]
        read = iter(torch.stack(tensors).tolist() if tensors else ())
        known = [{name: next(read) if isinstance(v, Tensor) else v for name, v in part.items()} for part in parts]
        summed = iter(add_up([value for shares in known[1::2] for value in shares.values()]))
        steps = [n | {name: next(summed) for name in s} for n, s in zip(known[::2], known[1::2], strict=True)]
        self._pending = []
        for step in steps:
            for name, value in step.items():
                self._sums[name] = self._sums.get(name, 0.0) + value
                self._counts[name] = self._counts.get(name, 0) + 1
        return steps

    def take(self) -> dict[str, float]:
        """The means of the settled numbers; they begin anew."""
        means = {name: value / self._counts[name] for name, value in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """Sums and counts of the settled numbers."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes sums and counts from a state."""
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])


class Metrics:
    """Reports numbers. On a terminal a bar is kept up to date; elsewhere each report is a line.

    Reports of steps after a killed run's last checkpoint are removed: those steps are done again.
    """

    def __init__(
        self,
        folder: Path,
        steps: int,
        start: int,
        *,
        device: torch.device | None = None,
        peak: float | None = None,
        wandb: WandbBoard | None = None,
    ) -> None:
        """Opens the files of a run.

        Args:
            folder: the run's folder, which exists.
            steps: the steps of the whole run.
            start: the step that the run goes on from.
            device: the device whose memory is reported.
            peak: operations a second that all devices together reach at most; None where that is not known.
            wandb: the run at Weights & Biases, if there is one.

        Raises:
            TrainingError: the file of metrics cannot be opened.
        """
        self.console = Console()
        self.steps = steps
        self._done = 0  # steps since the last report, for the throughput
        self._tokens = 0
        self._since = time.perf_counter()
        try:
            _cut_back(folder / METRICS_FILE, start)
            self._file = open(folder / METRICS_FILE, "a", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise TrainingError(f"{folder / METRICS_FILE} cannot be written: {error.strerror or error}") from error
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._bar = self._progress.add_task(folder.name, total=steps, completed=start, numbers="")
        self._started = (time.perf_counter(), start)
        self._board = Board(folder / "tensorboard", start)
        self._device, self._peak, self._wandb = device, peak, wandb

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()
        with suppress(OSError):  # an earlier line could not be written
            self._file.close()
        with self._board_may_fail():
            self._board.close()
        if self._wandb is not None:
            self._wandb.close()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leaves what is done inside out of the throughput."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - began

    def advance(self, tokens: int) -> None:
        """Counts a step, and its tokens, towards the throughput."""
        self._done += 1
        self._tokens += tokens
        self._progress.advance(self._bar)

    def report(self, step: int, numbers: dict[str, float]) -> None:
        """Numbers of a step, and the throughput, to terminal, TensorBoard and `metrics.jsonl`. Operations of a step
        become shares of the peak rate.
        """
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        rate = self._done / seconds
        work = {name: numbers[name] * rate for name in FLOPS if name in numbers}
        numbers = {name: value for name, value in numbers.items() if name not in FLOPS}
        numbers |= {"tokens_per_second": self._tokens / seconds, "steps_per_second": rate}
        if work and self._peak:
            useful, again, published = (work.get(name, 0.0) / self._peak for name in FLOPS)
            numbers |= {"mfu": useful, "hfu": useful + again, "mfu_published": published}
        if self._device is not None and self._device.type == "cuda":
            numbers["memory_gb"] = torch.cuda.max_memory_allocated(self._device) / 2**30
        self._say(step, numbers, now)
        self._keep(step, numbers)
        self._done, self._tokens, self._since = 0, 0, now

    def add(self, step: int, numbers: dict[str, float]) -> None:
        """Further numbers of a step, apart from the throughput."""
        self.note(f"step {step} " + " ".join(f"{name} {value:.4g}" for name, value in numbers.items()))
        self._keep(step, numbers)

    def _say(self, step: int, numbers: dict[str, float], now: float) -> None:
        """The main numbers, on the bar or as a line."""
        text = " ".join(f"{name} {value:.4g}" for name, value in numbers.items() if "/" not in name)
        self._progress.update(self._bar, completed=step, numbers=text)
        if not self.console.is_terminal:
            begun, first = self._started
            rate = (step - first) / max(now - begun, 1e-9)
            eta = (self.steps - step) / rate if rate else float("inf")
            print(f"step {step}/{self.steps} {text} eta {eta / 60:.1f} min", flush=True)

    def _keep(self, step: int, numbers: dict[str, float]) -> None:
        """Numbers to the file and the boards."""
        self._write(json.dumps({"step": step, "time": time.time(), **numbers}) + "\n")
        with self._board_may_fail():
            self._board.add_scalars(numbers, step)
        if self._wandb is not None:
            self._wandb.add_scalars(numbers, step)

    def samples(self, step: int, sheet: Path) -> None:
        """Shows the samples of a step in TensorBoard: a sheet, and the texts in the JSON file beside it, if there are
        any.

        Args:
            step: the step.
            sheet: a PNG file. The file of its name with `.json` holds a list of objects with the same keys.
        """
        with self._board_may_fail():
            self._board.add_sheet(sheet, step)
        if self._wandb is not None:
            self._wandb.add_sheet(sheet, step)

    def _write(self, line: str) -> None:
        """Reports are to look at: where they cannot be written, as on a full disk, the training goes on."""
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            self.note(f"{self._file.name} cannot be written: {error.strerror or error}")

    @contextmanager
    def _board_may_fail(self) -> Iterator[None]:
        """Goes on where TensorBoard cannot write, as `_write` does; it is not asked to again."""
        try:
            yield
        except OSError as error:
            self._board.give_up()
            self.note(f"TensorBoard's file cannot be written: {error.strerror or error}")

    def note(self, text: str) -> None:
        """A line for the user that does not disturb the bar."""
        self.console.print(text, highlight=False, markup=False)


class NoMetrics(contextlib.AbstractContextManager["NoMetrics"]):
    """The reports of a process that is not the first of its run: none."""

    def __exit__(self, *raised: object) -> None:
        return None

    def advance(self, tokens: int) -> None:
        """Counts nothing."""

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Changes nothing."""
        yield

    def report(self, step: int, numbers: dict[str, float]) -> None:
        """Reports nothing."""

    def add(self, step: int, numbers: dict[str, float]) -> None:
        """Adds nothing."""

    def samples(self, step: int, sheet: Path) -> None:
        """Shows nothing."""

    def note(self, text: str) -> None:
        """Says nothing."""


def _cut_back(path: Path, step: int) -> None:
    """Removes the lines of later steps, and what is left of a line that was being written."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text.splitlines()
    kept = [line for line in lines if _is_of(line, step)]
    if len(kept) < len(lines) or not text.endswith("\n"):
        write_text(path, "".join(line + "\n" for line in kept))


def _is_of(line: str, step: int) -> bool:
    try:
        return bool(json.loads(line)["step"] <= step)
    except (ValueError, KeyError, TypeError):
        return False
