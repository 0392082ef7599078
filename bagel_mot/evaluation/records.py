"""Records of a run: JSON lines on disk, of which nothing is lost when the run is interrupted.

The first line of a file is its head, which says what was run; each further line is a record of one item. A later record
of an item replaces an earlier one. Every process of a run appends to a file of its own, and reads the others'.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from bagel_mot.errors import EvaluationError
from bagel_mot.files import writing

_ID = "id"


class Records:
    """The records of one kind in a folder, by the id of their item.

    Args:
        folder: the folder, which is made if it is missing.
        name: the beginning of the files' names: `NAME.jsonl`, and `NAME.1.jsonl` for process 1.
        head: the facts of the run, as JSON; every file must have the same.
        rank: the number of the process that appends.

    Raises: EvaluationError if a file is of another run, with the first difference, or cannot be read or written.
    """

    def __init__(self, folder: Path, name: str, head: Mapping[str, Any], rank: int = 0) -> None:
        self.folder, self.name = folder, name
        self.head = json.loads(json.dumps(head))
        self.path = folder / (f"{name}.{rank}.jsonl" if rank else f"{name}.jsonl")
        self.lines: dict[str, dict[str, Any]] = {}
        for path in record_files(folder, name):
            found, lines = read_records(path)
            if found is not None:
                self._compare(path, found)
            self.lines |= lines
        self._file: IO[str] | None = None

    def add(self, id: str, record: Mapping[str, Any]) -> None:
        """Appends a record; it is on disk when this returns.

        Raises: EvaluationError if it cannot be written.
        """
        with writing(self.path, "free some room or give another folder; the same command goes on from here"):
            if self._file is None:
                self._file = self._open()
            line = {_ID: id, **record}
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._file.flush()
        self.lines[id] = dict(record)

    def close(self) -> None:
        """Closes the file; `add` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> IO[str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            content = self.path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):  # the process was ended within a line
                with open(self.path, "r+b") as torn:
                    torn.truncate(whole)
        file = open(self.path, "a", encoding="utf-8", newline="\n")  # noqa: SIM115 - it stays open between records
        if not file.tell():
            file.write(json.dumps({"head": self.head}, ensure_ascii=False) + "\n")
            file.flush()
        return file

    def _compare(self, path: Path, found: Mapping[str, Any]) -> None:
        for key in (*self.head, *found):
            was, now = found.get(key), self.head.get(key)
            if was != now:
                raise EvaluationError(
                    f"{path} holds another run: its {key.replace('_', ' ')} is {was!r}, and now it is {now!r}: give "
                    "another --out, or remove that file."
                )


def record_files(folder: Path, name: str) -> list[Path]:
    """The files of all processes, in the order of their numbers."""
    numbered = [path for path in folder.glob(f"{name}.*.jsonl") if path.name[len(name) + 1 : -6].isdecimal()]
    first = folder / f"{name}.jsonl"
    return [
        *([first] if first.is_file() else []),
        *sorted(numbered, key=lambda path: int(path.name[len(name) + 1 : -6])),
    ]


def read_records(path: Path) -> tuple[dict[str, Any] | None, dict[str, dict[str, Any]]]:
    """The head of a file and its records by item; a torn last line is left out. The head of an empty file is None.

    Raises: EvaluationError if it cannot be read, or another line is no record.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read ({error.strerror or error}).") from error
    head: dict[str, Any] | None = None
    records: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        try:
            content = json.loads(line)
            if number == 1:
                head = content["head"]
            else:
                records[content.pop(_ID)] = content
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = "the head of a run's records" if number == 1 else "a record of an item"
            raise EvaluationError(f"line {number} of {path} is not {what}: remove the line, or the file.") from error
    return head, records
