"""Parquet files, read by file or by row group; their own footers say what is in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bagel_mot.data.readers.base import Reader, Row, Unit
from bagel_mot.data.remote import AnyPath
from bagel_mot.errors import DataError, did_you_mean
from bagel_mot.installation import install_command

_BATCH = 64  # rows that are turned into Python objects at a time


class RowGroup(NamedTuple):
    """A row group of a file: its number, and the number of its rows."""

    file: AnyPath
    number: int
    rows: int


class ParquetRow(NamedTuple):
    """The place of a row: its file, its row group there, and its number in that."""

    file: AnyPath
    number: int
    row: int


class ParquetReader(Reader):
    """Rows of Parquet files.

    Attributes:
        files: the files, in order.
        columns: the columns that are read; every file must have them.
        by: whether a unit is a whole file or a row group.
    """

    def __init__(
        self,
        files: Sequence[AnyPath],
        columns: Sequence[str] | None = None,
        by: Literal["file", "row group"] = "row group",
    ) -> None:
        """Takes files as they are named; they are opened when they are needed.

        Args:
            files: the files, in order; one may be there more than once.
            columns: the columns that are read; all of them if None.
            by: whether a unit is a whole file or a row group.
        """
        self.files, self.columns, self.by = tuple(files), None if columns is None else tuple(columns), by

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "columns": self.columns, "by": self.by}

    @cached_property
    def groups(self) -> tuple[RowGroup, ...]:
        """The row groups of all files, in order.

        Raises:
            DataError: a file is missing, is no Parquet file, or lacks a column.
        """
        return tuple(group for file in self.files for group in self._groups(file))

    @cached_property
    def _units(self) -> tuple[tuple[Unit, tuple[RowGroup, ...]], ...]:
        if self.by == "row group":
            return tuple((Unit(f"{g.file}, row group {g.number}", g.rows), (g,)) for g in self.groups)
        by_file = [tuple(self._groups(file)) for file in self.files]
        return tuple(
            (Unit(str(file), sum(group.rows for group in groups)), groups)
            for file, groups in zip(self.files, by_file, strict=True)
        )

    def units(self) -> Sequence[Unit]:
        return [unit for unit, _ in self._units]

    def read(self, unit: int, start: int = 0) -> Iterator[Row]:
        for group in self._units[unit][1]:
            if start >= group.rows:
                start -= group.rows
                continue
            yield from self._rows(group, start)
            start = 0

    def row_group(self, unit: int, row: int) -> ParquetRow:
        """The row group that a row of a unit is in, and its number there."""
        for group in self._units[unit][1]:
            if row < group.rows:
                return ParquetRow(group.file, group.number, row)
            row -= group.rows
        raise DataError(f"{self._units[unit][0].name} has {self._units[unit][0].rows} rows, and none beyond")

    def rows_before(self, unit: int, number: int) -> int:
        """The rows of a unit that come before a row group of its file."""
        return sum(group.rows for group in self._units[unit][1] if group.number < number)

    def place(self, unit: int, row: int) -> str:
        at = self.row_group(unit, row)
        return f"{at.file}, row group {at.number}, row {at.row}"

    def _groups(self, file: AnyPath) -> Iterator[RowGroup]:
        with _open(file) as parquet:
            names = parquet.schema_arrow.names
            if missing := [column for column in self.columns or () if column not in names]:
                raise DataError(f"{file} has no column {missing[0]}; {did_you_mean(missing[0], names)}")
            for number in range(parquet.num_row_groups):
                yield RowGroup(file, number, parquet.metadata.row_group(number).num_rows)

    def _rows(self, group: RowGroup, start: int) -> Iterator[Row]:
        import pyarrow

        columns = None if self.columns is None else list(self.columns)
        with _open(group.file) as parquet:
            seen = 0
            try:
                for batch in parquet.iter_batches(_BATCH, [group.number], columns):
                    if seen + batch.num_rows > start:
                        yield from batch.slice(max(start - seen, 0)).to_pylist()
                    seen += batch.num_rows
            except (pyarrow.ArrowException, OSError) as error:
                raise DataError(
                    f"{group.file} is damaged in row group {group.number} ({error}): download it anew"
                ) from error


@contextmanager
def _open(file: AnyPath) -> Iterator[Any]:
    """A Parquet file, whose content is read from its place as it is needed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{file} is a Parquet file, which needs pyarrow: {install_command('data')}") from error
    with ExitStack() as opened:
        try:
            # PyArrow opens local files by itself, and then reads without Python's lock.
            source = file if isinstance(file, Path) else opened.enter_context(file.open("rb"))
            parquet = opened.enter_context(pyarrow.parquet.ParquetFile(source))
        except (pyarrow.ArrowException, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).partition("\n")[0]
            raise DataError(f"{file} could not be read as Parquet: {reason}") from error
        yield parquet


def parquet_files(folder: AnyPath) -> list[AnyPath]:
    """The Parquet files that lie in a folder itself, by name.

    Raises:
        DataError: the folder is missing, or there are none.
    """
    try:
        listed: list[AnyPath] = list(folder.iterdir())
        inside = sorted(listed, key=lambda file: file.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}); a folder of Parquet files is expected") from error
    files = [file for file in inside if file.name.endswith(".parquet")]
    if not files:
        raise DataError(f"{folder} has no .parquet file in it, so there is nothing to train on")
    return files
