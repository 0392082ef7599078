"""What is aimed at on an H200 at the official size, and whether a report reaches it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """A bound for a number of a measurement.

    Attributes:
        task: the measurement.
        precisions: those that it is for.
        batch: its requests.
        field: the number.
        bound: its bound.
        at_least: whether the number is to be no smaller than the bound; else no larger.
    """

    task: str
    precisions: tuple[str, ...]
    batch: int
    field: str
    bound: float
    at_least: bool = False

    @property
    def name(self) -> str:
        return f"{self.task}, {' or '.join(self.precisions)}, batch {self.batch}"

    def is_of(self, row: Mapping[str, Any]) -> bool:
        """Whether a row is one of those measurements, and did not fail."""
        same = (row["task"], row["batch"]) == (self.task, self.batch)
        return same and row["precision"] in self.precisions and self.field in row

    def met(self, number: float) -> bool:
        return number >= self.bound if self.at_least else number <= self.bound

    def text(self) -> str:
        return f"{self.field} {'≥' if self.at_least else '≤'} {self.bound:g}"


ANY = ("bfloat16", "fp8-dynamic", "fp8", "int8", "nf4")
TARGETS = (
    Target("generate", ("bfloat16",), 1, "seconds", 8.0),  # its matmuls alone take 6.8
    Target("generate", ("fp8-dynamic",), 1, "seconds", 4.8),
    Target("small", ANY, 1, "seconds", 0.95),
    Target("edit", ANY, 1, "seconds", 16.0),
    Target("write", ANY, 1, "tokens_per_second", 130.0, at_least=True),
    Target("write", ANY, 32, "tokens_per_second", 2500.0, at_least=True),
)


def of_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The target of a row and whether it is met; nothing where there is none."""
    found = next((target for target in TARGETS if target.is_of(row)), None)
    return {} if found is None else {"target": found.text(), "met": found.met(row[found.field])}


def reached(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each target the best row that it is for, and whether that meets it; `met` is None where nothing was
    measured.
    """
    found: dict[str, dict[str, Any]] = {}
    for target in TARGETS:
        mine = [row for row in rows if target.is_of(row)]
        entry: dict[str, Any] = {"target": target.text(), "met": None}
        if mine:
            pick = max if target.at_least else min
            best = pick(mine, key=lambda row: row[target.field])
            entry |= {"best": best[target.field], "precision": best["precision"], "way": best["way"]}
            entry["met"] = target.met(best[target.field])
        found[target.name] = entry
    return found
