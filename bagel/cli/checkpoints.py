"""`bagel init`, `convert` and `download`: checkpoints are made, changed and fetched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Optional

import typer

from bagel.cli.options import command, notes
from bagel.errors import CheckpointError, SettingError
from bagel.files import parse_size

ShardSizeOption = Annotated[
    Optional[str],  # noqa: UP045 - typer reads this annotation at run time
    typer.Option("--shard-size", help="Several files of at most this size, such as 5GB, and an index.", metavar="SIZE"),
]


@command
def init(
    folder: Annotated[Path, typer.Argument(help="New folder to write.", metavar="FOLDER")],
    config: Annotated[str, typer.Option(help="Configuration: 7b-mot (the official size) or 0.5b.", metavar="NAME")],
    random: Annotated[bool, typer.Option("--random", help="With random weights.")] = False,
    seed: Annotated[int, typer.Option(help="The same seed makes the same weights.", min=0)] = 0,
    tokenizer: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder whose vocabulary is put in; by default that of mini.", metavar="FOLDER"),
    ] = None,
    shard_size: ShardSizeOption = None,
) -> None:
    """Make a checkpoint of full size in the official layout, with random weights: for measuring and testing.

    bagel init --config 7b-mot --random bagel-random
    """
    from bagel.config import NAMED_CONFIGS

    if config not in NAMED_CONFIGS:
        raise SettingError(f"there is no configuration {config!r}: give {' or '.join(NAMED_CONFIGS)}.")
    if not random:
        raise SettingError("only random weights can be made here: give --random, or download trained ones.")
    size = None if shard_size is None else parse_size(shard_size)
    from bagel.checkpoint.random_weights import write_random_checkpoint
    from bagel.inference.loading import MINI_FOLDER
    from bagel.tokenizer import Tokenizer

    vocabulary = Tokenizer.from_folder(tokenizer or MINI_FOLDER)
    with _writing(folder), byte_bar("writing") as progress:
        write_random_checkpoint(
            folder, NAMED_CONFIGS[config], vocabulary, seed=seed, shard_size=size, progress=progress
        )
    print(folder)


@contextmanager
def byte_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar for bytes; nothing where standard error is no terminal."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = notes()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """What the system says against writing a folder, in one sentence."""
    try:
        yield
    except FileExistsError as error:
        raise CheckpointError(f"{error.strerror}: give a new folder, or remove what is there.") from error
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error.strerror or error}.") from error
