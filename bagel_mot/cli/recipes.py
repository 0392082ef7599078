"""`bagel train --list` and `--plan`: what recipes train, and what that takes."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.table import Table

from bagel_mot.cli.options import tables
from bagel_mot.training.packaged import PackagedRecipe


def print_recipes(recipes: Iterable[PackagedRecipe]) -> None:
    """Prints the names of recipes and what each trains."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    table.add_column("what it trains")
    for recipe in recipes:
        table.add_row(recipe.name, recipe.line)
    tables().print(table)
