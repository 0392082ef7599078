"""JSON files that are one list of objects."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from bagel_mot.data.readers.base import BrokenRow, FilesReader, Row, Unit
from bagel_mot.data.remote import AnyPath
from bagel_mot.errors import DataError
from bagel_mot.files import read_text


class JsonReader(FilesReader):
    """The objects in the list of each file, which are all in memory; a unit is a file.

    A file may also hold an object with the list under one of its keys.
    """

    @cached_property
    def _rows(self) -> tuple[list[Any], ...]:
        return tuple(map(_listed, self.files))

    def units(self) -> Sequence[Unit]:
        return [Unit(str(file), len(rows)) for file, rows in zip(self.files, self._rows, strict=True)]

    def read(self, unit: int, start: int = 0) -> Iterator[Row]:
        for row in self._rows[unit][start:]:
            if isinstance(row, dict):
                yield row
            else:
                yield BrokenRow("an item is no JSON object", f"the item is {row!r:.80}; a JSON object is expected")

    def place(self, unit: int, row: int) -> str:
        return f"{self.files[unit]}, item {row + 1}"


def _listed(file: AnyPath) -> list[Any]:
    try:
        content = json.loads(read_text(file, DataError))
    except DataError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        hint = "; a file with one object a line is read by kind: jsonl" if "Extra data" in str(error) else ""
        raise DataError(f"{file} could not be read as JSON: {error}{hint}") from error
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        content = lists[0] if len(lists) == 1 else content
    if not isinstance(content, list) or not content:
        what = "an empty list" if isinstance(content, list) else f"a {type(content).__name__}"
        raise DataError(f"{file} holds {what}; a list of objects is expected")
    return content
