"""Scores `mini` in every precision, for the table of docs/precision.md: `python benchmarks/precision.py`.

The same items and seeds for every precision, so that what differs is the precision. The chains are one row alone, of
which few are right, so they are scored on three times the items where the rest does not show a loss already. What has
been scored stays, row by row, so that it can be interrupted. `python benchmarks/readme.py` then writes the table.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from readme import CHAINS, PRECISIONS, SCORED, lossy, scored


def main(
    items: Annotated[int, typer.Option(help="Items in each row of the evaluation.", min=1)] = 200,
    only: Annotated[list[str] | None, typer.Option(help="Precisions to score; all if not given.")] = None,
) -> None:
    """Score mini in every precision."""
    wanted = only or PRECISIONS
    for precision in wanted:
        score(precision, items, SCORED[precision])
    lost = lossy(scored(), but=("chains",))
    for precision in wanted:
        if precision in CHAINS and precision not in lost:
            score(precision, 3 * items, CHAINS[precision], "--rows", "edit/chain of 3")


def score(precision: str, items: int, target: Path, *more: str) -> None:
    command = [sys.executable, "-m", "bagel", "eval", "mini", "--precision", precision, "--items", str(items)]
    subprocess.run([*command, *more, "--json", str(target)], check=True)


if __name__ == "__main__":
    typer.run(main)
