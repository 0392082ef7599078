"""What commands share: options made from the settings' own metadata, errors and exit codes, output."""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, get_type_hints

import typer
from rich.console import Console
from rich.markup import escape

from bagel_mot.errors import BagelError
from bagel_mot.files import check_writable, write_text
from bagel_mot.inference.settings import SETTINGS, TASKS, Setting, Task, parse_settings, task_settings

if TYPE_CHECKING:
    from bagel_mot.inference.api import Bagel

ALL_TASKS = ("generate", "edit", "understand")
BAD_INPUT = 2
INTERRUPTED = 130

CheckpointOption = Annotated[
    str,
    typer.Option(
        "--checkpoint",
        "-c",
        help="mini (embedded), a folder in the official layout or a file with weights in one, or a hub id.",
        metavar="NAME",
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", metavar="DEVICE")]
PrecisionOption = Annotated[
    str,
    typer.Option(
        help="auto, float32, bfloat16, float16, or of the decoder's matrices int8, int8-dynamic, fp8, "
        "fp8-dynamic, int4 (lossy), nf4 (lossy); more parts behind it: "
        "int8,head=int8,vit=int8,embedding=int8,activations=float16,autoencoder=bfloat16.",
        metavar="PRECISION",
    ),
]
OffloadOption = Annotated[
    str,
    typer.Option(
        help="Where layers stand that find no room on the device: cpu (main memory), disk, none, or auto.",
        metavar="PLACE",
    ),
]
MemoryOption = Annotated[
    Optional[str],  # noqa: UP045 - typer reads this annotation at run time
    typer.Option(
        help="Memory that may be taken of each GPU, or of the machine on a CPU, such as 12GB.", metavar="SIZE"
    ),
]
JsonOption = Annotated[
    Optional[str],  # noqa: UP045 - typer reads this annotation at run time
    typer.Option("--json", help="Write the result as JSON to this file; - is standard output.", metavar="FILE"),
]

# What an option's words are gathered into; what stands in them is checked by the setting itself, whose errors say more.
_TYPES: dict[str, Any] = {"bool": bool, "interval": tuple[str, str], "texts": list[str]}
_METAVARS = {"float": "FLOAT", "int": "INTEGER", "interval": "LOW HIGH", "size": "WIDTHxHEIGHT", "texts": "TEXT"}
_NUMBERS: dict[str, Callable[[str], float]] = {"float": float, "interval": float, "int": int}


def _value(setting: Setting, words: Any) -> Any:
    """Numbers that were typed, as numbers; what is none stays as it is."""
    number = _NUMBERS.get(setting.kind)
    try:
        if number is None or words is None:
            return words
        return [number(word) for word in words] if setting.kind == "interval" else number(words)
    except ValueError:
        return " ".join(words) if setting.kind == "interval" else words


def _help(setting: Setting, task: Task) -> str:
    about = f"{setting.about} {setting.when}"
    return f"{escape(about)} [dim]\\[default: {setting.default_text(task)}; {escape(setting.range)}][/dim]"


def _parameter(setting: Setting, task: Task) -> inspect.Parameter:
    flag = setting.name.replace("_", "-")
    names = (f"--{flag}/--no-{flag}",) if setting.kind == "bool" else (f"--{flag}",)
    option = typer.Option(
        *names,
        help=_help(setting, task),
        metavar=_METAVARS.get(setting.kind) or ("|".join(setting.choices) or None),
        show_default=False,
        rich_help_panel="Settings, with the official defaults; a checkpoint's own go before them",
    )
    kind: Any = _TYPES.get(setting.kind, str)
    return inspect.Parameter(
        setting.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def with_settings(task: Task) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives a command one option for each setting of a task; those that were given arrive as keyword arguments."""
    settings = task_settings(task)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        hints = get_type_hints(function, include_extras=True)
        own = [
            parameter.replace(annotation=hints.get(parameter.name, parameter.annotation))
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        parameters = [*own, *(_parameter(setting, task) for setting in settings)]

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            given = {s.name: _value(s, kwargs.pop(s.name, None)) for s in settings}
            # Checked here, before minutes go into loading a large model.
            chosen = parse_settings(task, {name: value for name, value in given.items() if value not in (None, [])})
            return function(*args, **kwargs, **chosen)

        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return call

    return decorate


def command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turns our errors into one sentence and status 2, and Ctrl-C into status 130."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            _check_json(kwargs.get("json"))
            return function(*args, **kwargs)
        except BagelError as error:
            complain(error)
            raise typer.Exit(BAD_INPUT) from error
        except KeyboardInterrupt as error:
            print(file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from error

    return call


def complain(error: BagelError) -> None:
    """One sentence on standard error."""
    print(f"bagel: {error}", file=sys.stderr)


def notes() -> Console:
    """Standard error, for what is said beside the result."""
    return Console(stderr=True, highlight=False)


def tables() -> Console:
    """Standard output for tables. Where no terminal limits their width, nothing in them is broken or cut off."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=240)


def load(
    checkpoint: str,
    device: str,
    precision: str,
    tasks: Sequence[str] = ALL_TASKS,
    *,
    offload: str = "auto",
    memory: str | None = None,
) -> Bagel:
    """A model for some tasks, with a word on the terminal while it loads, and on how it runs where that was chosen."""
    from bagel_mot.inference.api import Bagel

    console = notes()
    with console.status(f"loading {escape(checkpoint)}") if console.is_terminal else nullcontext():
        bagel = Bagel.from_pretrained(
            checkpoint, device=device, precision=precision, tasks=tasks, offload=offload, memory=memory
        )
    if bagel.plan is not None:
        console.print(f"running in {escape(bagel.plan.sentence())}", soft_wrap=True)
    return bagel


@contextmanager
def step_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar for denoising steps; nothing where standard error is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = notes()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


def _check_json(target: str | None) -> None:
    """Before minutes of work: can the file of `JsonOption` be written?"""
    if target not in (None, "-"):
        try:
            check_writable(Path(target))
        except OSError as error:
            raise unwritable(target, error, "give another file") from error


def unwritable(path: Path | str, error: Exception, instead: str) -> BagelError:
    """The error for a file or folder that cannot be written, with what to do instead."""
    return BagelError(f"{path} cannot be written ({getattr(error, 'strerror', None) or error}): {instead}.")


def write_json(target: str | None, content: Any) -> None:
    """Writes JSON to a file, whole or not at all; `-` is standard output, None nowhere."""
    if target is None:
        return
    text = json.dumps(content, indent=2, ensure_ascii=False)
    if target == "-":
        print(text)
        return
    try:
        write_text(Path(target), text + "\n")
    except OSError as error:
        raise unwritable(target, error, "give another file") from error


def settings_table() -> str:
    """All settings as a Markdown table, as the README shows them."""
    lines = ["| setting | tasks | default | values | what it does | when to change it |", "|---|---|---|---|---|---|"]
    for setting in SETTINGS.values():
        defaults = {task: setting.default_text(task) for task in TASKS if task in setting.tasks}
        first = next(iter(defaults.values()))
        others = [f"{task}: {text}" for task, text in defaults.items() if text != first]
        default = "; ".join([first, *others])
        tasks = ", ".join(defaults) if len(defaults) < len(TASKS) else "all"
        lines.append(f"| `{setting.name}` | {tasks} | {default} | {setting.range} | {setting.about} | {setting.when} |")
    return "\n".join(lines)
