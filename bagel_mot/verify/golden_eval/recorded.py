"""A set of recorded scores on disk: its files, and those of its values that were compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bagel_mot.errors import DataError, did_you_mean
from bagel_mot.files import read_json

BENCHMARKS = (
    *("mme", "mmbench", "mmmu", "mmvet", "mathvista", "mmvp", "pope"),
    *("geneval", "wise", "wise_verified"),
    *("gedit", "intelligentbench", "kris", "rise", "imgedit"),
)
"""The benchmarks of a set, by the names of their folders."""
JUDGED = (
    *("mmvet", "mathvista", "wise", "wise_verified"),
    *("gedit", "intelligentbench", "kris", "rise", "imgedit"),
)
"""The benchmarks that a chat model judges: they have requests.json."""
_DOCUMENTS = ("prompts", "answers", "expected")
_BESIDE = ("data", "judge_texts")
_ORIGINS = ("recorded", "derived")
MARKS = ("as_published", "fixed")
"""The modes of a run, by the names of their results."""
_KNOWN_MARKS = {
    *MARKS,
    *("as_published_wise_repository", "as_published_risebench", "as_published_parse", "fixed_parse"),
    *("fixed_rule", "fixed_source", "fixed_items"),
}

PROSE = frozenset(
    {
        *("about", "note", "notes", "rule", "fixed_rule", "where", "judge_note", "form", "fixed_source", "triples"),
        *("quality_call_note", "template_form", "segments", "without_text_branch", "without_picture_branch"),
        *("guidance_branch", "placeholder", "placeholders", "seed"),
    }
)
"""Keys whose values explain others in words: nothing computes them."""


def is_golden_eval(folder: Path) -> bool:
    """Whether a folder holds recorded scores of benchmarks."""
    return any((folder / name / "expected.json").is_file() for name in BENCHMARKS)


def check_folder(folder: Path) -> None:
    """Checks that a set has all benchmarks and nothing that is unknown.

    Raises:
        DataError: a benchmark is missing, or there is a file or folder that nothing compares.
    """
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and entry.name not in BENCHMARKS:
            raise DataError(f"{entry} is not known as a benchmark: {did_you_mean(entry.name, BENCHMARKS)}")
        if entry.is_file() and entry.name != "README.md":
            raise DataError(f"{entry} is not known: nothing would compare it.")
    if missing := [name for name in BENCHMARKS if not (folder / name).is_dir()]:
        raise DataError(f"{folder} lacks {', '.join(missing)}: a set has {len(BENCHMARKS)} benchmarks.")


class RecordedBenchmark:
    """The record of one benchmark.

    Attributes:
        name: the benchmark.
        folder: its folder in the set.

    Raises: DataError if a file is missing, damaged or unknown, or a source or a mark is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        names = (*_DOCUMENTS, *(("requests",) if self.name in JUDGED else ()))
        known = {*_BESIDE, *(f"{name}.json" for name in names)}
        for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
            if entry.name not in known:
                raise DataError(f"{entry} is not known: nothing would compare it.")
        self._documents = {name: read_json(folder / f"{name}.json", DataError) for name in names}
        self._taken: set[tuple[str, ...]] = set()
        for path, value in self._leaves():
            if path[-1] == "source" and not any(origin in str(value) for origin in _ORIGINS):
                where = "/".join(path)
                raise DataError(f"{folder}: {where} is {value!r:.60}: it must say that scores are recorded or derived.")
            for key in path:
                if key.startswith(("as_", "fixed")) and key not in _KNOWN_MARKS:
                    raise DataError(f"{folder}: {'/'.join(path)}: the mark {key} is not known: {', '.join(MARKS)} are.")

    @property
    def data(self) -> Path:
        """The folder of the data in the official layout."""
        return self.folder / "data"

    def take(self, document: str, *keys: str) -> Any:
        """A recorded value, which counts as compared with all that is in it.

        Raises: KeyError if there is none.
        """
        value: Any = self._documents[document]
        for key in keys:
            value = value[key]
        self._taken.add((document, *keys))
        return value

    def peek(self, document: str, *keys: str) -> Any:
        """A recorded value that is compared elsewhere, or None."""
        value: Any = self._documents.get(document)
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def left(self) -> list[str]:
        """The places of values that nothing compared, the parts of lists and of values compared aside."""
        found = []
        for path, _ in self._leaves():
            is_taken = any(path[:length] in self._taken for length in range(1, len(path) + 1))
            if not is_taken and not PROSE.intersection(path) and path[-1] != "source":
                found.append("/".join(path))
        return found

    def _leaves(self) -> Iterator[tuple[tuple[str, ...], Any]]:
        for name, content in self._documents.items():
            yield from _leaves((name,), content)


def _leaves(path: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves((*path, key), inner)
    else:
        yield path, value
