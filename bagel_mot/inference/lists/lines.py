"""The lines of a list: what each asks for, checked before anything runs.

A `.txt` file has a prompt on each line. A `.jsonl` file has an object on each line, a `.json` file an array of them, or
one object whose keys become each one's `key`:

    {"prompt": "make it night", "images": ["car.png"], "seed": 7, "n": 2, "output": "night.png", "cfg_text_scale": 5}

Every key but `prompt` may be missing. Settings stand under their own names. Blank lines are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bagel_mot.errors import BagelError, DataError, PromptError, SettingError, did_you_mean
from bagel_mot.files import read_text
from bagel_mot.inference.lists.naming import Naming, check_distinct, paths
from bagel_mot.inference.settings import SETTINGS, parse_settings, task_settings
from bagel_mot.task import Task

_OTHER_TEXTS = {Task.GENERATE: (), Task.EDIT: ("instruction",), Task.ASK: ("question",)}


@dataclass(frozen=True)
class ListLine:
    """The request of one line, checked.

    Attributes:
        number: the line's number in its file, from 1.
        prompt: the text.
        images: the files of the inputs, in order.
        settings: the settings of this line alone, validated.
        n: the results that are wanted, with seeds that count up.
        names: the paths of the images to be drawn below the output folder; empty where texts are written.
        row: the object that the file has; for a line of text one with its prompt.
    """

    number: int
    prompt: str
    images: tuple[Path, ...]
    settings: Mapping[str, Any]
    n: int
    names: tuple[str, ...]
    row: Mapping[str, Any]


@contextmanager
def naming_line(number: int) -> Iterator[None]:
    """Lets errors say which line they are about."""
    try:
        yield
    except BagelError as error:
        error.args = (f"line {number}: {error}", *error.args[1:])
        raise


def read_lines(
    source: Path | str,
    task: Task,
    naming: Naming,
    *,
    n: int = 1,
    images: Sequence[Path] = (),
) -> list[ListLine]:
    """The lines of a list.

    Args:
        source: a file, whose folder the paths of images are relative to; or the text of one, as it comes from standard
            input: then they are relative to the working folder.
        task: the task of all lines.
        naming: the names of the images.
        n: the results of lines that do not say how many.
        images: the inputs of lines that name none.

    Raises:
        BagelError: the file cannot be read, is empty, or a line cannot be used; the message gives its number.
    """
    if isinstance(source, Path):
        text, folder, suffix, name = _content(source), source.absolute().parent, source.suffix.lower(), str(source)
    else:
        text, folder, suffix, name = source, Path.cwd(), "", "standard input"
    rows = _rows(text, suffix, name)
    if not rows:
        raise DataError(f"{name} has no line with anything on it: write a prompt on each.")
    lines = []
    for index, (number, row) in enumerate(rows):
        with naming_line(number):
            lines.append(_line(number, row, index, task, naming, n, tuple(images), folder))
    check_distinct([line.number for line in lines], [line.names for line in lines])
    return lines


def _content(file: Path) -> str:
    try:
        return read_text(file, DataError)
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not text in UTF-8: {error}.") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror or error}): give a .txt or .jsonl file.") from error


def _rows(text: str, suffix: str, name: str) -> list[tuple[int, Any]]:
    """The number and the value of each line that is not blank; the place from 1 in a JSON array.

    Raises:
        DataError: a line is no JSON where JSON is due.
    """
    if suffix == ".json":
        return list(enumerate(_array(text, name), start=1))
    split = text.split("\n")
    lines = [(number, line) for number, line in enumerate(split, start=1) if line.strip()]
    if suffix == ".txt" or (suffix != ".jsonl" and lines and not lines[0][1].lstrip().startswith("{")):
        return [(number, {"prompt": line.strip()}) for number, line in lines]
    rows = []
    for number, line in lines:
        with naming_line(number):
            rows.append((number, _parsed(line)))
    return rows


def _array(text: str, name: str) -> list[Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} could not be read as JSON: {error}.") from error
    if isinstance(content, dict):
        return [{"key": key, **row} if isinstance(row, dict) else row for key, row in content.items()]
    if not isinstance(content, list):
        raise DataError(f"{name} holds a {type(content).__name__}: an array of objects is expected.")
    return content


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"it is no JSON: {error.msg} at character {error.pos + 1}.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"it is no JSON: {error}.") from error


def _line(
    number: int, row: Any, index: int, task: Task, naming: Naming, n: int, images: tuple[Path, ...], folder: Path
) -> ListLine:
    if isinstance(row, str):
        row = {"prompt": row}
    if not isinstance(row, dict):
        raise DataError(f"it holds {_shown(row)}: an object such as {{'prompt': 'a red car'}} is expected.")
    texts = ("prompt", *_OTHER_TEXTS[task], *naming.texts)
    files = ("images", "image", *((naming.image,) if naming.image else ()))
    _check_keys(row, task, naming, {*texts, *files})
    count = row.get("n", n)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise SettingError(f"n is {_shown(count)}: it must be a whole number, at least 1.")
    if task is Task.ASK and count > 1:
        raise SettingError(f"n is {count}: a question has one answer; for several repeat the line with other seeds.")
    settings = parse_settings(task, {key: value for key, value in row.items() if key in SETTINGS})
    if (seed := settings.get("seed")) is not None:
        SETTINGS["seed"].parse(seed + count - 1)
    return ListLine(
        number,
        _prompt(row, texts),
        _images(row, files, folder, images, task),
        settings,
        count,
        tuple(paths(naming, row, index, count)) if task.draws else (),
        row,
    )


def _check_keys(row: Mapping[str, Any], task: Task, naming: Naming, read: set[str]) -> None:
    """Checks that every key means something: a misspelt setting would otherwise be left out unnoticed.

    Raises:
        DataError, SettingError: one does not.
    """
    if naming.keeps is None:
        return
    own = ("prompt", "images", "n", *(("output",) if task.draws else ()))
    ours = {*own, *read, *naming.needs, *naming.keeps, *SETTINGS}
    for key in row:
        if key not in ours:
            names = [*own, *(one.name for one in task_settings(task))]
            raise DataError(f"there is no key {key!r}: {did_you_mean(key, names)}")


def _prompt(row: Mapping[str, Any], names: Sequence[str]) -> str:
    given = [name for name in names if name in row]
    if not given:
        raise PromptError(f"there is no prompt: write it under {names[0]!r}.")
    if len(given) > 1:
        raise PromptError(f"there is both {given[0]} and {given[1]}: they mean the same, so leave one.")
    text = row[given[0]]
    if not isinstance(text, str) or not text.strip():
        raise PromptError(f"{given[0]} is {_shown(text)}: it must be a text.")
    return text


def _images(
    row: Mapping[str, Any], names: Sequence[str], folder: Path, default: tuple[Path, ...], task: Task
) -> tuple[Path, ...]:
    given = [name for name in names if name in row]
    if len(given) > 1:
        raise DataError(f"there is both {given[0]} and {given[1]}: they mean the same, so leave one.")
    value = row[given[0]] if given else []
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(one, str) and one and "\0" not in one for one in values):
        raise DataError(f"{given[0]} is {_shown(value)}: it must be a file, or a list of files.")
    found = tuple(folder / one for one in values) or default
    if task is Task.GENERATE and found:
        raise DataError("it has images: generate draws from texts alone; bagel edit changes images.")
    if task is Task.EDIT and not found:
        raise PromptError("there is no image to change: write its file under 'images'.")
    for file in found:
        if not file.is_file():
            raise DataError(f"{file} is {'a folder' if file.is_dir() else 'missing'}: an image file is expected.")
    return found


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
