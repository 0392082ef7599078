"""Files and folders, written whole or not at all; sizes in bytes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from bagel_mot.errors import BagelError, SettingError

_STAGING = ".partial"
_LARGEST = 1 << 62
_LONGEST_SHOWN = 60  # characters of a path in a sentence
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_HTML = (b"<!doctype html", b"<html")


def user_path(path: str | os.PathLike[str], error: type[BagelError] = BagelError) -> Path:
    """A path as people write it: `~` at its beginning is the home folder, `~NAME` that of another user, unless there is
    a file or folder of that very name.

    Raises:
        BagelError: of the type `error`: the path is empty or too long, holds a null character, or begins with a user
            who is not known.
    """
    text = os.fspath(path)
    if not text:
        raise error("the path is empty: give a file or a folder.")
    is_literal = re.match(r"~[^/\\]", text) is not None and os.path.lexists(text)
    expanded = text if is_literal else os.path.expanduser(text)
    try:
        os.lstat(expanded)
    except (OSError, ValueError) as refused:
        if isinstance(refused, ValueError) or refused.errno == errno.ENAMETOOLONG:
            shown = text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"
            wrong = "it holds a null character" if isinstance(refused, ValueError) else "it is too long"
            raise error(f"{shown!r} cannot be a path: {wrong}.") from refused
    if expanded.startswith("~") and not is_literal:
        user = re.split(r"[/\\]", text)[0]
        raise error(f"{text!r} begins with {user}, which is nobody's home here: write the folder out.")
    return Path(expanded)


class Readable(Protocol):
    """A file or folder, as `Path` has its methods."""

    def is_dir(self) -> bool: ...

    def open(self, mode: Literal["rb"]) -> BinaryIO: ...


def check_content(path: Readable, error: type[BagelError]) -> None:
    """Checks that a file is itself, and nothing that is often found in its place.

    Raises:
        BagelError: of the type `error`: it is a folder, is empty, or is a Git LFS pointer or a web page.
        OSError: it is missing, or cannot be read.
    """
    if path.is_dir():
        raise error(f"{path} is a folder: a file is expected there.")
    with path.open("rb") as file:
        start = file.read(1024)
    if not start:
        raise error(f"{path} is empty: download or write it anew.")
    if is_lfs_pointer(start):
        raise error(f"{path} is a Git LFS pointer, not the file itself: run git lfs pull, or bagel download.")
    if start.removeprefix(b"\xef\xbb\xbf").lstrip()[:15].lower().startswith(_HTML):
        raise error(f"{path} is a web page, such as a site sends in place of a file: download the file itself.")


def is_lfs_pointer(content: bytes) -> bool:
    """Whether a file's content is a pointer, as Git LFS leaves it where the file itself was not fetched."""
    return content.startswith(_LFS_POINTER)


def read_text(path: Readable, error: type[BagelError]) -> str:
    """The text of a UTF-8 file, without the byte order mark that some editors put first.

    Raises:
        BagelError: of the type `error`: it is something else, as `check_content` has it.
        OSError, UnicodeDecodeError: it is missing, cannot be read, or is not UTF-8.
    """
    check_content(path, error)
    with path.open("rb") as file:
        return file.read().decode("utf-8-sig")


def read_json(path: Path, error: type[BagelError]) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        BagelError: of the type `error`: it is missing, cannot be read, or is not a JSON object.
    """
    try:
        content = json.loads(read_text(path, error))
    except error:
        raise
    except (OSError, ValueError, RecursionError) as refused:
        raise error(f"{path} could not be read as JSON: {refused}") from refused
    if not isinstance(content, dict):
        raise error(f"{path} holds a {type(content).__name__}; a JSON object is expected")
    return content


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file beside `path`, then renames it: nobody ever sees half a file.

    A link stays, and its target is replaced. A special file, such as a pipe or /dev/null, stays too: the finished file
    is copied into it.

    Raises:
        OSError: the file cannot be written.
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
    # The temporary name has the same suffix, which may tell `write` the format.
    handle, temporary = tempfile.mkstemp(dir=target_path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    try:
        write(Path(temporary))
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # the mode of any new file; a temporary one is private
        os.replace(temporary, target_path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text with plain line feeds."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yields a folder to fill, which becomes `folder` once it is whole.

    It is a hidden folder beside `folder`, so nothing unfinished ever has the final name; if `folder` exists already and
    is empty, `.partial` within it is filled, and its files are moved out of it. An error leaves nothing behind, and the
    next process that writes the same folder removes the remains of a killed one.

    Raises:
        FileExistsError: the folder is not empty, or it is a file.
        BlockingIOError: another process is filling it.
        OSError: it cannot be made or written to.
    """
    check_new(folder)
    is_new = not folder.exists()
    staging = folder.with_name(f".{folder.name}{_STAGING}") if is_new else folder / _STAGING
    staging.mkdir(parents=True, exist_ok=True)
    with locked(staging, folder):
        try:
            for left in staging.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield staging
            if is_new:
                staging.rename(folder)
            else:
                for entry in sorted(staging.iterdir()):
                    os.replace(entry, folder / entry.name)
                staging.rmdir()
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


