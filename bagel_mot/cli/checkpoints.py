"""`bagel init`, `convert` and `download`: making, converting and fetching checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from bagel_mot.cli.options import JsonOption, command, new_table, progress_bar, tables, write_json
from bagel_mot.cli.weights import Weights, load
from bagel_mot.errors import CheckpointError, SettingError
from bagel_mot.files import parse_size, user_path, writing

if TYPE_CHECKING:
    from bagel_mot.checkpoint.compare import TensorError

FORMAT_HELP = (
    "The format of the decoder's big matrices: bf16, fp8, int8, nf4 (lossy), int4 (lossy), gguf-q8_0, gguf-q4_0 "
    "(lossy), gguf-bf16 or gguf-f16; the rest is bfloat16."
)
OFFICIAL = "ByteDance-Seed/BAGEL-7B-MoT"
_WORST = 10  # tensors shown
_ITEMS = 50
ShardSizeOption = Annotated[
    Optional[str],  # noqa: UP045 - typer reads this annotation at run time
    typer.Option("--shard-size", help="Write an index and files of at most this size, such as 5GB.", metavar="SIZE"),
]


@command
def init(
    folder: Annotated[Path, typer.Argument(help="New folder to write.", metavar="FOLDER")],
    config: Annotated[str, typer.Option(help="Configuration: 7b-mot (the official size) or 0.5b.", metavar="NAME")],
    random: Annotated[bool, typer.Option("--random", help="Use random weights.")] = False,
    seed: Annotated[int, typer.Option(help="The same seed makes the same weights.", min=0)] = 0,
    tokenizer: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder with the vocabulary to use; by default that of mini.", metavar="FOLDER"),
    ] = None,
    shard_size: ShardSizeOption = None,
) -> None:
    """Make a checkpoint of full size in the official layout, with random weights: for measuring and testing.

    bagel init --config 7b-mot --random bagel-random
    """
    from bagel_mot.config import NAMED_CONFIGS

    if config not in NAMED_CONFIGS:
        raise SettingError(f"there is no configuration {config!r}: give {' or '.join(NAMED_CONFIGS)}.")
    if not random:
        raise SettingError("only random weights can be made here: give --random, or download trained ones.")
    size = None if shard_size is None else parse_size(shard_size)
    from bagel_mot.checkpoint.random_weights import write_random_checkpoint
    from bagel_mot.inference.loading import MINI_FOLDER
    from bagel_mot.tokenizer import Tokenizer

    vocabulary = Tokenizer.from_folder(tokenizer or MINI_FOLDER)
    with _writing(folder), progress_bar("writing", in_bytes=True) as progress:
        write_random_checkpoint(
            folder, NAMED_CONFIGS[config], vocabulary, seed=seed, shard_size=size, progress=progress
        )
    print(folder)


@command
def convert(
    source: Annotated[
        str,
        typer.Argument(help="mini, a checkpoint folder, a file with weights in one, or a hub id.", metavar="SOURCE"),
    ],
    folder: Annotated[Path, typer.Argument(help="New folder to write.", metavar="FOLDER")],
    stored: Annotated[str, typer.Option("--format", help=FORMAT_HELP, metavar="FORMAT")] = "bf16",
    merge_adapter: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--merge-adapter",
            help="An adapter to merge into the weights: its folder, that of a run that trains one, or a hub id; a "
            "strength may follow, as in runs/dogs:0.5. Repeatable.",
            metavar="PLACE",
        ),
    ] = None,
    shard_size: ShardSizeOption = None,
    check: Annotated[
        bool, typer.Option("--check", help="Read it back and report errors; for mini, its scores too.")
    ] = False,
    items: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="With --check of mini: items in each row of the evaluation; 50 by default.", min=1),
    ] = None,
    json: JsonOption = None,
) -> None:
    """Write a checkpoint in another precision or file format, or with adapters merged into it.

    bagel convert ByteDance-Seed/BAGEL-7B-MoT bagel-int8 --format int8
    """
    from bagel_mot.checkpoint.convert import check_request
    from bagel_mot.checkpoint.convert import convert as run
    from bagel_mot.inference.adapters import with_strength
    from bagel_mot.inference.loading import MINI, find_adapter, find_checkpoint

    size = None if shard_size is None else parse_size(shard_size)
    if items is not None and not (check and source == MINI):
        raise SettingError(f"--items {items} is for --check of mini: leave it out, or give both.")
    if not user_path(source, CheckpointError).exists():  # before it is fetched
        with _writing(folder):
            check_request(None, folder, stored, size)
    typed = [with_strength(text) for text in merge_adapter or ()]
    adapters = [(find_adapter(place), strength) for place, strength in typed]
    where = find_checkpoint(source)
    with _writing(folder):
        check_request(where, folder, stored, size)
    with _writing(folder), progress_bar("converting", in_bytes=True) as progress:
        run(where, folder, stored, adapters=adapters, shard_size=size, progress=progress)
    written = sum(path.stat().st_size for path in folder.iterdir())
    report: dict[str, Any] = {"source": source, "folder": str(folder), "format": stored, "bytes": written}
    if merge_adapter:
        report["adapters"] = merge_adapter
    if check:
        from bagel_mot.checkpoint.compare import mean_by_kind, relative_errors

        with progress_bar("comparing") as compared:
            errors = relative_errors(where, folder, compared, adapters=adapters)
        means = mean_by_kind(errors)
        report["error_by_kind"] = means
        report["tensors"] = [{"name": row.name, "kind": row.kind, "error": row.error} for row in errors]
        if json != "-":
            _print_errors(errors, means)
        if source == MINI:
            report["evaluation"] = _compare_scores(source, folder, items or _ITEMS)
            if json != "-":
                _print_scores(report["evaluation"], stored)
    if json != "-":
        print(folder)
    write_json(json, report)


@command
def download(
    repository: Annotated[str, typer.Argument(help="Name at the hub.", metavar="REPO")] = OFFICIAL,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--output",
            "-o",
            "--to",  # its name in 0.1.0
            help="Folder to put it in; by default the hub's cache, where it is found by name.",
            metavar="FOLDER",
        ),
    ] = None,
    revision: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Branch, tag or commit; by default the main branch.", metavar="REV"),
    ] = None,
    stored: Annotated[
        str,
        typer.Option(
            "--format",
            help="Convert it to this format and write it to --output, as `bagel convert` does; the download stays in "
            "the hub's cache. bf16: the files as they are.",
            metavar="FORMAT",
        ),
    ] = "bf16",
) -> None:
    """Fetch the needed files of a checkpoint from the hub and verify them; run again, it continues where it stopped.

    bagel download -o bagel-int8 --format int8
    """
    from bagel_mot.checkpoint.convert import check_request
    from bagel_mot.checkpoint.convert import convert as run
    from bagel_mot.checkpoint.hub.download import download as fetch

    converts = stored != "bf16"
    if converts:
        if output is None:
            raise SettingError(f"--format {stored} takes a folder to write to: give --output.")
        with _writing(output):
            check_request(None, output, stored, None)
    with progress_bar("downloading", in_bytes=True) as progress:
        folder = fetch(
            repository,
            folder=None if converts else output,
            revision=revision,
            stored=stored,
            check=True,
            progress=progress,
        )
    if converts:
        assert output is not None
        with _writing(output), progress_bar("converting", in_bytes=True) as progress:
            run(folder, output, stored, progress=progress)
    print(output or folder)


def _print_errors(errors: Sequence[TensorError], means: dict[str, float]) -> None:
    console = tables()
    worst = sorted(errors, key=lambda row: -row.error)[:_WORST]
    for title, heading, rows in (
        ("worst tensors", "tensor", [(row.name, row.error) for row in worst]),
        ("mean by kind", "kind", list(means.items())),
    ):
        table = new_table(title, heading, "relative error")
        for name, error in rows:
            table.add_row(name, f"{error:.2e}")
        console.print(table)


def _compare_scores(source: str, folder: Path, items: int) -> dict[str, Any]:
    """The rows of `bagel eval mini` for both checkpoints, on the same items."""
    before, after = _scores(source, items), _scores(str(folder), items)
    rows = {
        name: {"before": share, "after": after[name], "change": round(after[name] - share, 4)}
        for name, share in before.items()
    }
    return {"items": items, "rows": rows}


def _scores(checkpoint: str, items: int) -> dict[str, float]:
    """The share of right items, by row."""
    from bagel_mot.evaluation.benchmarks.mini import ROWS, Mini
    from bagel_mot.evaluation.benchmarks.mini_report import evaluate, side_of
    from bagel_mot.evaluation.respondents.local import LocalRespondent

    bagel = load(Weights(checkpoint))
    done: dict[str, int] = {}
    with progress_bar(f"scoring {checkpoint}") as progress:

        def tell(row: str, count: int, total: int) -> None:
            done[row] = count
            progress(sum(done.values()), total * len(ROWS))

        mini = Mini(count=items, side=side_of(bagel))
        report = evaluate(mini, LocalRespondent(bagel, {}), progress=tell)
    return {name: row["share"] for name, row in report["rows"].items()}


def _print_scores(evaluation: dict[str, Any], stored: str) -> None:
    table = new_table(f"bagel eval mini, {evaluation['items']} items a row", "row", "before", stored, "change")
    for name, row in evaluation["rows"].items():
        table.add_row(name, f"{row['before']:.3f}", f"{row['after']:.3f}", f"{row['change']:+.3f}")
    tables().print(table)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turns the system's refusal to write a new folder into one sentence."""
    with writing(folder, "give another folder"):
        try:
            yield
        except FileExistsError as error:
            raise CheckpointError(f"{error.strerror}: give a new folder, or remove what is there.") from error
