"""TensorBoard's events of a run: one file, which a resumed run continues."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


class Board:
    """Events in a folder. The file is opened when there is something to write, so that a run which has nothing left to
    do leaves none. Without the package tensorboard, which the extra `train` brings, nothing is written: the JSON lines
    of `metrics.jsonl` hold the same numbers.
    """

    def __init__(self, folder: Path, start: int) -> None:
        """Opens nothing yet.

        Args:
            folder: the folder of the events, which need not exist.
            start: the step that the run goes on from; events of later steps are left out, because those steps are
                done again.
        """
        self.folder = folder
        self._start = start
        self._writer: Any = None
        self._gave_up = False

    def add_scalars(self, numbers: Mapping[str, float], step: int) -> None:
        """Writes numbers of a step.

        Raises:
            OSError: the file cannot be written.
        """
        if (writer := self._opened()) is not None:
            for name, value in numbers.items():
                writer.add_scalar(name, value, step)
            writer.flush()

    def add_sheet(self, sheet: Path, step: int) -> None:
        """Writes a PNG file, and the texts of the JSON file beside it as a table, where they are.

        Raises:
            OSError: a file cannot be read or written.
        """
        texts = sheet.with_suffix(".json")
        if not (sheet.is_file() or texts.is_file()) or (writer := self._opened()) is None:
            return
        if sheet.is_file():
            with Image.open(sheet) as image:
                writer.add_image("samples", np.asarray(image.convert("RGB")), step, dataformats="HWC")
        if texts.is_file():
            writer.add_text("samples", _table(json.loads(texts.read_text(encoding="utf-8"))), step)
        writer.flush()

    def close(self) -> None:
        """Writes what is left, and closes the file.

        Raises:
            OSError: the file cannot be written.
        """
        if self._writer is not None and not self._gave_up:
            self._writer.close()

    def give_up(self) -> None:
        """Writes nothing more."""
        self._gave_up = True

    def _opened(self) -> Any:
        """PyTorch's writer of events; None without tensorboard, or after giving up."""
        if self._writer is None and not self._gave_up:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                self.give_up()
                return None
            earlier = sorted(self.folder.glob("events.out.tfevents.*"))
            self._writer = SummaryWriter(str(self.folder))
            _take_over(earlier, self._writer.file_writer, self._start)
        return None if self._gave_up else self._writer


def _take_over(earlier: list[Path], writer: Any, start: int) -> None:
    """Moves the events of earlier files up to the step `start` into a new one.

    Each process that writes events opens a file of its own, so that a run resumed several times would have as many.
    """
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    for path in earlier:
        for event in LegacyEventFileLoader(str(path)).Load():  # ends at a record that was cut off
            if event.WhichOneof("what") == "summary" and event.step <= start:
                writer.add_event(event, step=event.step, walltime=event.wall_time)
    writer.flush()
    for path in earlier:
        path.unlink()


def _table(rows: list[dict[str, Any]]) -> str:
    """Objects with the same keys as a Markdown table."""
    if not rows:
        return ""
    cells = [list(rows[0]), ["---"] * len(rows[0]), *(map(str, row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)
