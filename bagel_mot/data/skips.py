"""The list of the items that are left out of the data: a line of JSON for each, in a file of the run by stream."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from bagel_mot.data.feed import SkippedItem
from bagel_mot.files import write_text

SKIPPED_FOLDER = "skipped"


class SkipList:
    """The files `skipped/stream-N.jsonl` of a run, to look at: where they cannot be written, the run goes on."""

    def __init__(self, run: Path) -> None:
        self.folder = run / SKIPPED_FOLDER
        self._begun: set[int] = set()

    def path(self, stream: int) -> Path:
        """The file of a stream."""
        return self.folder / f"stream-{stream}.jsonl"

    def _cut_back(self, stream: int, lines: int) -> None:
        """Removes all but the first lines: those of packs that are taken once more."""
        with suppress(OSError):
            path = self.path(stream)
            if path.exists():
                kept = path.read_text(encoding="utf-8").splitlines(keepends=True)[:lines]
                write_text(path, "".join(kept)) if kept else path.unlink()

    def add(self, stream: int, listed: int, skipped: Sequence[SkippedItem]) -> None:
        """Lists items that were left out.

        Args:
            stream: the number of the stream.
            listed: the number of items of the stream before; what an earlier run listed beyond them is removed.
            skipped: the items.
        """
        if stream not in self._begun:
            self._begun.add(stream)
            self._cut_back(stream, listed)
        if not skipped:
            return
        lines = [json.dumps(item._asdict(), ensure_ascii=False) + "\n" for item in skipped]
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.path(stream), "a", encoding="utf-8") as file:
                file.writelines(lines)
