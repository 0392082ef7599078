"""`bagel train` and `bench`."""

from __future__ import annotations

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
from bagel_mot.cli.weights import DeviceOption
from bagel_mot.errors import RecipeError, SettingError


@command
def train(
    recipe: Annotated[
        str | None,
        typer.Argument(help="A YAML file, or the name of a packaged recipe such as mini-bagel.", metavar="RECIPE"),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Values to change, nested keys with dots: optimizer.lr=1e-3 steps=500.", metavar="KEY=VALUE"
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint", "-c", help="The checkpoint to start from, in place of the recipe's init.", metavar="NAME"
        ),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="The recipe's profile for a machine, such as 24GB; auto chooses it.")
    ] = None,
    list_recipes: Annotated[bool, typer.Option("--list", help="List the packaged recipes and end.")] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print what would be trained, and the memory that it takes, and end.")
    ] = False,
    memory: Annotated[
        str | None,
        typer.Option(help="With --plan: the memory of each GPU of an imagined machine, such as 24GB.", metavar="SIZE"),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="With --plan: the number of processes, by default that of this launch.", min=1)
    ] = None,
    json: JsonOption = None,
) -> None:
    """Train by a recipe; the same command resumes a run that was stopped. Ctrl-C saves first.

    Several GPUs: torchrun --nproc_per_node 8 -m bagel_mot train RECIPE
    """
    from bagel_mot.cli.recipes import planned_training, print_recipes
    from bagel_mot.parallel.launch import launched
    from bagel_mot.training.packaged import find_recipe, packaged_recipes
    from bagel_mot.training.profiles import load_recipe

    if list_recipes:
        print_recipes(packaged_recipes().values())
        return
    if recipe is None:
        raise RecipeError(f"missing argument 'RECIPE': a YAML file, or one of {', '.join(packaged_recipes())}.")
    options = {"init": checkpoint, "profile": profile}
    given = [f"{key}={value}" for key, value in options.items() if value is not None]
    given += overrides or []
    if plan:
        planned_training(find_recipe(recipe), given, memory, processes, json)
        return
    if memory is not None or processes is not None or json is not None:
        raise RecipeError("--memory, --processes and --json belong to --plan; a run takes what this machine has")
    with launched() as launch:  # one of the processes says what is wrong
        loaded = load_recipe(find_recipe(recipe), given)
        from bagel_mot.training.tasks import run_recipe

        folder = run_recipe(loaded)
    if launch.rank == 0:
        print(folder)


