"""Reads benchmarks as their authors publish them: TSV, CSV, JSON, JSON lines, Parquet, xlsx and folders of images.

A set is checked before anything runs: `require_complete` refuses one that lacks items or images, and says which.
Images are opened when their item runs, so that a set larger than the memory can be read.
"""

from __future__ import annotations

import base64
import binascii
import csv
import io
import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from bagel_mot.data.readers.base import BrokenRow
from bagel_mot.data.readers.jsonl import JsonlReader
from bagel_mot.data.readers.parquet import ParquetReader
from bagel_mot.errors import DataError, ImageError
from bagel_mot.evaluation.base import ItemImage
from bagel_mot.files import read_text, write_atomically
from bagel_mot.images import open_image
from bagel_mot.installation import install_command

_NAMED = 3  # missing things that a sentence names
_HELD = 2  # columns of images of a row group that are kept at a time

# The texts that the published scripts' table reader takes for a missing value.
MISSING_TEXTS = frozenset(
    (
        *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A"),
        *("NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
    )
)


class MissingFileError(DataError):
    """The folder of a benchmark's data holds none of the files that its items are read from."""


def locate(root: Path, *names: str) -> Path:
    """The first of several files or folders that is there.

    Args:
        root: the folder of the data, as the user names it.
        names: paths below it, the official one first. A name may hold `*`; the first match by name is taken.

    Raises:
        DataError: the folder is missing.
        MissingFileError: none of them is in it.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: give the folder of the benchmark's data.")
    for name in names:
        if found := sorted(root.glob(name)) if "*" in name else [root / name] * (root / name).exists():
            return found[0]
    more = f" (nor {' or '.join(names[1:])})" if names[1:] else ""
    raise MissingFileError(f"{root} lacks {names[0]}{more}: give the folder that the benchmark's data lie in.")


def files_like(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder whose names match a pattern such as `validation-*.parquet`, by name.

    Raises:
        MissingFileError: there are none.
    """
    if not (files := sorted(path for path in folder.glob(pattern) if path.is_file())):
        raise MissingFileError(f"{folder} lacks {pattern}: download the data set again.")
    return files


def require_complete(
    title: str,
    found: Mapping[str, int],
    expected: Mapping[str, int],
    *,
    files: Iterable[Path] = (),
    partial: bool = False,
) -> None:
    """Checks that a set has all its items and the files that they name.

    Args:
        title: the benchmark's name.
        found: the items that were read, by part, such as a task or a split.
        expected: the items of the complete set, by part.
        files: the images that the items name. A missing one is refused in a partial set, too.
        partial: whether the set may have fewer items.

    Raises: DataError naming the parts that lack items or have too many, or the first files that are missing.
    """
    if not any(found.values()):
        raise DataError(f"{title} holds no item: the complete set has {sum(expected.values())}.")
    if not partial:
        wrong = [part for part in {**expected, **found} if found.get(part, 0) != expected.get(part, 0)]
        if wrong:
            parts = named([f"{part} {found.get(part, 0)} of {expected.get(part, 0)}" for part in wrong])
            raise DataError(f"{title} is not complete, so it would not be comparable. Items there: {parts}.")
    missing = [str(path) for path in dict.fromkeys(files) if not path.is_file()]
    if missing:
        raise DataError(f"{title} lacks {_counted(len(missing), 'image')}: {named(missing)}.")


def require_distinct(title: str, ids: Sequence[str]) -> None:
    """Checks that no two items have the same id, by which results and scores are kept.

    Raises: DataError naming the first that two have.
    """
    if len(set(ids)) < len(ids):
        doubled = [id for id, count in Counter(ids).items() if count > 1]
        raise DataError(f"{title} has several items with the id {named(doubled)}: each may have one.")


def named(things: Sequence[str]) -> str:
    """The first of several things, for a sentence, and how many more there are."""
    more = f" and {len(things) - _NAMED} more" if len(things) > _NAMED else ""
    return ", ".join(things[:_NAMED]) + more


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def read_table(path: Path, *, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """The rows of a table with a heading: TSV or CSV by the file's ending. A quoted cell may hold line ends.

    Args:
        path: the file, in UTF-8.
        columns: the columns that must be there.

    Raises:
        DataError: the file is missing, unreadable, lacks a column, or has a row of another length, with its line.
    """
    text = _text(path)
    csv.field_size_limit(sys.maxsize)  # images in base64 are longer than the limit of 128 KiB
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    try:
        heading = next(reader, [])
        rows = []
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(heading):
                raise DataError(
                    f"{path}, line {reader.line_num}: the row has {_counted(len(cells), 'cell')}, "
                    f"the heading {len(heading)}; the file may be cut off: download it again."
                )
            rows.append(dict(zip(heading, cells, strict=True)))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: the table cannot be read ({error}).") from error
    _check_columns(path, heading, columns)
    return rows


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank, without their ends.

    Raises: DataError: the file is missing, or is not UTF-8 text.
    """
    return [line for line in _text(path).split("\n") if line.strip()]


def read_json_file(path: Path) -> Any:
    """The content of a JSON file, a list or an object.

    Raises: DataError: the file is missing, or is not JSON.
    """
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}.") from error


def read_json_lines(path: Path, *, columns: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The objects of a file with one JSON object a line; blank lines are passed over.

    Raises: DataError: the file is missing, or a line is no JSON object or lacks a field, with its number.
    """
    reader = JsonlReader([path])
    rows = []
    for number, row in enumerate(reader.read(0)):
        if isinstance(row, BrokenRow):
            if row.reason == "a blank line":
                continue
            raise DataError(f"{reader.place(0, number)}: {row.sentence}.")
        _check_columns(Path(reader.place(0, number)), row, columns)
        rows.append(dict(row))
    return rows


def read_parquet(
    files: Sequence[Path], *, columns: Sequence[str] = (), images: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The rows of Parquet files.

    Args:
        files: the files, in order.
        columns: the columns that must be there. All columns are read.
        images: the columns that hold images, as the Hugging Face library stores them. Their cells become a
            `ParquetImage`, which is read when it is opened, or None for an empty cell.

    Raises:
        DataError: a file is missing or damaged, or lacks a column.
    """
    rows: list[dict[str, Any]] = []
    for file in files:
        reader = ParquetReader([file])
        for unit in range(len(reader.units())):
            for number, row in enumerate(reader.read(unit)):
                if not rows or not number:
                    _check_columns(file, row, (*columns, *images))
                kept = {name: cell for name, cell in row.items() if name not in images}
                for name in images:
                    kept[name] = None if row[name] is None else ParquetImage(file, unit, number, name)
                rows.append(kept)
    return rows


@dataclass(frozen=True)
class ParquetImage:
    """An image in a cell of a Parquet file, which is read when this is called.

    Attributes:
        file: the file.
        group, row: the row group, and the row in it.
        column: the name of the column.
        index: the image's place in a cell that holds a list.
    """

    file: Path
    group: int
    row: int
    column: str
    index: int | None = None

    def __call__(self) -> Image.Image:
        return open_image(self.data())

    def data(self) -> bytes:
        """The bytes of the image's file.

        Raises: ImageError: the cell holds no bytes.
        """
        cell = _column(self.file, self.group, self.column)[self.row]
        if self.index is not None:
            cell = cell[self.index] if isinstance(cell, list) and self.index < len(cell) else None
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes):
            raise ImageError(f"{self.file}, row {self.row} of row group {self.group}: {self.column} holds no image.")
        return data


@lru_cache(maxsize=_HELD)
def _column(file: Path, group: int, column: str) -> list[Any]:
    """A column of a row group; neighbouring items share it."""
    return [row[column] for row in ParquetReader([file], [column]).read(group)]


@dataclass(frozen=True)
class Base64Image:
    """An image as base64 text in a table, which is decoded when this is called.

    Attributes:
        text: the base64, with or without the beginning of a data URL.
        place: its file and row, for errors.
    """

    text: str
    place: str

    def __call__(self) -> Image.Image:
        return open_image(self.data())

    def data(self) -> bytes:
        """The bytes of the image's file.

        Raises: ImageError: the text is not base64.
        """
        try:
            return base64.b64decode(self.text.partition(",")[2] if self.text.startswith("data:") else self.text)
        except (binascii.Error, ValueError) as error:
            raise ImageError(f"{self.place}: the image is not base64 ({error}).") from error

    def __repr__(self) -> str:
        return f"Base64Image({self.text[:16]!r}…, {self.place!r})"


def open_input(image: ItemImage) -> Image.Image:
    """Opens an item's image.

    Raises: ImageError: it is missing or cannot be decoded.
    """
    return image() if callable(image) else open_image(image)


def read_xlsx(path: Path) -> list[dict[str, Any]]:
    """The rows of an Excel file's first sheet, whose first row is the heading; empty cells are None.

    Raises: DataError: the file is missing, is no xlsx file, or openpyxl is not installed.
    """
    openpyxl = load_openpyxl(path)
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except Exception as error:  # openpyxl raises errors of zip files, of XML and its own
        raise DataError(f"{path} cannot be read as xlsx: {error}.") from error
    try:
        lines = book.worksheets[0].iter_rows(values_only=True)
        heading = [str(name) for name in next(lines, ())]
        return [dict(itertools.zip_longest(heading, cells[: len(heading)])) for cells in lines]
    finally:
        book.close()


def write_xlsx(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes an Excel file of one sheet, whose first row is the heading. A cell None is empty; a text is never taken
    for a formula, and characters that the format lacks are left out.

    Raises: DataError: openpyxl is not installed. OSError: the file cannot be written.
    """
    openpyxl = load_openpyxl(path)
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")

    def cell(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        made = WriteOnlyCell(sheet, ILLEGAL_CHARACTERS_RE.sub("", value))
        made.data_type = "s"
        return made

    sheet.append(list(columns))
    for row in rows:
        sheet.append([cell(value) for value in row])
    write_atomically(path, book.save)


def load_openpyxl(path: Path) -> Any:
    """The library that reads and writes xlsx files.

    Raises: DataError naming `path` if it is not installed.
    """
    try:
        import openpyxl
    except ImportError as error:
        raise DataError(f"{path} is an Excel file, which needs openpyxl: {install_command('eval')}") from error
    return openpyxl


def _text(path: Path) -> str:
    try:
        return read_text(path, DataError)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: byte {error.start} cannot be read.") from error


def _check_columns(path: Path, there: Iterable[str], wanted: Iterable[str]) -> None:
    names = list(there)
    if missing := [name for name in wanted if name not in names]:
        raise DataError(f"{path} lacks {missing[0]!r}; there are {', '.join(map(str, names))}.")
