"""Files with one JSON object a line, read from any line on."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from bagel_mot.data.readers.base import BrokenRow, Reader, Row, Unit
from bagel_mot.data.remote import AnyPath
from bagel_mot.errors import DataError
from bagel_mot.files import check_content

_BLOCK = 1 << 24  # bytes that are searched for line ends at a time


class JsonlReader(Reader):
    """Lines of one or several files; a unit is a file.

    Every line counts, a blank or broken one too.

    Attributes:
        files: the files, in order.
        limits: the most lines that are used of each file; None uses all.
        shuffle_seed: if given, the lines that a limit leaves are chosen at random, the same ones for the same seed.
    """

    random_access = True

    def __init__(
        self,
        files: Sequence[AnyPath],
        limits: Sequence[int | None] | None = None,
        shuffle_seed: int | None = None,
    ) -> None:
        self.files = tuple(files)
        self.limits = tuple(limits) if limits is not None else (None,) * len(self.files)
        self.shuffle_seed = shuffle_seed

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "limits": self.limits, "shuffle_seed": self.shuffle_seed}

    @cached_property
    def _bounds(self) -> tuple[np.ndarray, ...]:
        """The begin and end of each line that is used, int64 (lines, 2), of every file."""
        return tuple(map(self._of_file, self.files, self.limits))

    def _of_file(self, file: AnyPath, limit: int | None) -> np.ndarray:
        lines = _line_bounds(file)
        if limit is None or limit >= len(lines):
            return lines
        chosen = list(range(len(lines)))
        if self.shuffle_seed is not None:
            random.Random(self.shuffle_seed).shuffle(chosen)
        self._numbers[file] = np.array(sorted(chosen[:limit]), dtype=np.int64)
        return lines[self._numbers[file]]

    @cached_property
    def _numbers(self) -> dict[AnyPath, np.ndarray]:
        """The numbers of the lines that are used, of the files of which not all are."""
        return {}

    def units(self) -> Sequence[Unit]:
        return [Unit(str(file), len(bounds)) for file, bounds in zip(self.files, self._bounds, strict=True)]

    def line(self, unit: int, row: int) -> int:
        """The number of a row's line in its file, from 0."""
        bounds = self._bounds[unit]
        numbers = self._numbers.get(self.files[unit])
        return int(numbers[row]) if numbers is not None and row < len(bounds) else row

    def place(self, unit: int, row: int) -> str:
        return f"{self.files[unit]}, line {self.line(unit, row) + 1}"

    def read(self, unit: int, start: int = 0) -> Iterator[Row]:
        return map(_row, self.texts(unit, start))

    def texts(self, unit: int, start: int = 0) -> Iterator[bytes]:
        """The lines of a unit as they are in the file, each with its line feed."""
        file, bounds = self.files[unit], self._bounds[unit]
        try:
            with file.open("rb") as opened:
                for row in range(start, len(bounds)):
                    begin, end = bounds[row]
                    opened.seek(begin)
                    yield opened.read(end - begin)
        except OSError as error:
            raise DataError(f"{file} cannot be read ({error.strerror}); a JSONL file is expected") from error


def _row(line: bytes) -> Row:
    if not line.strip():
        return BrokenRow("a blank line", "the line is blank; a JSON object is expected")
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        return BrokenRow("a line is no JSON", f"the line is no JSON: {error.msg} at character {error.pos + 1}")
    except (ValueError, RecursionError) as error:
        return BrokenRow("a line is no JSON", f"the line is no JSON: {error}")
    if not isinstance(content, dict):
        return BrokenRow(
            "a line is no JSON object", f"the line holds a {type(content).__name__}; a JSON object is expected"
        )
    return content


def _line_bounds(file: AnyPath) -> np.ndarray:
    """The begin and end of each line of a file, int64 (lines, 2); what follows the last line feed is a line if it is
    not empty.

    Raises:
        DataError: the file is missing, empty, or something else in place of it.
    """
    ends: list[np.ndarray] = []
    size = 0
    try:
        check_content(file, DataError)
        with file.open("rb") as opened:
            while block := opened.read(_BLOCK):
                ends.append(np.flatnonzero(np.frombuffer(block, np.uint8) == 0x0A) + size + 1)
                size += len(block)
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}); a JSONL file is expected") from error
    found = np.concatenate(ends).astype(np.int64)
    if not len(found) or found[-1] != size:
        found = np.append(found, size)
    return np.stack([np.concatenate([[0], found[:-1]]), found], axis=1)
