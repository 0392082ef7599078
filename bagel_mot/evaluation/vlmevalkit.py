"""VLMEvalKit's files: the tables of its data sets, and the tables of predictions.

A data set is one TSV file with a row a question: `index`, `question`, options in `A`, `B` …, `answer`, `category`,
`split`, and the images in `image`: base64, the index of the row that has the same image, or a list of several. Where
`image_path` takes its place, it names files. Predictions are the same table without the images and with one more
column, `prediction`, in the file MODEL_DATASET.xlsx (or .tsv).
"""

from __future__ import annotations

import ast
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bagel_mot.errors import DataError, SettingError
from bagel_mot.evaluation.base import BenchmarkInfo, BenchmarkOptions, Item, ItemImage
from bagel_mot.evaluation.data import MISSING_TEXTS, Base64Image, named, read_table, read_xlsx, write_xlsx
from bagel_mot.files import write_text

_INDEX, _PREDICTION, _IMAGE, _IMAGE_PATH = "index", "prediction", "image", "image_path"
_EMPTY = " "  # an empty answer in a table of predictions, where an empty cell is one that is missing
_FAILED = "Failed to obtain answer"  # the beginning of what VLMEvalKit writes where a model did not answer


@dataclass(frozen=True)
class KitRow:
    """One row of a data set.

    Attributes:
        index: the row's name, unique within its table.
        cells: the other columns by name, without the images.
        images: the images in order.
    """

    index: str
    cells: Mapping[str, str]
    images: tuple[ItemImage, ...]


def kit_name(info: BenchmarkInfo, variant: str | None) -> str | None:
    """The name that VLMEvalKit has for a benchmark's set, or None if it has no such set in the same form."""
    return info.vlmevalkit.get(variant or next(iter(info.variants), ""))


def kit_table(info: BenchmarkInfo, options: BenchmarkOptions) -> Path | None:
    """VLMEvalKit's TSV file of a benchmark, where the folder of the data holds it."""
    name = kit_name(info, options.variant)
    if name is None:
        return None
    # The second one is what VLMEvalKit itself makes of a table that is larger than 1 GB.
    files = (options.data / f"{name}{end}" for end in (".tsv", "_local.tsv"))
    return next((file for file in files if file.is_file()), None)


def kit_indices(info: BenchmarkInfo, options: BenchmarkOptions) -> set[str]:
    """The indices of all rows of VLMEvalKit's TSV file of a benchmark, those of other splits too; none without it.

    Raises: DataError if it cannot be read.
    """
    path = kit_table(info, options)
    return set() if path is None else {row[_INDEX] for row in read_table(path, columns=(_INDEX,))}


def read_kit_table(path: Path, *, columns: Sequence[str] = ()) -> list[KitRow]:
    """The rows of a data set. An image is decoded when its item runs.

    Args:
        path: the TSV file.
        columns: the columns that must be there beside the index and the images.

    Raises: DataError if it cannot be read, lacks a column, repeats an index, or a row has no image.
    """
    rows = read_table(path, columns=(_INDEX, *columns))
    if rows and _IMAGE not in rows[0] and _IMAGE_PATH not in rows[0]:
        raise DataError(f"{path} has neither {_IMAGE!r} nor {_IMAGE_PATH!r}; there are {', '.join(rows[0])}.")
    indices = {row[_INDEX] for row in rows}
    if len(indices) != len(rows):
        raise DataError(f"{path}: {len(rows) - len(indices)} of its rows repeat an index.")
    by_index = {row[_INDEX]: row[_IMAGE] for row in rows} if rows and _IMAGE in rows[0] else None
    found = []
    for row in rows:
        place = f"{path}, index {row[_INDEX]}"
        if by_index is None:
            images: list[ItemImage] = [_file(path, name) for name in python_list(row[_IMAGE_PATH]) if name]
        else:
            text = row[_IMAGE]
            text = by_index.get(text, text)  # an image that another row has is named by that row's index
            if text.isdecimal():
                raise DataError(f"{place}: its image is that of index {text}, which has none.")
            images = [Base64Image(one, place) for one in python_list(text) if one]
        if not images:
            raise DataError(f"{place}: the row has no image.")
        cells = {name: cell for name, cell in row.items() if name not in (_INDEX, _IMAGE)}
        found.append(KitRow(row[_INDEX], cells, tuple(images)))
    return found


