"""Files of a repository at the hub: their sizes and checksums, and writing them while they come."""

from __future__ import annotations

import hashlib
import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHUNK = 1 << 22


@dataclass(frozen=True)
class RemoteFile:
    """A file in a repository.

    Attributes:
        name: its name, relative to the repository.
        size: its size in bytes; None where the hub has not listed it (`known` in `bagel_mot.checkpoint.hub.download`).
        sha256: the checksum of a large file.
        git_hash: the checksum of any other: SHA-1 of its length and content.
    """

    name: str
    size: int | None
    sha256: str | None
    git_hash: str | None

    @classmethod
    def of(cls, name: str, size: int | None, sha256: str | None, git_hash: str | None) -> RemoteFile:
        """A file as a hub lists it. What cannot be a checksum is left out: checksums name files in the cache."""
        known = ((sha256, r"[0-9a-f]{64}"), (git_hash, r"[0-9a-f]{40}"))
        return cls(name, size, *(text if text and re.fullmatch(pattern, text) else None for text, pattern in known))

    @property
    def etag(self) -> str | None:
        """The name of its content in the cache, which is its checksum."""
        return self.sha256 or self.git_hash

    def digest(self) -> Any:
        """An empty digest of the kind that the hub gives."""
        if self.sha256 is not None:
            return hashlib.sha256()
        return hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)

    def is_right(self, path: Path) -> bool:
        """Whether a file here has its size and checksum."""
        return path.is_file() and path.stat().st_size == self.size and self.matches(fed(self.digest(), path))

    def matches(self, digest: Any) -> bool:
        """Whether a digest is that of the right content."""
        return self.etag in (None, digest.hexdigest())


class Receiver(io.BufferedWriter):
    """A file that counts and digests what is written to it."""

    def __init__(self, raw: io.FileIO, digest: Any, advance: Any) -> None:
        super().__init__(raw)
        self.digest, self.advance, self.began_anew = digest, advance, False

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.advance(len(data))
        return super().write(data)

    def truncate(self, size: int | None = None) -> int:
        """A server that cannot go on in the middle begins anew."""
        self.began_anew = True
        self.flush()
        before = os.fstat(self.fileno()).st_size
        after = super().truncate(size)
        self.advance(after - before)
        return after

    def close(self) -> None:
        """Leaves the file to who opened it."""
        if not self.closed:
            self.flush()


def incomplete(path: Path) -> Path:
    """Where a file is while it comes."""
    return path.with_name(path.name + ".incomplete")


def fed(digest: Any, path: Path) -> Any:
    """A digest after the content of a file."""
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest


@contextmanager
def opened_alone(path: Path) -> Iterator[io.FileIO]:
    """A file opened at its end by one process at a time; another waits."""
    while True:
        file = io.FileIO(path, "a")
        try:
            if sys.platform != "win32":
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                yield file
                return
        finally:
            file.close()
