"""WebDataset tars: neighbouring files of one name are a row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from bagel_mot.data.readers.base import BrokenRow, FilesReader, Row, Unit
from bagel_mot.data.readers.tars import TarIndex, open_tar, tar_index

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp")
_TEXTS = ("txt", "text", "caption")


class WebDatasetReader(FilesReader):
    """Rows of tars; a unit is a tar.

    The files of a row have the same name up to the first dot of their last part, and follow one another. A row has
    `__key__`, that name; `image`, the bytes of the first image; the content of every file under its ending: bytes, or
    a text for txt; and the keys of a JSON object, so far as they are not taken.
    """

    @cached_property
    def _starts(self) -> tuple[np.ndarray, ...]:
        """The number of the first member of each row and, last, the number of all members, int64; of every tar."""
        return tuple(_row_starts(tar_index((file,))) for file in self.files)

    def units(self) -> Sequence[Unit]:
        return [Unit(str(file), len(starts) - 1) for file, starts in zip(self.files, self._starts, strict=True)]

    def read(self, unit: int, start: int = 0) -> Iterator[Row]:
        index, starts = tar_index((self.files[unit],)), self._starts[unit]
        with open_tar(index.parts) as file:
            for row in range(start, len(starts) - 1):
                members = range(starts[row], starts[row + 1])
                yield _row({index.names[number]: index.read(file, number) for number in members})

    def place(self, unit: int, row: int) -> str:
        index = tar_index((self.files[unit],))
        return f"{self.files[unit]}, {_split(index.names[self._starts[unit][row]])[0]} (row {row})"


def _split(name: str) -> tuple[str, str]:
    """The key and the ending of a member's name."""
    folder, slash, last = name.rpartition("/")
    stem, _, ending = last.partition(".")
    return folder + slash + stem, ending.lower()


def _row_starts(index: TarIndex) -> np.ndarray:
    keys = [_split(name)[0] for name in index.names]
    first = [number for number, key in enumerate(keys) if not number or key != keys[number - 1]]
    return np.array([*first, len(keys)], dtype=np.int64)


def _row(members: dict[str, bytes]) -> Row:
    row: dict[str, Any] = {}
    objects: list[dict[str, Any]] = []
    for name, content in members.items():
        row["__key__"], ending = _split(name)
        try:
            if ending == "json":
                row[ending] = json.loads(content)
                objects += [row[ending]] if isinstance(row[ending], dict) else []
            else:
                row[ending] = content.decode("utf-8-sig").strip() if ending in _TEXTS else content
        except (ValueError, RecursionError) as error:
            kind = "JSON" if ending == "json" else "UTF-8"
            return BrokenRow(f"a {ending} file is no {kind}", f"{name} is no {kind}: {error}")
        if ending in IMAGE_ENDINGS:
            row.setdefault("image", content)
    for content_of_json in objects:
        for key, value in content_of_json.items():
            row.setdefault(key, value)
    return row
