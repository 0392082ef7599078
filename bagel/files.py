"""Writing files: whole, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file beside `path`, then renames it: nobody ever sees half a file.

    A link stays, and what it points to is replaced. What is there but no regular file, such as a pipe or /dev/null,
    stays too: the finished file is copied into it.

    Raises:
        OSError: it cannot be written there.
    """
    if _is_special(path):
        with tempfile.TemporaryDirectory() as folder:
            finished = Path(folder) / f"whole{path.suffix}"
            write(finished)
            with open(finished, "rb") as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target)
        return
    target_path = Path(os.path.realpath(path))
    target_path.parent.mkdir(parents=True, exist_ok=True)
    # The ending is that of the name given, which may tell `write` the format.
    handle, temporary = tempfile.mkstemp(dir=target_path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    try:
        write(Path(temporary))
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # as any new file: a temporary one is private
        os.replace(temporary, target_path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text with plain line feeds."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))


def check_writable(path: Path) -> None:
    """Before long work whose result is to stand at `path`: makes its folder where that is missing, and tries it.

    Raises:
        OSError: no file can be written there.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder")
    if not _is_special(path):
        make_writable_folder(Path(os.path.realpath(path)).parent)


def make_writable_folder(folder: Path) -> None:
    """Makes a folder where it is missing, and tries whether a file can be written in it.

    Raises:
        OSError: it cannot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()


def _is_special(path: Path) -> bool:
    """Whether something is there that renaming a file to it would destroy. A folder is, too: writing to it fails."""
    return path.exists() and not path.is_file()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