@command
def bench(
    config: Annotated[
        str,
        typer.Option(help="0.5b, 7b, mini, golden, or a checkpoint folder; weights are random.", metavar="NAME"),
    ] = "0.5b",
    layers: Annotated[
        int | None,
        typer.Option(
            help="Run only this many decoder layers; by default as many as a third of the free memory holds.", min=1
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Use smaller work and fewer rounds: faster, but coarser.")
    ] = False,
    plain: Annotated[
        bool, typer.Option("--plain/--no-plain", help="Also run a plain loop that works as the published code does.")
    ] = True,
    rounds: Annotated[
        int | None, typer.Option(help="How often each call is timed; the shortest time counts.", min=1)
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Measure only the rows with this text in their names, such as edit; may be given again."),
    ] = None,
    allow_busy: Annotated[
        bool,
        typer.Option(
            "--allow-busy",
            help="With --json: store figures although other processes keep the machine busy, marked as such.",
        ),
    ] = False,
    threads_only: Annotated[
        bool,
        typer.Option(
            "--threads-check",
            help="Measure instead how much longer mini draws while as many processes as cores are busy.",
        ),
    ] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "float32",
    json: JsonOption = None,
) -> None:
    """Measure prefill, denoising, decoding and training against the machine's matmul rate and a plain loop, and whole
    tasks: from a prompt or an image to an image or a text.

    With --json the figures are stored if no other processes disturbed them.

    Status 1: with --threads-check, mini takes more than three times as long on the busy machine.
    """
    if threads_only:
        _check_threads(json)
        return
    import dataclasses

    from bagel_mot.bench import QUICK, BenchSettings, busy, config_named, layers_that_fit
    from bagel_mot.bench import bench as run
    from bagel_mot.inference.loading import choose_device

    chosen = dtype_named(dtype)
    settings = dataclasses.replace(QUICK if quick else BenchSettings(), compare=plain, only=tuple(only or ()))
    if rounds is not None:
        settings = dataclasses.replace(settings, rounds=rounds, task_rounds=rounds)
    shape = config_named(config)
    where = choose_device(device)
    depth = layers or layers_that_fit(shape, chosen, where)
    if json is not None and not allow_busy:  # before the minutes of measuring
        _refuse_busy(busy.share_of_others())
    console = notes()
    with console.status("making random weights") as status:
        report = run(shape, settings=settings, dtype=chosen, device=str(where), layers=depth, progress=status.update)
    report = {"config": config, **report}
    if json != "-":
        _print_bench(report)
    if report["machine"]["busy"] and json is not None and not allow_busy:
        _refuse_busy(report["machine"]["others_share"])
    write_json(json, report)


def _refuse_busy(share: float | None) -> None:
    """Refuses to store figures of a busy machine.

    Raises:
        SettingError: other processes take too much of the cores.
    """
    from bagel_mot.bench.busy import QUIET_SHARE, busy_sentence

    if share is not None and share > QUIET_SHARE:
        raise SettingError(busy_sentence(share))


def _check_threads(json: str | None) -> None:
    from bagel_mot.bench.busy import threads_check

    found = threads_check()
    if json != "-":
        print(
            f"mini on {found['cores']} cores, {found['threads']} thread: {found['quiet_seconds']:.2f} s quiet, "
            f"{found['busy_seconds']:.2f} s beside {found['cores']} busy processes, {found['ratio']:.1f} times as long "
            f"(aim: at most {found['aim']:g})"
        )
    write_json(json, found)
    if found["ratio"] > found["aim"]:
        raise typer.Exit(1)


def _print_bench(report: dict[str, Any]) -> None:
    console = tables()
    machine = report["machine"]
    depth = f"{report['layers']} of {report['of_layers']} layers"
    title = f"{report['config']}, {depth}, {report['dtype']} on {report['device']}"
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    title += f" ({machine.get('gpu', machine['processor'])}, {threads})"
    headings = ("seconds", "tokens/s", "GFLOP/s", "of matmul rate", "plain loop", "speed-up")
    table = new_table(title, "quantity", *headings)
    for row in report["results"]:
        seconds = row["seconds"]
        table.add_row(
            row["name"],
            f"{seconds['ours']:.4g}",
            f"{row['tokens_per_second']:.4g}" if "tokens_per_second" in row else "",
            f"{row['gflops']:.4g}",
            f"{row['share']:.0%}",
            f"{seconds['plain']:.4g}" if "plain" in seconds else "",
            f"{row['speedup']:.2f}×" if "speedup" in row else "",
        )
    if report["results"]:
        console.print(table)
    if report["tasks"]:
        console.print(_tasks_table(report, title))
    for name, value in report["summary"].items():
        console.print(f"{name}: [bold]{value:.2f}[/bold]")
    memory = {"weights": report["weights_bytes"], **{f"peak {k}": v for k, v in report["peak_memory_bytes"].items()}}
    console.print("memory: " + ", ".join(f"{name} {count / 1e9:.2f} GB" for name, count in memory.items()))
    if report["layers"] < report["of_layers"]:
        console.print("not all layers ran: full_depth_seconds in the JSON extrapolates to all of them")
    if machine["busy"]:
        console.print(f"other processes took {machine['others_share']:.0%} of the cores: the figures are too high")


def _tasks_table(report: dict[str, Any], title: str) -> Table:
    """The whole tasks: what one waits for, and where the time goes."""
    from bagel_mot.bench.breakdown import KINDS

    table = new_table(f"whole tasks: {title}", "task", "seconds", "plain loop", "speed-up", *KINDS)
    for row in report["tasks"]:
        seconds = row["seconds"]
        table.add_row(
            row["name"],
            f"{seconds['ours']:.4g}",
            f"{seconds['plain']:.4g}" if "plain" in seconds else "",
            f"{row['speedup']:.2f}×" if "speedup" in row else "",
            *(f"{row['where'][kind]:.0%}" for kind in KINDS),
        )
    return table
