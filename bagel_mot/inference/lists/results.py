"""`results.jsonl` in the output folder of a list: a line for each result, written when it is made."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bagel_mot.errors import DataError
from bagel_mot.files import write_text

RESULTS_FILE = "results.jsonl"


class Results:
    """The results that a folder holds, by their request.

    A line is written just before its image is, so an image without a line is somebody else's, and a line
    without an image was broken off.

    Args:
        folder: the output folder; it may be empty.

    Raises: DataError if the file is something else. Of a line that was cut off by the end of its process, which can
        only be the last one, nothing is left.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / RESULTS_FILE
        self._found: dict[str, dict[str, Any]] = {}
        try:
            content = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise DataError(f"{self.path} cannot be read ({error.strerror or error}).") from error
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            entry = _entry(line)
            if entry is None:
                raise DataError(f"{self.path}: line {number} is no result of a list: give another output folder.")
            self._found[entry["id"]] = entry
        if len(whole) < len(content):
            write_text(self.path, whole.decode())

    def get(self, name: str) -> Mapping[str, Any] | None:
        """The last line of a result, by its `id`; None if there is no line."""
        return self._found.get(name)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Writes one line, which has an `id` and a `request`; it is on the disk when this returns.

        Raises: OSError if the file cannot be written.
        """
        with open(self.path, "a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._found[entry["id"]] = dict(entry)


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    good = isinstance(found, dict) and isinstance(found.get("id"), str) and isinstance(found.get("request"), str)
    return found if good else None
