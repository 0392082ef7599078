"""Rows that are turns of sessions, read as sessions: neighbouring rows that share an id, as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from bagel_mot.data.readers.base import BrokenRow, Reader, Row, Unit
from bagel_mot.errors import DataError, did_you_mean


class TurnsReader(Reader):
    """Sessions of another reader's rows; each is a row whose columns are lists, with one value for each turn.

    How many sessions a unit has is not known before it is read.

    Attributes:
        rows: the reader of the turns.
        session: the column with the id that the turns of a session share.
        turn: the column with the number of a turn. Where it does not count on by one, a session ends.
    """

    def __init__(self, rows: Reader, session: str, turn: str) -> None:
        self.rows, self.session, self.turn = rows, session, turn

    def units(self) -> Sequence[Unit]:
        return [Unit(unit.name) for unit in self.rows.units()]

    def read(self, unit: int, start: int = 0) -> Iterator[Row]:
        return islice(self._sessions(unit), start, None)

    def place(self, unit: int, row: int) -> str:
        return f"{self.units()[unit].name}, session {row}"

    def _sessions(self, unit: int) -> Iterator[Row]:
        turns: list[Row] = []
        for row in self.rows.read(unit):
            if turns and (isinstance(row, BrokenRow) or not self._follows(turns[-1], row)):
                yield _as_lists(turns)
                turns = []
            if isinstance(row, BrokenRow):
                yield row
            else:
                self._check(row, unit)
                turns.append(row)
        if turns:
            yield _as_lists(turns)

    def _follows(self, before: Row, row: Row) -> bool:
        """Whether a row is the next turn of the session that another row is of."""
        same = row.get(self.session) == before[self.session]
        number, last = row.get(self.turn), before[self.turn]
        return same and isinstance(number, int) and isinstance(last, int) and number == last + 1

    def _check(self, row: Row, unit: int) -> None:
        for name in (self.session, self.turn):
            if name not in row:
                raise DataError(f"{self.rows.units()[unit].name} has no column {name}; {did_you_mean(name, row)}")


def _as_lists(turns: Sequence[Row]) -> dict[str, list[Any]]:
    return {name: [turn.get(name) for turn in turns] for name in turns[0]}
