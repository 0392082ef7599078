"""`bagel train --list` and `--plan`: what recipes train, and what that takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from bagel_mot.cli.options import tables, write_json
from bagel_mot.errors import RecipeError
from bagel_mot.files import parse_size, size_text
from bagel_mot.training.packaged import PackagedRecipe

if TYPE_CHECKING:
    from bagel_mot.training.plan import TrainingPlan


def print_recipes(recipes: Iterable[PackagedRecipe]) -> None:
    """Prints the names of recipes and what each trains."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    table.add_column("what it trains")
    for recipe in recipes:
        table.add_row(recipe.name, recipe.line)
    tables().print(table)


def planned_training(
    path: Path, overrides: Sequence[str], memory: str | None, processes: int | None, json: str | None
) -> None:
    """Prints the plan of a recipe, and refuses what does not fit.

    Args:
        path, overrides: the arguments of `load_recipe`.
        memory: the memory of each GPU of an imagined machine, such as "24GB".
        processes: the number of processes.
        json: the file to write it to as well; "-" for standard output alone.

    Raises:
        RecipeError: it does not fit, or nothing can be predicted of it.
    """
    from bagel_mot.training.plan import plan, this_machine
    from bagel_mot.training.profiles import check_fits, load_recipe
    from bagel_mot.training.recipe import BagelRecipe

    machine = this_machine(None if memory is None else parse_size(memory), processes)
    recipe = load_recipe(path, overrides, machine=machine)
    if not isinstance(recipe, BagelRecipe):
        raise RecipeError(f"{path}: its kind is {recipe.kind}, and plans are made for kind bagel alone")
    planned = plan(recipe, machine)
    facts = plan_facts(planned)
    if json != "-":
        print_plan(facts)
    write_json(json, facts)
    check_fits(path, overrides, planned, machine)


def plan_facts(plan: TrainingPlan) -> dict[str, Any]:
    """A plan, ready for JSON."""
    memory = plan.memory
    return {
        "profile": plan.recipe.profile,
        "parameters_trained": plan.trained,
        "parameters": plan.parameters,
        "processes": plan.processes,
        "packs_per_step": plan.packs,
        "tokens_per_step": plan.tokens,
        "steps": plan.recipe.steps,
        "memory": {name: getattr(memory, name) for name in _PARTS} | {"peak": memory.total},
        "free": plan.free,
        "fits": plan.fits,
        "rows": plan.rows,
        "steps_per_epoch": plan.steps_per_epoch,
        "seconds_per_step": plan.seconds,
    }


def print_plan(facts: dict[str, Any]) -> None:
    """Prints the result of `plan_facts` as tables."""
    console = tables()
    share = facts["parameters_trained"] / facts["parameters"]
    processes = facts["processes"]
    rows = [
        ("profile", facts["profile"] or "none"),
        ("parameters trained", f"{facts['parameters_trained']:,} of {facts['parameters']:,} ({share:.1%})"),
        ("tokens a step", f"at most {facts['tokens_per_step']:,} in {facts['packs_per_step']} packs"),
        ("processes", f"{processes}"),
        ("steps", f"{facts['steps']:,}"),
        ("steps an epoch", _epoch(facts)),
        ("time", _time(facts)),
    ]
    about = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=False)
    for row in rows:
        about.add_row(*row)
    console.print(about)
    where = "of each GPU" if processes > 1 else "in all"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"predicted memory {where}", title_justify="left")
    table.add_column("part")
    table.add_column("bytes", justify="right")
    for name, words in _PARTS.items():
        if facts["memory"][name]:
            table.add_row(words, size_text(facts["memory"][name]))
    table.add_row("at the worst moment", size_text(facts["memory"]["peak"]), style="bold")
    table.add_row("free", size_text(facts["free"]))
    console.print(table)


_PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimiser",
    "average": "averaged weights (EMA)",
    "activations": "activations kept for the backward pass",
    "layer": "work in one layer",
    "logits": "logits of one chunk of targets",
    "autoencoder": "autoencoder",
    "encoding": "work of the autoencoder",
    "gathered": "weights gathered from other processes",
    "context": "context of the device",
}
"""The parts of the predicted memory in words. They are not all there at the same moment."""


def _epoch(facts: dict[str, Any]) -> str:
    if facts["rows"] is None:
        return "not known: the data do not say how many rows they have"
    if facts["steps_per_epoch"] is None:
        return f"not known: {facts['rows']:,} rows, and a pack's samples are not counted yet"
    return f"about {facts['steps_per_epoch']:,} for {facts['rows']:,} rows"


def _time(facts: dict[str, Any]) -> str:
    seconds = facts["seconds_per_step"]
    if seconds is None:
        return "not measured yet: the first reports of the run tell"
    return f"{seconds:.3g} seconds a step in the last report, {seconds * facts['steps'] / 3600:.2g} hours in all"
