"""`--from`, `--out` and `--naming` of `bagel generate`, `edit` and `ask`: many requests from a file."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from bagel_mot.cli.options import notes, progress_bar, with_options, write_json
from bagel_mot.cli.weights import ALL_TASKS, Weights, load, print_hint
from bagel_mot.errors import PromptError, SettingError
from bagel_mot.files import user_path
from bagel_mot.task import Task

_PANEL = "Many requests from a file"


def _option(*names: str, about: str, metavar: str | None = None, **more: Any) -> Any:
    return typer.Option(*names, help=about, metavar=metavar, rich_help_panel=_PANEL, **more)


@dataclass(frozen=True)
class AnswerLists:
    """The values of the options by which a command takes its requests from a file."""

    source: Annotated[
        Optional[str],  # noqa: UP045 - typer reads this annotation at run time
        _option(
            "--from",
            about="A file of requests: .txt with a prompt a line, or .jsonl with an object a line (prompt, images, n, "
            "any setting). - is standard input.",
            metavar="FILE",
        ),
    ] = None
    out: Annotated[
        Optional[Path],  # noqa: UP045
        _option(
            "--out",
            about="The folder for the results; what is there of the same file is not made again.",
            metavar="DIR",
        ),
    ] = None
    batch: Annotated[int, _option("--batch", about="Requests that run together, at most.", min=1)] = 16


@dataclass(frozen=True)
class ImageLists(AnswerLists):
    """The same, for commands that draw."""

    naming: Annotated[
        str,
        _option(
            "--naming",
            about="How the pictures are named: lines (by line), or as geneval, wise, gedit or imgedit have it.",
            metavar="NAME",
        ),
    ] = "lines"
    redraw: Annotated[bool, _option("--redraw", about="Replace pictures of other requests that are in the folder.")] = (
        False
    )


with_answer_lists = with_options(AnswerLists, "lists")
with_image_lists = with_options(ImageLists, "lists")


def is_list(lists: AnswerLists, *, has_output: bool = False) -> bool:
    """Whether requests come from a file.

    Args:
        has_output: whether a single result's file was named.

    Raises:
        SettingError: an option is given that needs another one, or rules it out.
    """
    if lists.source is None:
        if lists.out is not None:
            raise SettingError("--out is the folder for the results of a file: give that with --from FILE.")
        if isinstance(lists, ImageLists) and (lists.naming != "lines" or lists.redraw):
            raise SettingError("--naming and --redraw are for the pictures of a file: give that with --from FILE.")
        return False
    if lists.out is None:
        raise SettingError("--from needs a folder for the results: give it with --out DIR.")
    if has_output:
        raise SettingError("--output is the file of one picture: with --from, --out DIR is the folder of all.")
    return True


def run_list(
    task: Task,
    lists: AnswerLists,
    weights: Weights,
    settings: Mapping[str, Any],
    *,
    n: int = 1,
    images: Sequence[str] = (),
    json: str | None = None,
) -> None:
    """Runs the requests of a file and prints a line for each result; see `bagel_mot.inference.lists`.

    Args:
        n: the images of lines that do not say how many.
        images: the inputs of lines that name none.
        json: the file that lists all results, those of earlier runs included.
    """
    from bagel_mot.checkpoint.official import fingerprint, folder_of
    from bagel_mot.inference.lists.lines import read_lines
    from bagel_mot.inference.lists.naming import naming_of
    from bagel_mot.inference.lists.run import ListRun
    from bagel_mot.inference.loading import find_checkpoint

    assert lists.source is not None  # `is_list` has seen to it
    assert lists.out is not None
    drawing = lists if isinstance(lists, ImageLists) else ImageLists()
    naming = naming_of(drawing.naming, task)
    source = _standard_input() if lists.source == "-" else user_path(lists.source)
    lines = read_lines(source, task, naming, n=n, images=[user_path(image) for image in images])
    model = {
        "fingerprint": fingerprint(folder_of(find_checkpoint(weights.checkpoint))),
        "precision": weights.precision,
        "adapters": weights.adapter or [],
    }
    out = user_path(lists.out)
    run = ListRun(task, lines, out, naming, settings=settings, model=model, redraw=drawing.redraw)
    if done := len(run.jobs) - len(run.pending):
        notes().print(f"{done} of {len(run.jobs)} are in {out} already", style="dim", markup=False, soft_wrap=True)
    entries = [entry for job in run.jobs if (entry := run.results.get(job.id)) is not None]
    if run.pending:
        bagel = load(weights, {Task.GENERATE: ("generate",), Task.ASK: ("understand",)}.get(task, ALL_TASKS))
        print_hint(bagel, *(line.prompt for line in lines))
        with progress_bar("drawing" if task.draws else "answering") as progress:
            entries = run.run(
                bagel,
                batch=lists.batch,
                progress=progress,
                on_result=lambda entry: None if json == "-" else _print_entry(entry, out),
            )
    write_json(json, entries)


def _print_entry(entry: Mapping[str, Any], out: Path) -> None:
    if "text" in entry:
        print(f"{entry['line']}: {entry['text']}", flush=True)
    else:
        print(f"{out / entry['id']}  seed {entry['seed']}  {entry['seconds']:.1f} s", flush=True)


def _standard_input() -> str:
    try:
        text = sys.stdin.read()
    except UnicodeDecodeError as error:
        raise PromptError(f"standard input is not text: {error}.") from error
    if not text.strip():
        raise PromptError("- reads a list from standard input, which is empty.")
    return text
