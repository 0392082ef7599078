"""Scores `mini` in every precision, for the table of docs/precision.md: `python benchmarks/precision.py`.

The same items and seeds for every precision, so that what differs is the precision. What has been scored stays, row by
row, so that it can be interrupted. `python benchmarks/readme.py` then writes the table.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated

import typer
from readme import PRECISIONS, SCORED


def main(
    items: Annotated[int, typer.Option(help="Items in each row of the evaluation.", min=1)] = 200,
    only: Annotated[list[str] | None, typer.Option(help="Precisions to score; all if not given.")] = None,
) -> None:
    """Score mini in every precision."""
    for precision in only or PRECISIONS:
        command = [sys.executable, "-m", "bagel", "eval", "mini", "--precision", precision, "--items", str(items)]
        subprocess.run([*command, "--json", str(SCORED[precision])], check=True)


if __name__ == "__main__":
    typer.run(main)
