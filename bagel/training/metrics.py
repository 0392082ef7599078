"""What a run tells while it runs: a progress bar, TensorBoard, and a line of JSON for each report."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Metrics:
    """Collects numbers between reports. On a terminal a bar is kept up to date; elsewhere each report is a line."""

    def __init__(self, folder: Path, steps: int, start: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.console = Console()
        self.steps = steps
        self._sums: dict[str, float] = {}
        self._reports = 0
        self._tokens = 0
        self._since = time.perf_counter()
        self._file = open(folder / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        self._board = _tensorboard(folder)
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

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()
        self._file.close()
        if self._board is not None:
            self._board.close()

    def add(self, numbers: dict[str, float], tokens: int) -> None:
        """Takes one step's numbers in."""
        for name, value in numbers.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._reports += 1
        self._tokens += tokens
        self._progress.advance(self._bar)

    def report(self, step: int) -> dict[str, float]:
        """Averages since the last report, to terminal, TensorBoard and `metrics.jsonl`."""
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        numbers = {name: value / max(self._reports, 1) for name, value in self._sums.items()}
        numbers["tokens_per_second"] = self._tokens / seconds
        numbers["steps_per_second"] = self._reports / seconds
        text = " ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        self._progress.update(self._bar, completed=step, numbers=text)
        if not self.console.is_terminal:
            begun, first = self._started
            rate = (step - first) / max(now - begun, 1e-9)
            eta = (self.steps - step) / rate if rate else float("inf")
            print(f"step {step}/{self.steps} {text} eta {eta / 60:.1f} min", flush=True)
        self._file.write(json.dumps({"step": step, "time": time.time(), **numbers}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)
        self._sums, self._reports, self._tokens, self._since = {}, 0, 0, now
        return numbers

    def note(self, text: str) -> None:
        """A line for the user that does not disturb the bar."""
        self.console.print(text, highlight=False)


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None  # the `train` extra has it; the JSON lines hold the same numbers
    return SummaryWriter(str(folder / "tensorboard"))
