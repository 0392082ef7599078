"""Rows of training data on disk: their keys, and the reasons for leaving one out."""

from __future__ import annotations

from typing import NamedTuple

from bagel_mot.errors import DataError


class RowKey(NamedTuple):
    """The place of a row: enough to read it again, and a plain list in JSON.

    Attributes:
        dataset: the name of the data set, unique in a run.
        unit: the number of the unit among those of the data set's reader.
        row: the number of the row within the unit, from 0.
    """

    dataset: str
    unit: int
    row: int


class SkipRow(DataError):
    """A row that no sample can be made of. The message is the reason, a sentence that a person understands; the row is
    counted and listed with it, and reading goes on.

    Attributes:
        reason: the short name of the reason, the same for all rows that are skipped for it: skipped rows are counted
            by it.
    """

    def __init__(self, reason: str, sentence: str | None = None) -> None:
        """Makes one of a reason, such as "the image cannot be read", and a sentence with the particulars."""
        super().__init__(sentence or reason)
        self.reason = reason
