"""Scores `mini` in every precision, for the table of docs/precision.md: `python benchmarks/precision.py`.

The same items and seeds for every precision, so that what differs is the precision. The chains are one row alone, of
which few are right, so they are scored on three times the items where the rest does not show a loss already. What has
been scored stays, row by row, so that it can be interrupted. `python benchmarks/readme.py` then writes the table.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from readme import CHAINS, FILES, SCORED, lossy, scored

from bagel_mot.checkpoint.official import fingerprint
from bagel_mot.files import write_text
from bagel_mot.inference.loading import MINI_FOLDER

CONVERTED = Path("runs") / "precision"


def main(
    items: Annotated[int, typer.Option(help="Items in each row of the evaluation.", min=1)] = 200,
    only: Annotated[list[str] | None, typer.Option(help="Precisions to score; all if not given.")] = None,
    chains: Annotated[bool, typer.Option(help="Score the chains on more items too.")] = True,
) -> None:
    """Score mini in every precision."""
    unknown = sorted(set(only or ()) - SCORED.keys())
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: it must be {', '.join(SCORED)}.", param_hint="--only")
    wanted = only or list(SCORED)
    for precision in wanted:
        score(precision, items, SCORED[precision])
    lost = lossy(scored(), but=("chains",))
    for precision in wanted if chains else ():
        if precision in CHAINS and precision not in lost:
            score(precision, 3 * items, CHAINS[precision], "--rows", "edit/chain of 3")


def score(precision: str, items: int, target: Path, *more: str) -> None:
    """One precision: as it is loaded, or of a file that mini is converted to."""
    chosen = ["--precision", precision]
    if precision in FILES:
        folder = CONVERTED / f"{precision}-{fingerprint(MINI_FOLDER)}"  # another mini is converted anew
        if not folder.exists():
            run("convert", "mini", str(folder), "--format", precision)
        chosen = ["--precision", "bfloat16", "--checkpoint", str(folder)]
    run("eval", "mini", *chosen, "--items", str(items), *more, "--json", str(target))
    if precision in FILES:  # whose fingerprint is that of the file
        report = json.loads(target.read_text(encoding="utf-8"))
        write_text(target, json.dumps({**report, "made_from": fingerprint(MINI_FOLDER)}, indent=2) + "\n")


def run(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "bagel_mot", *arguments], check=True)


if __name__ == "__main__":
    typer.run(main)
