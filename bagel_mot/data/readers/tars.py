"""Tar files without unpacking them: where each member lies, so that any of them is read at once.

A tar may be split in parts (`name.tar.split.000`, `.001`, …), which are read as the one file that they were.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bagel_mot.errors import DataError
from bagel_mot.files import check_content, write_atomically

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
_WORTH_KEEPING = 1 << 26  # bytes of a tar whose index is kept on disk: a smaller one is read through in no time


class JoinedFile(io.RawIOBase):
    """Files that are read as one, in their order."""

    def __init__(self, parts: Sequence[Path]) -> None:
        super().__init__()
        self._files = [open(part, "rb") for part in parts]  # noqa: SIM115 - closed with this one
        self._ends = np.cumsum([os.fstat(file.fileno()).st_size for file in self._files]).tolist()
        self._place = 0

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return int(self._ends[-1])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.size}[whence]
        self._place = max(base + offset, 0)
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Reads from one of the files, so it may read less than there is room for."""
        number = int(np.searchsorted(self._ends, self._place, side="right"))
        if number == len(self._files):
            return 0
        begin = self._ends[number - 1] if number else 0
        self._files[number].seek(self._place - begin)
        count = self._files[number].readinto(buffer)
        self._place += count
        return int(count)

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()


@dataclass(frozen=True, eq=False)
class TarIndex:
    """The files in a tar, in its order.

    Attributes:
        parts: the tar's file, or the parts it was split in.
        names: their names, without a leading "./".
        offsets, sizes: (n,) int64: where the content of each begins in the tar, and its bytes.
    """

    parts: tuple[Path, ...]
    names: list[str]
    offsets: np.ndarray
    sizes: np.ndarray

    def read(self, file: JoinedFile, number: int) -> bytes:
        """The content of a member.

        Args:
            file: the tar, opened.
            number: the number of the member.
        """
        file.seek(int(self.offsets[number]))
        buffer = bytearray(int(self.sizes[number]))
        view, done = memoryview(buffer), 0
        while done < len(buffer) and (count := file.readinto(view[done:])):
            done += count
        return bytes(buffer[:done])


def open_tar(parts: Sequence[Path]) -> JoinedFile:
    """A tar's file, or its parts as one file.

    Raises:
        DataError: one is missing or cannot be read.
    """
    try:
        return JoinedFile(parts)
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}); a tar file is expected") from error


@lru_cache(maxsize=4096)
def tar_index(parts: tuple[Path, ...]) -> TarIndex:
    """The index of a tar. That of a large one is kept in the user's cache folder, and read there the next time.

    Raises:
        DataError: it is missing, empty, compressed, no tar, or damaged.
    """
    try:
        check_content(parts[0], DataError)
        with open(parts[0], "rb") as opened:
            start = opened.read(2)
        stats = [(str(part.absolute()), part.stat().st_size, part.stat().st_mtime_ns) for part in parts]
    except OSError as error:
        raise DataError(f"{parts[0]} cannot be read ({error.strerror}); a tar file is expected") from error
    if start in _COMPRESSED:
        raise DataError(
            f"{parts[0]} is compressed by {_COMPRESSED[start]}, so its members cannot be read one by one: unpack it to "
            "a plain .tar"
        )
    kept = _cache_folder() / f"{hashlib.sha256(repr(stats).encode()).hexdigest()[:32]}.npz"
    if (known := _kept(kept, parts)) is not None:
        return known
    index = _indexed(parts)
    if sum(size for _, size, _ in stats) >= _WORTH_KEEPING:
        with suppress(OSError):
            _keep(kept, index)
    return index


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bagel_mot" / "tars"


def _kept(path: Path, parts: tuple[Path, ...]) -> TarIndex | None:
    try:
        with np.load(path, allow_pickle=False) as content:
            names = bytes(content["names"]).decode("utf-8", "surrogateescape").split("\0")
            return TarIndex(parts, names, content["offsets"], content["sizes"])
    except (OSError, ValueError, KeyError, EOFError):
        return None


def _keep(path: Path, index: TarIndex) -> None:
    names = np.frombuffer("\0".join(index.names).encode("utf-8", "surrogateescape"), np.uint8)

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, names=names, offsets=index.offsets, sizes=index.sizes)

    write_atomically(path, write)


def _indexed(parts: tuple[Path, ...]) -> TarIndex:
    names: list[str] = []
    places: list[tuple[int, int]] = []
    with open_tar(parts) as file:
        size = file.size
        try:
            with tarfile.open(fileobj=io.BufferedReader(file, 1 << 12), mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined] # else all of them stay in memory
                    if member.isfile():
                        names.append(member.name.removeprefix("./"))
                        places.append((member.offset_data, member.size))
        except (tarfile.TarError, OSError, EOFError) as error:
            raise DataError(f"{parts[0]} is no tar, or damaged ({error}): download it anew") from error
    if not names:
        raise DataError(f"{parts[0]} has no files in it, so there is nothing to train on")
    if sum(places[-1]) > size:
        raise DataError(f"{parts[0]} ends in the middle of {names[-1]}: download it anew")
    offsets, sizes = np.array(places, dtype=np.int64).T
    return TarIndex(parts, names, offsets, sizes)
