"""The help of the commands: options in groups, two columns wide, the less used ones only in `--help-all`.

The text of an option may have two parts with a form feed between them; the second one is shown by `--help-all` alone.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

MORE = "\f"
_ALL = "bagel.help_all"
_WIDEST = 100  # columns; longer lines are hard to read
_LABEL = 30  # columns of the names, at most
_LESS_USED = frozenset(
    (
        "offload", "cfg_interval", "cfg_renorm_type", "cfg_renorm_min", "timestep_shift", "max_think_tokens", "top_k",
        "top_p", "repetition_penalty", "stop", "max_image_pixels", "max_body", "max_timesteps", "max_n", "max_images",
        "cors", "log_prompts", "vit_min_size", "eta", "naming", "redraw", "batch", "judge_texts", "retry",
        "results_only", "predictions", "vlmevalkit",
    )
)  # fmt: skip
"""Parameters that `--help` leaves out."""


class Command(TyperCommand):
    """A command with this help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        print_help(self, ctx)


def print_help(command: Any, ctx: Any) -> None:
    """Prints the help of a command or of the group of all, for the width of the terminal."""
    console = Console(highlight=False)
    console.width = min(console.width, _WIDEST)
    everything = bool(ctx.meta.get(_ALL))
    console.print(Padding(Text(command.get_usage(ctx), style="bold"), (1, 1)))
    if command.help:
        about = Text.from_markup(inspect.cleandoc(command.help).replace("\n\n", "\0").replace("\n", " "))
        console.print(Padding(Text("\n\n").join(about.split("\0")), (0, 1, 1, 1)))
    panels: dict[str, list[Any]] = defaultdict(list)
    left_out = 0
    params = command.get_params(ctx)
    more = any(param.name in _LESS_USED or MORE in (param.help or "") for param in params)
    for param in params:
        if getattr(param, "hidden", False) or (param.name == "help_all" and not more):
            continue
        if not everything and param.name in _LESS_USED:
            left_out += 1
            continue
        own = "Arguments" if param.param_type_name == "argument" else "Options"
        panels[getattr(param, "rich_help_panel", None) or own].append(param)
    for title, params in panels.items():
        _print_panel(console, title, [(_label(param), _text(param, everything)) for param in params])
    if commands := getattr(command, "commands", None):
        rows = [(name, Text.from_markup(_first_line(one.help))) for name, one in commands.items() if not one.hidden]
        _print_panel(console, "Commands", [(Text(name, style="bold cyan"), about) for name, about in rows])
    if left_out:
        console.print(f" --help-all shows {left_out} more options, and when to change which.\n", style="dim")


def help_all(ctx: typer.Context, wanted: bool) -> None:
    """The callback of `--help-all`."""
    if wanted:
        ctx.meta[_ALL] = True
        ctx.get_help()
        raise typer.Exit


def _print_panel(console: Console, title: str, rows: list[tuple[Text, Text]]) -> None:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0), pad_edge=False, expand=True)
    widest = min(max(label.cell_len for label, _ in rows), _LABEL)
    table.add_column(width=widest, overflow="fold")
    table.add_column(ratio=1, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(Panel(table, title=title, title_align="left", border_style="dim", box=box.ROUNDED))


def _label(param: Any) -> Text:
    """The names of an option and what it takes, or the name of an argument."""
    if param.param_type_name == "argument":
        return Text(param.metavar + ("..." if param.nargs != 1 else ""), style="bold cyan")
    long = [name for name in param.opts if name.startswith("--")][:1]  # further ones are of earlier versions
    names = [*long, *(name for name in param.opts if not name.startswith("--"))]
    if param.secondary_opts:  # --x and --no-x
        names[0] = f"--[no-]{names[0].removeprefix('--')}"
    label = Text(", ".join(names), style="bold cyan")
    if not param.is_flag:
        label.append(f" {param.metavar or 'N'}", style="yellow")
    return label


def _text(param: Any, everything: bool) -> Text:
    """An option's help, with its default, limits and environment variable."""
    short, _, more = (param.help or "").partition(MORE)
    if param.name == "help":
        short = "Show this message and exit."
    text = Text.from_markup(short.strip())
    facts = []
    if param.required:
        facts.append("required")
    elif (
        param.show_default is not False and not getattr(param, "is_flag", False) and param.default not in (None, [], ())
    ):
        facts.append(f"default: {param.default}")
    low, high = (getattr(param, end, None) for end in ("min", "max"))
    if everything and (low is not None or high is not None):
        facts.append(f"{low} or more" if high is None else f"{low} to {high}")
    if param.envvar:
        facts.append(f"variable: {param.envvar}")
    if facts:
        text.append(f" [{'; '.join(facts)}]", style="dim")
    return text.append_text(Text.from_markup(f" {more.strip()}")) if more and everything else text


def _first_line(about: str | None) -> str:
    return " ".join(inspect.cleandoc(about or "").partition("\n\n")[0].split())
