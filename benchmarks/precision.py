"""What each precision costs `mini`: its scores, and the table of docs/precision.md.

    python benchmarks/precision.py --items 100     evaluates what is missing, then writes the table
    python benchmarks/precision.py --table         writes the table alone

The same items and seeds for every precision, so that what differs is the precision; still, a score of 100 items moves
by some points when single answers tip over.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "precision.md"
BASE = "bfloat16"
PRECISIONS = (BASE, "int8", "int8-dynamic", "fp8", "int4", "nf4")
LOSS = 0.02
"""A precision that loses more than this on any row is called lossy."""


def result(precision: str) -> Path:
    return RESULTS / f"eval-mini-{precision}.json"


def scores(precision: str) -> dict[str, float]:
    """Share right by ability."""
    report = json.loads(result(precision).read_text())
    return {name: float(ability["share"]) for name, ability in abilities(report).items()}


def abilities(report: dict[str, Any]) -> dict[str, Any]:
    return {name: row for name, row in report["rows"].items() if not name.startswith("judge")}


def lossy() -> set[str]:
    """Precisions that lose more than LOSS on any ability, of those that were measured."""
    base = scores(BASE)
    measured = [p for p in PRECISIONS[1:] if result(p).exists()]
    return {p for p in measured if any(base[name] - share > LOSS for name, share in scores(p).items())}


def main(
    items: Annotated[int, typer.Option(help="Items in each row of the evaluation.", min=1)] = 100,
    table: Annotated[bool, typer.Option("--table", help="Evaluate nothing, write the table.")] = False,
) -> None:
    """Score mini in every precision."""
    if not table:
        for precision in PRECISIONS:
            command = [sys.executable, "-m", "bagel", "eval", "mini", "--precision", precision, "--items", str(items)]
            subprocess.run([*command, "--json", str(result(precision))], check=True)
    write_table()


def write_table() -> None:
    measured = [p for p in PRECISIONS if result(p).exists()]
    found = {p: scores(p) for p in measured}
    lines = ["| row | " + " | ".join(measured) + " |", "|---|" + "---|" * len(measured)]
    for name in found[BASE]:
        cells = [f"{found[BASE][name]:.3f}"]
        cells += [f"{100 * (found[p][name] - found[BASE][name]):+.1f}" for p in measured[1:]]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    text = PAGE.read_text(encoding="utf-8")
    begin, end = "<!-- scores by precision -->", "<!-- end of scores -->"
    text = re.sub(f"{begin}.*{end}", f"{begin}\n" + "\n".join(lines) + f"\n{end}", text, flags=re.DOTALL)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
