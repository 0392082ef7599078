"""Shared parts of the commands: options made from the settings' own metadata, errors and exit codes, output."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, get_type_hints

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bagel_mot.cli.help import MORE, help_all
from bagel_mot.errors import BagelError, DeviceError
from bagel_mot.files import check_writable, user_path, write_text, writing
from bagel_mot.inference.settings import SETTING_GROUPS, Setting, parse_settings, task_settings
from bagel_mot.task import Task
from bagel_mot.threads import set_from_command_line

if TYPE_CHECKING:
    import torch

_HelpAllOption = Annotated[
    bool,
    typer.Option("--help-all", callback=help_all, is_eager=True, help="Show all options with all details, and exit."),
]
BAD_INPUT = 2
INTERRUPTED = 130

# `--dtype` is what the commands that measure called it before.
DtypeOption = Annotated[
    str, typer.Option("--precision", "--dtype", help="float32, bfloat16 or float16.", metavar="PRECISION")
]
JsonOption = Annotated[
    Optional[str],  # noqa: UP045 - typer reads this annotation at run time
    typer.Option("--json", help="Write the result as JSON to this file; - is standard output.", metavar="FILE"),
]

# For each kind of setting: the type of its option, its metavar, and the conversion of typed numbers. Options collect
# texts, and the setting itself checks the values: its errors say more than typer's.
_KINDS: dict[str, tuple[Any, str | None, Callable[[str], float] | None]] = {
    "bool": (bool, None, None),
    "choice": (str, "NAME", None),
    "float": (str, "FLOAT", float),
    "int": (str, "INTEGER", int),
    "interval": (tuple[str, str], "LOW HIGH", float),
    "size": (str, "WIDTHxHEIGHT", None),
    "texts": (list[str], "TEXT", None),
}


_PANELS = {
    **dict.fromkeys(("size", "seed"), "Picture and seed (official defaults; a checkpoint's own come first)"),
    **dict.fromkeys(("thinking", "writing"), "Thinking and text"),
    "steps": "Steps",
    "guidance": "Guidance",
}
"""The titles of the panels in which the help shows settings, by their group."""


def _value(setting: Setting, words: Any) -> Any:
    """Typed numbers as numbers; a text that is not a number stays a text, for the setting to refuse."""
    number = _KINDS[setting.kind][2]
    try:
        if number is None or words is None:
            return words
        return [number(word) for word in words] if setting.kind == "interval" else number(words)
    except ValueError:
        return " ".join(words) if setting.kind == "interval" else words


def _panel(name: str) -> str:
    """The title of the panel in which a setting is shown."""
    return next(_PANELS[group] for group, names in SETTING_GROUPS.items() if name in names)


def _help(setting: Setting, task: Task) -> str:
    default = setting.default_text(task)
    short = escape(setting.about)
    if default != "none" and setting.kind != "bool":  # flags are off where nothing is said
        short += f" [dim]\\[default: {default}][/dim]"
    values = "" if setting.kind == "bool" else f" [dim]\\[{escape(setting.range)}][/dim]"
    return f"{short}{MORE}{escape(setting.when)}{values}"


def _parameter(setting: Setting, task: Task) -> inspect.Parameter:
    flag = setting.name.replace("_", "-")
    kind, metavar, _ = _KINDS[setting.kind]
    names = (f"--{flag}/--no-{flag}",) if setting.kind == "bool" else (f"--{flag}",)
    option = typer.Option(
        *names,
        help=_help(setting, task),
        metavar=metavar,
        show_default=False,
        rich_help_panel=_panel(setting.name),
    )
    return _keyword(setting.name, None, Annotated[kind | None, option])


def _keyword(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _with_parameters(
    call: Callable[..., Any], *added: inspect.Parameter, without: str | None = None
) -> Callable[..., Any]:
    """Lets a function that wraps another show that one's parameters, but for one, and these, for typer to read."""
    hints = get_type_hints(call, include_extras=True)
    shown = inspect.signature(call).parameters.values()
    own = [
        one.replace(annotation=hints.get(one.name, one.annotation))
        for one in shown
        if one.kind is not inspect.Parameter.VAR_KEYWORD and one.name != without
    ]
    call.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    call.__annotations__ = {one.name: one.annotation for one in (*own, *added)}
    return call


