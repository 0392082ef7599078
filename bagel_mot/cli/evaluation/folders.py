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
def bars(wanted: bool) -> Iterator[Progress]:
    console = notes()
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not wanted or not console.is_terminal) as progress:
        yield progress
