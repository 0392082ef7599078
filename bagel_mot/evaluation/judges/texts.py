"""Criterion texts of judges: shipped where their licence allows it, else found in the user's own copy of a benchmark.

Benchmarks keep such texts inside Python files, JSON or plain text. All strings in such files are looked at, nothing is
run, and a text is known by its hash, so it does not matter in which file or under which name it is.
"""

from __future__ import annotations

import ast
import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from bagel_mot.errors import DataError
from bagel_mot.evaluation.base import BenchmarkOptions

_SUFFIXES = (".py", ".json", ".txt", ".md")
_MAX_BYTES = 4 << 20  # the largest file that is looked into
_LICENCE = "LICENCE"


def sha256_of(text: str) -> str:
    """The hash of a text, as UTF-8, in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def shipped_texts(benchmark: str) -> Mapping[str, str]:
    """The criterion texts of a benchmark that this package has, by name."""
    folder = resources.files("bagel_mot.evaluation.judges").joinpath("judge_texts", benchmark)
    return {
        Path(entry.name).stem: entry.read_bytes().decode("utf-8")
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if Path(entry.name).stem != _LICENCE
    }


def find_texts(
    folder: Path,
    wanted: Mapping[str, str],
    where: str,
    forms: Callable[[str], Iterable[str]] = lambda text: (text,),
) -> dict[str, str]:
    """Finds criterion texts in the user's copy of a benchmark.

    Args:
        folder: a folder with the benchmark's files in it, at any depth, or one such file.
        wanted: the hash of each text by name.
        where: the place where users get the files, for the message.
        forms: makes of a string that was found the texts that it may mean, such as those with other placeholders.

    Returns: the texts by name.

    Raises:
        DataError: some are missing, with their names.
    """
    names = {digest: name for name, digest in wanted.items()}
    found: dict[str, str] = {}
    for path in _files(folder):
        for string in _strings(path):
            for text in forms(string):
                if (name := names.get(sha256_of(text))) is not None:
                    found[name] = text
        if len(found) == len(wanted):
            return {name: found[name] for name in wanted}
    missing = [name for name in wanted if name not in found]
    raise DataError(
        f"{folder} lacks {len(missing)} of the {len(wanted)} texts that the judge is given ({', '.join(missing[:3])}"
        f"{', …' if len(missing) > 3 else ''}), which may not be shipped: get {where}, unchanged, and name its folder "
        "with --judge-texts."
    )


@dataclass(frozen=True)
class TextSource:
    """The texts of a benchmark that may not be shipped.

    Attributes:
        hashes: the SHA-256 of each text by name.
        where: the place where users get them.
        placeholders: the names of the values that are filled into a text.
    """

    hashes: Mapping[str, str]
    where: str
    placeholders: tuple[str, ...] = ()

    def find(self, options: BenchmarkOptions) -> dict[str, str]:
        """The texts by name, from the user's folder of texts, else from the data.

        A miniature that has none is judged by stand-ins, which hold a text's name and its placeholders.

        Raises:
            DataError: some are missing.
        """
        try:
            return find_texts(options.judge_texts or options.data, self.hashes, self.where)
        except DataError:
            if not options.partial:
                raise
        held = "".join(f" {{{name}}}" for name in self.placeholders)
        return {name: name + held for name in self.hashes}


def _files(folder: Path) -> Iterator[Path]:
    """The files that may hold texts, those of Python first."""
    if folder.is_file():
        yield folder
        return
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES]
    yield from sorted(paths, key=lambda path: (_SUFFIXES.index(path.suffix.lower()), path))


def _strings(path: Path) -> Iterator[str]:
    """All strings in a file; none of one that cannot be read."""
    try:
        if not path.is_file() or path.stat().st_size > _MAX_BYTES:
            return
        content = path.read_bytes().decode("utf-8")
        if path.suffix.lower() == ".py":
            yield from _strings_of_python(content)
        elif path.suffix.lower() == ".json":
            yield from _strings_of_json(json.loads(content))
        else:
            yield content
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return


def _strings_of_python(content: str) -> Iterator[str]:
    """String constants, and formatted strings with each value in braces, as it is written."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # others' files may have escapes that Python warns of
        tree = ast.parse(content)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(map(_piece, node.values))


def _piece(part: ast.expr) -> str:
    """A part of a formatted string as it is written."""
    if isinstance(part, ast.FormattedValue):
        return f"{{{ast.unparse(part.value)}}}"
    return str(part.value) if isinstance(part, ast.Constant) else ""


def _strings_of_json(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings_of_json(inner)
