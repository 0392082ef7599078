"""`bagel info`, `verify` and `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from bagel_mot.cli.options import (
    DtypeOption,
    JsonOption,
    command,
    dtype_named,
    new_table,
    notes,
    tables,
    write_json,
)
from bagel_mot.cli.weights import DeviceOption, PreferOption, Weights, load, with_weights
from bagel_mot.errors import SettingError
from bagel_mot.files import size_text


@command
def info(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="mini, a folder in the official layout, a hub id, or the name of a configuration (7b-mot, 0.5b).",
        ),
    ] = "mini",
    plan: Annotated[bool, typer.Option("--plan", help="Show the plans for running it here.")] = False,
    memory: Annotated[
        str | None,
        typer.Option(help="With --plan: assume this much free memory on each GPU.", metavar="SIZE"),
    ] = None,
    ram: Annotated[
        str | None, typer.Option(help="With --plan: assume this much free main memory.", metavar="SIZE")
    ] = None,
    prefer: PreferOption = "quality",
    versions: Annotated[
        bool,
        typer.Option("--versions", help="Show versions, devices and threads instead, for a report of a fault."),
    ] = False,
    json: JsonOption = None,
) -> None:
    """Show a checkpoint: configuration, sizes, parameters by part, memory. Weights are not loaded.

    bagel info 7b-mot --plan --memory 12GB --ram 32GB
    """
    if versions:
        from bagel_mot.cli.versions import versions as installed

        found = installed()
        if json != "-":
            _print_versions(found)
        write_json(json, found)
        return
    if (memory or ram or prefer != "quality") and not plan:
        raise SettingError("--memory, --ram and --prefer are for --plan: add it, or leave them out.")
    if plan:
        from bagel_mot.cli.planning import planned, print_plans

        found = planned(checkpoint, memory, ram, prefer)
        if json != "-":
            print_plans(found)
        write_json(json, found)
        return
    from bagel_mot.cli.summary import describe

    facts = describe(checkpoint)
    if json != "-":
        _print_facts(facts)
    write_json(json, facts)


def _print_versions(found: dict[str, Any]) -> None:
    """Plain lines, to be copied into a report."""
    for name, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{package} {version}" for package, version in value.items())
        print(f"{name}: {', '.join(value) if isinstance(value, list) else value}")


def _print_facts(facts: dict[str, Any]) -> None:
    console = tables()
    console.print(f"[bold]{facts['name']}[/bold]  {facts['folder'] or 'configuration only'}")
    if facts["stored_bytes"]:
        console.print(f"{size_text(facts['stored_bytes'])} of weights")
    if facts["knows"]:
        console.print(f"knows {facts['knows']}", markup=False)
    for title in ("decoder", "vision transformer", "autoencoder", "pictures"):
        table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 2))
        for name, value in facts[title].items():
            table.add_row(name.replace("_", " "), str(value))
        console.print(table)
    table = new_table("parameters", "part", "parameters", "float32", "bfloat16")
    table.box, table.padding = None, (0, 2, 0, 2)
    for name, count in facts["parameters"].items():
        style = "bold" if name == "total" else None
        table.add_row(name, f"{count:,}", size_text(4 * count), size_text(2 * count), style=style)
    console.print(table)
    table = Table(title="cache", title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 2))
    for name, value in facts["cache_bytes"].items():
        table.add_row(name, f"{size_text(value)} (bfloat16)")
    console.print(table)


@command
def verify(
    folder: Annotated[
        Path,
        typer.Argument(
            help="A folder of recorded cases, laid out as tests/golden, tests/golden-data or tests/golden-eval is.",
            metavar="FOLDER",
        ),
    ],
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Largest relative error of floats that passes; 1e-5 on the CPU and 1e-4 elsewhere if not given.",
            min=0.0,
        ),
    ] = None,
    failed_only: Annotated[bool, typer.Option("--failed", help="Show only the rows that fail.")] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    json: JsonOption = None,
) -> None:
    """Compute recorded cases anew and compare: one row for each quantity.

    Status 0: all pass; 1: something fails, or a case is of an unknown kind; 2: the folder cannot be used.
    """
    from bagel_mot.verify import verify as run

    chosen = dtype_named(dtype)
    console = notes()
    with console.status("loading", spinner="line") as status:
        report = run(
            folder,
            device=device,
            dtype=chosen,
            tolerance=tolerance,
            progress=lambda case: status.update(f"{case['kind']}: {case['name']}"),
        )
    if json != "-":
        _print_report(report, failed_only)
    write_json(json, report.to_json())
    if not report.passed:
        raise typer.Exit(1)


def _print_report(report: Any, failed_only: bool) -> None:
    console = tables()
    table = Table(title=f"{report.folder} on {report.device} in {report.dtype}", title_justify="left")
    table.add_column("case")
    table.add_column("quantity", overflow="fold")
    table.add_column("error", justify="right")
    table.add_column("")
    table.add_column("note", overflow="fold")
    for row in report.failed if failed_only else report.rows:
        error = "" if row.error is None else f"{row.error:.2e}" if row.error % 1 else f"{row.error:.0f}"
        mark = "[bold red]FAIL[/bold red]" if not row.passed else "differs" if row.differs else "[green]pass[/green]"
        table.add_row(row.case, row.quantity, error, mark, row.note)
    console.print(table)
    total, failed = len(report.rows), len(report.failed)
    console.print(
        f"{total - failed} of {total} quantities pass" + (f", [bold red]{failed} FAIL[/bold red]" if failed else "")
    )
    for name, (good, every) in report.by_part.items():
        console.print(f"{name}: {good} of {every}", markup=False)
    for quirk, count in report.differing.items():
        console.print(f"{count} of them differ where the published program may: {quirk}", markup=False)


@command
@with_weights
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.", metavar="FOLDER")] = Path(
        "demo"
    ),
    seed: Annotated[int, typer.Option(help="The same seed draws the same pictures.", min=0)] = 0,
    json: JsonOption = None,
    *,
    weights: Weights,
) -> None:
    """Draw, edit, answer and think with the embedded model; writes a contact sheet and a page."""
    from bagel_mot.demo import run_demo

    if output.exists() and not output.is_dir():
        raise SettingError(f"{output} is a file: give a folder to write to.")
    bagel = load(weights)
    report = run_demo(bagel, output, seed=seed, console=notes())
    if json != "-":
        print(f"{output / 'index.html'}\n{output / 'index.png'}")
    write_json(json, report)
