"""The judgement of one case of recorded data: what must agree, what may differ, and what counts as right instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from bagel_mot.verify.data.recorded import RecordedData
from bagel_mot.verify.records import Case, Comparison


@dataclass
class RecordJudge:
    """Compares what one case records with what is computed here; each quantity becomes a `Comparison`.

    Attributes:
        case: the entry of cases.json.
        recorded: the set that it belongs to.
        rows: the comparisons so far.
    """

    case: Case
    recorded: RecordedData
    rows: list[Comparison] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.case["name"])

    @property
    def mark(self) -> str:
        return str(self.case["mark"])

    @property
    def quirk(self) -> str:
        """The name under which a difference in a quirk is counted: its note, else the case."""
        return str(self.case.get("note") or self.case.get("about") or self.name)

    def run(self, judged: Callable[[RecordedData, RecordJudge], None]) -> None:
        """Judges the case. Any error becomes a failing row, and so does a case in which nothing was compared."""
        try:
            judged(self.recorded, self)
        except KeyError as error:
            self.fail("case", f"cases.json does not give {error}")
        except Exception as error:  # the code under test may fail in any way; the report must come out all the same
            self.fail("case", f"{type(error).__name__}: {error}")
        if not self.rows:
            self.fail("case", "nothing was compared")

    def same(self, quantity: str, got: Any, recorded: Any, *, may_differ: str = "") -> None:
        """Compares two values that must be equal.

        Args:
            quantity: the name of the compared quantity.
            got: the value that was computed here.
            recorded: the value that was recorded.
            may_differ: the name of the quirk that a difference is counted under; by default it is a failure.
        """
        if got == recorded:
            self._add(quantity, 0.0, True)
        elif may_differ:
            self.rows.append(Comparison(self.name, quantity, None, True, _differ(got, recorded), differs=may_differ))
        else:
            self._add(quantity, 1.0, False, _differ(got, recorded))

    def tensor(self, quantity: str, got: Tensor, key: str, tolerance: float = 0.0, *, relative: bool = False) -> None:
        """Compares a tensor with the recorded one named `key`: within `tolerance`, absolute unless `relative`."""
        recorded = self.recorded.tensor(key)
        if got.shape != recorded.shape:
            return self.fail(quantity, f"shape {list(got.shape)} instead of {list(recorded.shape)}")
        difference = (got.double() - recorded.double()).abs()
        difference[got == recorded] = 0  # infinities that agree
        if relative:
            difference = difference / recorded.double().abs().clamp_min(1e-30)
        worst = float(difference.max()) if difference.numel() else 0.0
        return self._add(quantity, worst, worst <= tolerance)  # NaN is not within it

    def holds(self, quantity: str, holds: bool, note: str) -> None:
        """Checks a property; `note` says what was found."""
        self._add(quantity, float(not holds), holds, note)

    def fail(self, quantity: str, note: str) -> None:
        self._add(quantity, None, False, note)

    def _add(self, quantity: str, error: float | None, passed: bool, note: str = "") -> None:
        self.rows.append(Comparison(self.name, quantity, error, passed, note))


def _differ(got: Any, recorded: Any) -> str:
    return f"{got!r:.200} instead of {recorded!r:.200}"