def with_settings(task: Task) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that gives a command one option for each setting of a task; the given ones become its arguments."""
    settings = task_settings(task)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        order = [name for names in SETTING_GROUPS.values() for name in names]
        panels = list(dict.fromkeys(_PANELS.values()))
        grouped = sorted(settings, key=lambda one: (panels.index(_panel(one.name)), order.index(one.name)))

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            given = {s.name: _value(s, kwargs.pop(s.name, None)) for s in settings}
            # Checked here, before minutes go into loading a large model.
            chosen = parse_settings(task, {name: value for name, value in given.items() if value not in (None, [])})
            return function(*args, **kwargs, **chosen)

        return _with_parameters(call, *(_parameter(setting, task) for setting in grouped))

    return decorate


def with_options(group: type[Any], argument: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that gives a command an option for each field of a data class, of which it gets an instance."""
    defaults = {field.name: field.default for field in dataclasses.fields(group)}
    hints = get_type_hints(group, include_extras=True)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            given = {name: kwargs.pop(name, default) for name, default in defaults.items()}
            return function(*args, **{argument: group(**given)}, **kwargs)

        added = (_keyword(name, default, hints[name]) for name, default in defaults.items())
        return _with_parameters(call, *added, without=argument)

    return decorate


def with_threads(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that gives a command that computes the option `--threads`."""
    option = typer.Option(
        "--threads",
        metavar="N",
        help="CPU threads that compute; by default chosen by the model and the cores this process may use.",
    )

    @functools.wraps(function)
    def call(*args: Any, threads: int | None = None, **kwargs: Any) -> Any:
        try:
            set_from_command_line(threads)
        except BagelError as error:
            complain(error)
            raise typer.Exit(BAD_INPUT) from error
        return function(*args, **kwargs)

    return _with_parameters(call, _keyword("threads", None, Annotated[int | None, option]))


def command(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that turns our errors into one sentence and status 2, and Ctrl-C into status 130."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("help_all", None)
        try:
            kwargs = {name: user_path(value) if isinstance(value, Path) else value for name, value in kwargs.items()}
            if (json := kwargs.get("json")) not in (None, "-"):  # checked before minutes of work
                with writing(json, "give another file"):
                    check_writable(user_path(json))
            return function(*args, **kwargs)
        except BagelError as error:
            complain(error)
            raise typer.Exit(BAD_INPUT) from error
        except KeyboardInterrupt as error:
            print(file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from error

    return _with_parameters(call, _keyword("help_all", False, _HelpAllOption))


def complain(error: BagelError) -> None:
    """Prints an error as one sentence on standard error."""
    print(f"bagel: {error}", file=sys.stderr)


def notes() -> Console:
    """A console on standard error, for messages beside the result."""
    return Console(stderr=True, highlight=False)


def tables() -> Console:
    """A console on standard output for tables; without a terminal it is wide enough to break or cut nothing off."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=240)


def new_table(title: str, *headings: str) -> Table:
    """A table whose first column is aligned to the left and the others to the right."""
    table = Table(title=title, title_justify="left")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left")
    return table


def dtype_named(name: str) -> torch.dtype:
    """A PyTorch type by name.

    Raises:
        DeviceError: the name is not one of the three floating-point types.
    """
    import torch

    if name not in (names := ("float32", "bfloat16", "float16")):
        raise DeviceError(f"precision is {name!r}: it must be {', '.join(names)}.")
    return getattr(torch, name)


@contextmanager
def progress_bar(what: str, *, in_bytes: bool = False) -> Iterator[Callable[..., None]]:
    """A progress bar, as a function of (done, total) in steps or bytes, and of the present stage if there are
    several; shown only if standard error is a terminal.
    """
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = notes()
    count = (DownloadColumn(), TransferSpeedColumn()) if in_bytes else (MofNCompleteColumn(),)
    columns = (TextColumn("{task.description}"), BarColumn(), *count, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(escape(what), total=None)
        yield lambda done, total, stage=what: progress.update(
            bar, completed=done, total=total, description=escape(stage)
        )


def write_json(target: str | None, content: Any) -> None:
    """Writes JSON to a file, whole or not at all; `-` is standard output, None nowhere."""
    if target is None:
        return
    text = json.dumps(content, indent=2, ensure_ascii=False)
    if target == "-":
        print(text)
        return
    with writing(target, "give another file"):
        write_text(user_path(target), text + "\n")
