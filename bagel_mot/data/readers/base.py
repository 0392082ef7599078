"""The protocol of readers: rows on disk, unit by unit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bagel_mot.data.remote import AnyPath

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Unit:
    """A part of a data set that is read in one go: a file, a row group, a tar, a stretch of lines.

    Attributes:
        name: the unit's name in messages and lists, such as the path of its file.
        rows: the number of its rows; None where that is not known before it is read.
    """

    name: str
    rows: int | None = None


class Reader(ABC):
    """Rows on disk. A reader is cheap to construct and can be pickled: every worker process has one of its own.

    Attributes:
        random_access: whether reading from any row of a unit is cheap, so that its rows may be taken in any order.
    """

    random_access: bool = False

    @abstractmethod
    def units(self) -> Sequence[Unit]:
        """The units, in an order that depends on their names alone; the same ones at every call.

        Raises:
            DataError: there is no data at all, or a file cannot be used.
        """

    @abstractmethod
    def read(self, unit: int, start: int = 0) -> Iterator[Row]:
        """The rows of a unit in order.

        A row that is unreadable by itself, such as a broken line, is given as a `BrokenRow`, so that it counts as a row
        and is reported.

        Args:
            unit: the unit's number.
            start: the number of the first row that is wanted; there may be none from there on.

        Raises:
            DataError: the file is missing or damaged, as a whole.
        """

    def row(self, unit: int, row: int) -> Row:
        """One row of a unit."""
        return next(self.read(unit, row))

    def place(self, unit: int, row: int) -> str:
        """The words that a person finds a row by, such as "part-0.parquet, row 3"; rows count from 0."""
        return f"{self.units()[unit].name}, row {row}"


class FilesReader(Reader):
    """A reader of files, one a unit; whatever it finds out of them stays behind when it is pickled.

    Attributes:
        files: the files, in order.
    """

    random_access = True

    def __init__(self, files: Sequence[AnyPath]) -> None:
        self.files = tuple(files)

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files}


class BrokenRow(dict[str, Any]):
    """A row that cannot be read, with the reason; it has no fields.

    Attributes:
        reason: the short name of the reason, as in `SkipRow`.
        sentence: the particulars.
    """

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__()
        self.reason, self.sentence = reason, sentence

    def __reduce__(self) -> tuple[Any, ...]:
        return BrokenRow, (self.reason, self.sentence)