def python_list(cell: str) -> list[str]:
    """The texts of a cell that holds a list as Python writes it, such as "['a', 'b']"; else the cell alone."""
    if cell.startswith("[") and cell.endswith("]"):
        try:
            found = ast.literal_eval(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return [cell]
        if isinstance(found, list):
            return [str(one) for one in found]
    return [cell]


def _file(table: Path, name: str) -> Path:
    """The image file that a cell names; VLMEvalKit keeps those of a set in `images/SET`, beside the table."""
    dataset = table.stem.removesuffix("_local")
    folders = [table.parent / "images" / dataset, table.parent / "images" / dataset.partition("_")[0], table.parent]
    return next((folder / name for folder in folders if (folder / name).is_file()), folders[0] / name)


def write_predictions(folder: Path, name: str, items: Iterable[Item], answers: Mapping[str, str]) -> list[Path]:
    """Writes the answers to items as VLMEvalKit keeps predictions, as NAME.xlsx and NAME.tsv, and returns both paths.

    A cell of xlsx holds 32 767 characters, and no control characters; the TSV file holds every answer whole.

    Args:
        folder: the folder, which is made if it is missing.
        name: MODEL_DATASET.
        items: the items; those without an answer are left out.
        answers: the answers by item.

    Raises: DataError if openpyxl is not installed. OSError if a file cannot be written.
    """
    answered = [item for item in items if item.id in answers]
    columns = list(dict.fromkeys(column for item in answered for column in (item.row or {"question": item.prompt})))
    is_number = all(item.id.isdecimal() and str(int(item.id)) == item.id for item in answered)
    rows = []
    for item in answered:
        row = item.row or {"question": item.prompt}
        cells = [_cell(row.get(column)) for column in columns]
        rows.append([int(item.id) if is_number else item.id, *cells, answers[item.id] or _EMPTY])
    heading = [_INDEX, *columns, _PREDICTION]
    folder.mkdir(parents=True, exist_ok=True)
    write_xlsx(folder / f"{name}.xlsx", heading, rows)
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerows([heading, *rows])
    write_text(folder / f"{name}.tsv", text.getvalue())
    return [folder / f"{name}.xlsx", folder / f"{name}.tsv"]


def _cell(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return str(list(value))
    return None if value is None or value in MISSING_TEXTS else value


def read_predictions(path: Path) -> dict[str, str]:
    """The predictions in a table, by the index of their row: xlsx, TSV or CSV by the file's ending.

    Raises: DataError if it is no such table, lacks a column, repeats an index, or a prediction is missing or is what
        VLMEvalKit writes where a model did not answer.
    """
    ending = path.suffix.lower()
    if ending not in (".xlsx", ".tsv", ".csv"):
        raise SettingError(f"{path} is no table of predictions: it must end in .xlsx, .tsv or .csv.")
    rows: Sequence[Mapping[str, Any]] = read_xlsx(path) if ending == ".xlsx" else read_table(path)
    if not rows:
        raise DataError(f"{path} holds no prediction.")
    for column in (_INDEX, _PREDICTION):
        if column not in rows[0]:
            raise DataError(f"{path} lacks {column!r}; there are {', '.join(map(str, rows[0]))}.")
    rows = [row for row in rows if any(cell not in (None, "") for cell in row.values())]
    indices = [_text(row[_INDEX]).strip() for row in rows]
    found = dict(zip(indices, (_text(row[_PREDICTION]) for row in rows), strict=True))
    if len(found) != len(rows):
        doubled = list(dict.fromkeys(index for index in indices if indices.count(index) > 1))
        raise DataError(f"{path} has several rows of index {named(doubled)}: each may have one.")
    if empty := [index for index, text in found.items() if not text]:
        raise DataError(
            f"{path} lacks the prediction of index {named(empty)}: make it, or write an answer that is really empty "
            "as one blank."
        )
    if failed := [index for index, text in found.items() if text.startswith(_FAILED)]:
        raise DataError(f"{path} says that the model did not answer index {named(failed)}: have it asked again.")
    return found


def _text(cell: Any) -> str:
    """A cell as text. Programs that write xlsx make numbers of texts such as "3"."""
    if cell is None:
        return ""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
