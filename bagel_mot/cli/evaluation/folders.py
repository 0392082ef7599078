"""Parts of every run: the lock of its folder, and bars of progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bagel_mot.cli.options import notes
from bagel_mot.files import locked, writing

if TYPE_CHECKING:
    from bagel_mot.parallel.launch import Launch


@contextmanager
def owned(folder: Path, launch: Launch) -> Iterator[None]:
    """Keeps other runs out of a folder, which is made."""
    with writing(folder, "give another --out"):
        folder.mkdir(parents=True, exist_ok=True)
        if launch.rank:
            yield
            return
        with locked(folder, folder):
            yield


@contextmanager
def bars(wanted: bool, *, over: float = 30.0) -> Iterator[Progress]:
    """Bars of progress on standard error, if it is a terminal.

    Args:
        wanted: whether to show them.
        over: the seconds whose speed tells the time that is left.
    """
    console = notes()
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    off = not wanted or not console.is_terminal
    with Progress(*columns, console=console, disable=off, speed_estimate_period=over) as progress:
        yield progress