def check_new(folder: Path) -> None:
    """Checks that a folder is missing, or empty except for the remains of a killed process.

    Raises:
        FileExistsError: it is not empty, or it is a file, or a link to nothing.
    """
    if folder.is_symlink() and not folder.exists():
        raise FileExistsError(errno.EEXIST, f"{folder} is a link to {os.readlink(folder)}, which does not exist")
    if folder.exists() and (not folder.is_dir() or any(entry.name != _STAGING for entry in folder.iterdir())):
        raise FileExistsError(errno.EEXIST, f"{folder} {'is not empty' if folder.is_dir() else 'is a file'}")


@contextlib.contextmanager
def locked(folder: Path, target: Path) -> Iterator[None]:
    """Keeps other processes out until this one leaves or ends; a system without such locks keeps nobody out."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(errno.EAGAIN, f"another process is writing {target}") from error
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)


def check_free_space(folder: Path, needed: int) -> None:
    """Checks, before something large is written, that the disk of a folder has room; the folder may be missing still.

    Raises:
        OSError: the disk has less room than `needed` bytes.
    """
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OSError(
            errno.ENOSPC, f"{size_text(needed)} are needed in {folder}, but only {size_text(free)} are free there"
        )


def size_text(count: float) -> str:
    """A number of bytes as people write it, such as 29.2 GB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def parse_size(text: str) -> int:
    """The number of bytes in a text such as 5GB, 500 MB or 4GiB.

    Raises:
        SettingError: the text is not a size.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?i?)b?\s*", text, re.IGNORECASE)
    if match is None or match[2].lower() == "i":
        raise SettingError(f"{text!r} is not a size: give a number followed by kB, MB, GB or TB, such as 5GB.")
    unit = match[2].lower()
    base = 1024 if unit.endswith("i") else 1000
    many = float(match[1]) * base ** ("kmgt".index(unit[0]) + 1 if unit else 0)
    if many > _LARGEST:
        raise SettingError(f"{text[:40]!r} is not a size: it is more than any machine has.")
    size = int(many)
    if size < 1:
        raise SettingError(f"{text!r} is not a size: it must be at least 1 byte.")
    return size


@contextlib.contextmanager
def writing(path: Path | str, advice: str, also: type[Exception] = OSError) -> Iterator[None]:
    """Turns the system's refusal to write `path` into one sentence that ends with `advice`.

    Raises:
        BagelError: an OSError, or an error of the type `also`, was raised within.
    """
    try:
        yield
    except (OSError, also) as error:
        raise BagelError(
            f"{path} cannot be written ({getattr(error, 'strerror', None) or error}): {advice}."
        ) from error


def check_writable(path: Path) -> None:
    """Checks, before long work whose result goes to `path`, that it can be written; makes its folder if missing.

    Raises:
        OSError: no file can be written there.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder")
    if not _is_special(path):
        make_writable_folder(Path(os.path.realpath(path)).parent)


def make_writable_folder(folder: Path) -> None:
    """Makes a folder if it is missing, and checks that a file can be written in it.

    Raises:
        OSError: the folder cannot be made, or no file can be written in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()


def _is_special(path: Path) -> bool:
    """Whether renaming a file to `path` would destroy something: a pipe, a device, or a folder."""
    return path.exists() and not path.is_file()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
