"""`bagel data list`, `check` and `show`: public data sets, and what a recipe's own data hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from bagel_mot.cli.help import Command
from bagel_mot.cli.options import INTERRUPTED, JsonOption, command, notes, progress_bar, tables, write_json
from bagel_mot.files import check_writable, write_text, writing

_RecipeArgument = Annotated[
    str, typer.Argument(help="A YAML file, or the name of a packaged recipe such as finetune/t2i.", metavar="RECIPE")
]
_OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(help="Values to change: data.path=my_images data.source=omniedit.", metavar="KEY=VALUE"),
]
_ShapeOption = Annotated[
    str | None,
    typer.Option(
        "--checkpoint", "-c", help="The checkpoint whose tokenizer and sizes count, in place of the recipe's init.",
        metavar="NAME",
    ),
]  # fmt: skip
_ANOTHER = "give another file"
_BAR = 40  # characters of the longest bar of a histogram


def _loaded(recipe: str, overrides: list[str] | None, checkpoint: str | None) -> Any:
    from bagel_mot.training.packaged import find_recipe
    from bagel_mot.training.profiles import load_recipe

    given = [] if checkpoint is None else [f"init={checkpoint}"]
    return load_recipe(find_recipe(recipe), [*given, *(overrides or [])])


@command
def list_data(
    json: JsonOption = None,
) -> None:
    """List the public data sets that a recipe reads by name: data.source=NAME."""
    from bagel_mot.data.public import PUBLIC_DATA

    if json is not None:
        keys = ("name", "task", "layout", "licence", "where", "notes", "unsure")
        write_json(json, [{key: getattr(one, key) for key in keys} for one in PUBLIC_DATA.values()])
    if json == "-":
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("source", "task", "layout", "licence", "on the hub", "to know"):
        table.add_column(heading, no_wrap=heading == "source", overflow="fold")
    for one in PUBLIC_DATA.values():
        unsure = "columns from descriptions, checked when opened" if one.unsure else ""
        about = "; ".join(filter(None, (one.notes, unsure)))
        table.add_row(one.name, one.task, one.layout, one.licence, one.where, escape(about))
    tables().print(table)


@command
def check(
    recipe: _RecipeArgument,
    overrides: _OverridesArgument = None,
    checkpoint: _ShapeOption = None,
    workers: Annotated[int, typer.Option(help="Worker processes.", min=0)] = 0,
    limit: Annotated[int | None, typer.Option(help="The most rows of each data set.", min=1)] = None,
    json: JsonOption = None,
) -> None:
    """Walk over a recipe's data: rows, images, tokens, and what would be left out and why.

    Every image is opened and every text tokenized, as in training. Ctrl-C ends the walk and prints what is known.
    Data of which nothing can be used end it with status 2.
    """
    loaded = _loaded(recipe, overrides, checkpoint)
    from bagel_mot.training.data_check import DataCheck
    from bagel_mot.training.open_data import open_data

    walk = DataCheck(open_data(loaded), loaded.seed, workers, limit)
    interrupted = False
    with progress_bar("rows") as progress:
        try:
            walk.run(progress)
        except KeyboardInterrupt:
            interrupted = True
    report = {**walk.report(), "interrupted": interrupted}
    if json != "-":
        _print_report(report)
    write_json(json, report)
    if interrupted:
        notes().print("The walk was interrupted: these are the rows up to there.")
        raise typer.Exit(INTERRUPTED)
    walk.check_usable()


def _number(value: float | None) -> str:
    return "?" if value is None else f"{round(value):,}"


def _print_report(report: dict[str, Any]) -> None:
    console = tables()
    for one in report["datasets"]:
        tokens, images = one["tokens"], one["images"]
        console.print(f"\n[bold]{escape(one['name'])}[/bold]", highlight=False)
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        rows = f"{_number(one['rows'])}" + (f", {one['checked']:,} checked" if one["checked"] != one["rows"] else "")
        table.add_row("rows", f"{rows}; {one['usable']:,} usable, {one['checked'] - one['usable']:,} left out")
        table.add_row("licence", escape(one["licence"] or "not said"))
        for shape, count in list(one["documents"].items())[:6]:
            table.add_row("documents", f"{count:,} × {escape(shape)}")
        if images["count"]:
            sizes = ", ".join(f"{size} ({count:,})" for size, count in list(images["sizes"].items())[:4])
            span = f"sides of {images['shortest_side']} to {images['longest_side']} pixels"
            table.add_row("images", f"{images['count']:,}; {span}; {sizes}")
        if one["usable"]:
            spread = f"{_number(tokens['least'])} to {_number(tokens['most'])}, median {_number(tokens['median'])}"
            table.add_row("tokens a row", spread)
            table.add_row("tokens an epoch", f"{_number(tokens['an_epoch'])}; text with loss {tokens['learnt_text']:,}")
            most = max(tokens["histogram"].values())
            for upper, count in tokens["histogram"].items():
                table.add_row(f"  up to {int(upper):,}", f"{'█' * max(round(_BAR * count / most), 1)} {count:,}")
        console.print(table)
        for reason, count in one["skipped"].items():
            console.print(f"  left out: {count:,} × {escape(reason)}", style="yellow")
            shown = [row for row in one["skipped_rows"] if row["reason"] == reason][:3]
            for row in shown:
                console.print(f"    {escape(row['place'])}: {escape(row['sentence'])}", style="dim")
        for sentence in one["unreadable"]:
            console.print(f"  cannot be read: {escape(sentence)}", style="red")
    tokens = report["tokens_an_epoch"]
    console.print(
        f"\nIn all {_number(tokens)} tokens an epoch; a pack has room for {report['tokens_a_pack']:,}.", highlight=False
    )


@command
def show(
    recipe: _RecipeArgument,
    overrides: _OverridesArgument = None,
    checkpoint: _ShapeOption = None,
    n: Annotated[int, typer.Option("--n", "-n", help="Samples to show.", min=1)] = 8,
    out: Annotated[
        Path, typer.Option("--output", "--out", "-o", help="The HTML file to write.", metavar="FILE")
    ] = Path("sheet.html"),
) -> None:
    """Write a page with packed samples as a person can read them: segments, loss marks, images."""
    with writing(out, _ANOTHER):  # before the data are read
        check_writable(out)
    loaded = _loaded(recipe, overrides, checkpoint)
    from bagel_mot.training.data_sheet import sample_page
    from bagel_mot.training.open_data import open_data

    page, shown = sample_page(open_data(loaded), loaded.seed, n)
    with writing(out, _ANOTHER):
        write_text(out, page)
    print(f"{shown} samples in {out}")


data = typer.Typer(name="data", help="Look at training data: list public sets, check and show a recipe's own.",
                   no_args_is_help=True)  # fmt: skip
data.command("list", cls=Command)(list_data)
data.command("check", cls=Command)(check)
data.command("show", cls=Command)(show)
