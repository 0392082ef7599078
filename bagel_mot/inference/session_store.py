"""Sessions on disk: a folder with `session.json` and a PNG for each image."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from PIL import Image

from bagel_mot.errors import BagelError, DataError
from bagel_mot.files import read_text, user_path, write_text
from bagel_mot.images import open_image
from bagel_mot.inference.request import GIVEN, IMAGES, Kind

SavedTurn = tuple[Kind, str | Image.Image]
_FILE = "session.json"
_VERSION = 1


@dataclass(frozen=True)
class SavedSession:
    """The content of a session, without its cache.

    Attributes:
        think, understanding: the options that the session was opened with.
        marks: number of turns before each step that can be undone.
        items: (kind, content) of each turn.
    """

    think: bool
    understanding: bool
    marks: Sequence[int]
    items: Sequence[SavedTurn]


def write_session(folder: str | os.PathLike[str], saved: SavedSession) -> None:
    """Writes a folder, in the place of one that holds a saved session and nothing else, if there is one.

    The new folder is complete before the old one is moved away, and the old one is deleted last.

    Raises:
        DataError: there is something else at that place.
        OSError: it cannot be written there; what was there still is.
    """
    folder = Path(os.path.realpath(user_path(folder, DataError)))
    _check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    fresh, former = workshop / "fresh", workshop / "former"
    try:
        fresh.mkdir()
        _write_files(fresh, saved)
        if folder.exists():
            folder.rename(former)
        fresh.rename(folder)
    finally:
        if former.exists() and not folder.exists():
            former.rename(folder)
        shutil.rmtree(workshop, ignore_errors=True)


def read_session(folder: str | os.PathLike[str]) -> SavedSession:
    """Reads what `write_session` wrote.

    Raises:
        DataError: it is no saved session, or a damaged one.
        ImageError: an image of it is missing or damaged.
    """
    folder = user_path(folder, DataError)
    path = folder / _FILE
    try:
        document = json.loads(read_text(path, DataError))
        if document["version"] != _VERSION:
            raise DataError(f"{path} is of version {document['version']!r}; this program reads version {_VERSION}.")
        think, understanding = (_flag(path, document, name) for name in ("think", "understanding"))
        items = [_item(folder, turn) for turn in document["turns"]]
        marks = [int(mark) for mark in document["marks"]]
    except BagelError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no saved session ({type(error).__name__}: {error}).") from error
    if any(not 0 <= mark <= len(items) for mark in marks) or marks != sorted(marks):
        raise DataError(f"{path} is damaged: its marks {marks} do not fit {len(items)} turns.")
    systems = [number for number, (kind, _) in enumerate(items) if kind == "system"]
    if systems != ([0] if think else []):
        raise DataError(
            f"{path} is damaged: a conversation {'with' if think else 'without'} thinking has its system prompt "
            f"{'first and only there' if think else 'nowhere'}; this one has it at {systems}."
        )
    return SavedSession(think, understanding, marks, items)


def _write_files(folder: Path, saved: SavedSession) -> None:
    turns = []
    for number, (kind, content) in enumerate(saved.items):
        if isinstance(content, str):
            turns.append({"kind": kind, "text": content})
        else:
            name = f"{number:03d}.png"
            content.save(folder / name)
            turns.append({"kind": kind, "image": name})
    document = {
        "version": _VERSION,
        "think": saved.think,
        "understanding": saved.understanding,
        "marks": list(saved.marks),
        "turns": turns,
    }
    write_text(folder / _FILE, json.dumps(document, indent=1, ensure_ascii=False))


def _check_replaceable(folder: Path) -> None:
    """Checks that a folder is missing, empty or a saved session.

    Raises:
        DataError: it is something else.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DataError(f"{folder} is a file: name a folder.")
    names = sorted(entry.name for entry in folder.iterdir())
    if not names:
        return
    foreign = [name for name in names if name != _FILE and not re.fullmatch(r"\d{3,}\.png", name)]
    if foreign:
        raise DataError(f"{folder} is no saved session and not empty (it holds {foreign[0]}): name another folder.")
    try:
        saved = set(json.loads(read_text(folder / _FILE, DataError))) >= {"version", "marks", "turns"}
    except (OSError, ValueError, TypeError):
        saved = False
    if not saved:
        raise DataError(f"{folder} is no saved session and not empty (it has no valid {_FILE}): name another folder.")


def _flag(path: Path, document: dict[str, object], name: str) -> bool:
    flag = document[name]
    if not isinstance(flag, bool):
        raise DataError(f"{path} is damaged: {name} is {flag!r}; it must be true or false.")
    return flag


def _item(folder: Path, turn: dict[str, object]) -> SavedTurn:
    """A turn, whose kind says whether it has a text or an image."""
    path, kind = folder / _FILE, turn["kind"]
    if kind not in get_args(Kind):
        raise DataError(f"{path} has a turn of kind {kind!r}; there are {', '.join(get_args(Kind))}.")
    part = "image" if kind in IMAGES else "text"
    content = turn.get(part)
    # A text that is given has words in it; the model may also say nothing.
    if turn.keys() != {"kind", part} or not isinstance(content, str) or (kind in GIVEN and not content.strip()):
        raise DataError(f"{path} is damaged: a turn of kind {kind} has {part!r} and nothing else; this one is {turn}.")
    return cast(Kind, kind), open_image(folder / Path(content).name) if part == "image" else content
