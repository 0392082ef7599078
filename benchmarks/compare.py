"""Judges two result files of `bagel bench --json`: each row is faster, slower or the same within noise.

python benchmarks/compare.py OLD NEW [--relative] [--fail-on-slower]

A row's noise is how far its repeated runs lie apart: from the shortest, which counts, to the median. Two rows differ
where the shortest times differ by more than the noise of both together, and by more than 3% in any case. Status 1: with
--fail-on-slower, a row is slower. Status 2: the files cannot be compared.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from bagel_mot.cli.options import new_table, notes, tables
from bagel_mot.errors import BagelError, SettingError

LEAST_NOISE = 0.03
"""The relative difference below which no two rows differ: the clock rate of a quiet machine varies as much."""
_SAME = ("config", "dtype", "device", "layers")


@dataclass(frozen=True)
class Verdict:
    """What became of a row.

    Attributes:
        name: the row's name.
        old, new: its seconds, or with `relative` its multiples of the matmuls' time.
        noise: the relative difference that repeated runs explain.
        word: "faster", "slower" or "same".
    """

    name: str
    old: float
    new: float
    noise: float

    @property
    def word(self) -> str:
        if self.new < self.old / (1 + self.noise):
            return "faster"
        return "slower" if self.new > self.old * (1 + self.noise) else "same"


def read_report(path: Path) -> dict[str, Any]:
    """A result file.

    Raises:
        SettingError: it is none of `bagel bench`.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingError(f"{path} cannot be read ({error}): give a file that bagel bench --json wrote.") from error
    if not isinstance(report, dict) or not {"machine", "results", *_SAME} <= report.keys():
        raise SettingError(f"{path} is no result of bagel bench: give a file that bagel bench --json wrote.")
    return report


def check_comparable(old: dict[str, Any], new: dict[str, Any], *, relative: bool) -> None:
    """Checks that two files measure the same thing on the same machine; relative times may be of two machines.

    Raises:
        SettingError: they do not.
    """
    for key in _SAME:
        if old[key] != new[key]:
            raise SettingError(
                f"{key} is {old[key]!r} in the old file and {new[key]!r} in the new one: compare equals."
            )
    if not relative:
        for key in ("processor", "threads"):
            before, after = old["machine"].get(key), new["machine"].get(key)
            if before != after:
                raise SettingError(
                    f"the machine's {key} is {before!r} in the old file and {after!r} in the new one: --relative "
                    "compares multiples of each machine's own matmuls."
                )


def compare(old: dict[str, Any], new: dict[str, Any], *, relative: bool = False) -> list[Verdict]:
    """The verdicts of all rows that both files have, in the order of the new one. A whole task has no matmuls of its
    own beside it, so with `relative` it is left out.
    """
    before = _rows(old)
    verdicts = []
    for name, row in _rows(new).items():
        if name not in before or (relative and not all("matmul" in r["seconds"] for r in (row, before[name]))):
            continue
        pair = before[name], row
        ways = ("ours", "matmul") if relative else ("ours",)
        spread = sum(_spread(one, way) for one in pair for way in ways)
        first, second = (one["seconds"]["ours"] / (one["seconds"]["matmul"] if relative else 1) for one in pair)
        verdicts.append(Verdict(name, first, second, max(LEAST_NOISE, spread)))
    return verdicts


def _rows(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in [*report["results"], *report.get("tasks", [])]}


def _spread(row: dict[str, Any], way: str) -> float:
    """How far a row's repeated runs lie apart: the median beyond the shortest, as a share of it. Of a single run
    nothing is known: it counts as far apart as runs of a machine with other work.
    """
    if len(row.get("runs", {}).get(way, (0, 0))) < 2:
        return 0.1
    shortest = row["seconds"][way]
    return (row["median_seconds"][way] - shortest) / shortest


def main(
    old: Annotated[Path, typer.Argument(help="The file to compare with.")],
    new: Annotated[Path, typer.Argument(help="The file that is judged.")],
    relative: Annotated[
        bool, typer.Option("--relative", help="Compare multiples of the matmuls' time, which fits two machines.")
    ] = False,
    fail_on_slower: Annotated[
        bool, typer.Option("--fail-on-slower", help="End with status 1 if a row is slower.")
    ] = False,
) -> None:
    """Judge two result files of bagel bench: each row is faster, slower or the same within noise."""
    try:
        before, after = read_report(old), read_report(new)
        check_comparable(before, after, relative=relative)
        verdicts = compare(before, after, relative=relative)
        if not verdicts:
            raise SettingError(f"{old} and {new} have no row in common: compare runs of the same settings.")
    except BagelError as error:
        notes().print(str(error), markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    table = new_table(f"{old.name} → {new.name}", "row", "old", "new", "change", "noise", "verdict")
    for found in verdicts:
        change = found.new / found.old - 1
        table.add_row(
            found.name, f"{found.old:.4g}", f"{found.new:.4g}", f"{change:+.1%}", f"{found.noise:.1%}", found.word
        )
    console = tables()
    console.print(table)
    for path, report, other in ((old, before, after), (new, after, before)):
        if alone := sorted(_rows(report).keys() - _rows(other).keys()):
            console.print(f"only in {path.name}: {'; '.join(alone)}", markup=False, soft_wrap=True)
        if report["machine"].get("busy"):
            console.print(f"{path.name} was measured on a busy machine", markup=False, soft_wrap=True)
    if fail_on_slower and any(found.word == "slower" for found in verdicts):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
