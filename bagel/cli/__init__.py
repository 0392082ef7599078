"""The command line: `bagel generate | edit | ask | chat | app | serve | info | verify | download | convert | init |
train | eval | bench | demo`.

Each command imports what it needs when it runs, so that `bagel --help` is instant. Bad input ends a command with one
sentence on standard error and status 2, Ctrl-C with status 130.
"""

from __future__ import annotations

from typing import Annotated

import typer

from bagel.cli import chat, checkpoints, generation, inspection, measuring, page, serving

app = typer.Typer(
    name="bagel",
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

app.command("generate")(generation.generate)
app.command("edit")(generation.edit)
app.command("ask")(generation.ask)
app.command("chat")(chat.chat)
app.command("serve")(serving.serve)
app.command("app")(page.app)
app.command("demo")(inspection.demo)
app.command("info")(inspection.info)
app.command("verify")(inspection.verify)
app.command("convert")(checkpoints.convert)
app.command("download")(checkpoints.download)
app.command("init")(checkpoints.init)
app.command("train")(measuring.train)
app.command("eval")(measuring.evaluate)
app.command("bench")(measuring.bench)


def _version(wanted: bool) -> None:
    if wanted:
        from bagel import __version__

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
    app()
