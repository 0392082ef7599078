"""The command line: `bagel generate | edit | ask | chat | app | serve | info | verify | download | convert | init |
train | data | eval | bench | demo`.

Each command imports what it needs when it runs, so that `bagel --help` is instant. Bad input ends a command with one
sentence on standard error and status 2, Ctrl-C with status 130.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from bagel_mot.cli import chat, checkpoints, data, generation, inspection, measuring, page, serving
from bagel_mot.cli.evaluation.command import evaluate
from bagel_mot.cli.help import Command, print_help
from bagel_mot.cli.options import BAD_INPUT, with_threads

# typer brings its own click or takes the installed one, by its version; this is the class of whichever it is.
_UsageError: Any = typer.BadParameter.__base__


class _Commands(TyperGroup):
    """Arguments that cannot be understood end as all other bad input does, instead of with a page of usage."""

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **options: Any) -> Any:
        if not args:  # typer prints the help
            return super().make_context(info_name, args, *more, **options)
        with _in_one_sentence():
            return super().make_context(info_name, args, *more, **options)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        print_help(self, ctx)

    def invoke(self, ctx: Any) -> Any:
        with _in_one_sentence():
            return super().invoke(ctx)


@contextmanager
def _in_one_sentence() -> Iterator[None]:
    try:
        yield
    except _UsageError as error:
        said = error.format_message().rstrip(".")
        where = error.ctx.command_path if error.ctx else "bagel"
        print(f"bagel: {said[:1].lower()}{said[1:]}; `{where} --help` lists what there is.", file=sys.stderr)
        raise typer.Exit(BAD_INPUT) from error


app = typer.Typer(
    name="bagel",
    cls=_Commands,
    help="One model that reads and writes text and pictures. Begin with: bagel demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    # Settings have the published names, with underscores; on a command line people type hyphens. Both are right.
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: name.replace("_", "-"),
    },
)

app.command("generate", cls=Command)(with_threads(generation.generate))
app.command("edit", cls=Command)(with_threads(generation.edit))
app.command("ask", cls=Command)(with_threads(generation.ask))
app.command("chat", cls=Command)(with_threads(chat.chat))
app.command("serve", cls=Command)(with_threads(serving.serve))
app.command("app", cls=Command)(with_threads(page.app))
app.command("demo", cls=Command)(with_threads(inspection.demo))
app.command("info", cls=Command)(inspection.info)
app.command("verify", cls=Command)(with_threads(inspection.verify))
app.command("convert", cls=Command)(with_threads(checkpoints.convert))
app.command("download", cls=Command)(checkpoints.download)
app.command("init", cls=Command)(with_threads(checkpoints.init))
app.command("train", cls=Command)(with_threads(measuring.train))
app.add_typer(data.data, name="data", cls=_Commands)
app.command("eval", cls=Command)(with_threads(evaluate))
app.command("bench", cls=Command)(with_threads(measuring.bench))


def _version(wanted: bool) -> None:
    if wanted:
        from bagel_mot.version import __version__

        typer.echo(f"bagel {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the `bagel` command."""
    # As Ctrl-C does: what is half-written goes. Commands that serve or train set what they do themselves.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    app()
