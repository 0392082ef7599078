"""Files of other file systems, by their addresses: Hadoop's, and the stores of clouds.

PyArrow reaches `hdfs://`, `s3://`, `gs://` and `abfs://` by itself, with the settings and the keys that the usual tools
of these have; other file systems are those that fsspec knows.
"""

from __future__ import annotations

import errno
import glob
import os
import posixpath
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Thread
from typing import Any, BinaryIO, Literal, NamedTuple, TypeVar, cast

from PIL import Image

from bagel_mot.data.documents import LazyImage, Opener
from bagel_mot.errors import DataError, ImageError
from bagel_mot.installation import install_command

_Answer = TypeVar("_Answer")
_ADDRESS = re.compile(r"([a-z][a-z0-9+]+)://([^/]*)(.*)", re.IGNORECASE | re.DOTALL)
_HOSTS = ("hdfs", "viewfs")
_ARROW = {name: name for name in (*_HOSTS, "s3", "gs", "abfs", "abfss")} | {"s3a": "s3", "gcs": "gs"}
_PATIENCE = 60.0  # seconds for one question, which a store that is there answers in less than one
_SHOWN = 200  # characters of what a store says
_GOOGLE_RETRIES = 15  # seconds in which PyArrow asks again; by itself it goes on for minutes
_WEB = ("http", "https", "ftp", "file", "data")
_HADOOP = (
    "HDFS needs Java and Hadoop's library libhdfs: set JAVA_HOME, HADOOP_HOME and CLASSPATH, which is what "
    "`hadoop classpath --glob` prints"
)
_AZURE = "Azure's store needs the account and its key, as in abfs://container@account.dfs.core.windows.net"
_ADVICE = {
    "hdfs": _HADOOP,
    "viewfs": _HADOOP,
    "s3": "S3 needs its region and keys, in ~/.aws or in AWS_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "Google's store needs its credentials, in GOOGLE_APPLICATION_CREDENTIALS",
    "abfs": _AZURE,
    "abfss": _AZURE,
}


class _Address(NamedTuple):
    """The parts of an address: `scheme://host/rest`."""

    scheme: str
    host: str
    rest: str


def is_remote(name: str) -> bool:
    """Whether a name is the address of a file in another file system, and not one of the web."""
    found = _ADDRESS.match(name)
    return found is not None and found[1].lower() not in _WEB


def is_on_the_web(name: str) -> bool:
    """Whether a name is the address of something on the web, where there are no folders."""
    found = _ADDRESS.match(name)
    return found is not None and found[1].lower() in ("http", "https", "ftp")


@dataclass(frozen=True, order=True)
class RemotePath(LazyImage):
    """A file or folder of another file system. Used as an image it is read when a sample needs it.

    It has those methods of `Path` that reading data takes, with the same errors.

    Attributes:
        url: the address, without a slash at its end.
    """

    url: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", self.url.rstrip("/"))

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str | Path) -> RemotePath:
        scheme, host, rest = self._address
        return RemotePath(f"{scheme}://{host}{posixpath.normpath(posixpath.join(rest or '/', Path(name).as_posix()))}")

    @property
    def _address(self) -> _Address:
        found = _ADDRESS.match(self.url)
        if found is None:
            raise DataError(f"{self.url!r} is no address of a file, such as s3://bucket/folder")
        return _Address(*found.groups())

    @property
    def name(self) -> str:
        return posixpath.basename(self._address.rest)

    @property
    def stem(self) -> str:
        return posixpath.splitext(self.name)[0]

    @property
    def suffix(self) -> str:
        return posixpath.splitext(self.name)[1]

    @property
    def parent(self) -> RemotePath:
        scheme, host, rest = self._address
        return RemotePath(f"{scheme}://{host}{posixpath.dirname(rest)}")

    def absolute(self) -> RemotePath:
        return self

    def exists(self) -> bool:
        return self._is("exists")

    def is_dir(self) -> bool:
        return self._is("isdir")

    def is_file(self) -> bool:
        return self._is("isfile")

    def _is(self, question: str) -> bool:
        """The answer to a question about the path, by the name that fsspec has for it.

        Raises:
            DataError: the file system cannot be reached, or does not answer.
        """
        try:
            with _as_oserror():
                return _soon(lambda: bool(getattr(self._system, question)(self._inner)), self.url)
        except OSError as error:
            scheme = _ARROW.get(self._address.scheme.lower())
            advice = f"; {_ADVICE[scheme]}" if scheme else ""
            raise DataError(f"{self} cannot be reached: {str(error.strerror)[:_SHOWN]}{advice}") from error

    def iterdir(self) -> Iterator[RemotePath]:
        with _as_oserror():
            found = self._system.ls(self._inner, detail=False)
        yield from map(self._outer, found)

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """The files and folders within this folder whose paths a pattern fits; `**` is any number of folders."""
        from fsspec.utils import glob_translate

        # fsspec's own glob takes the first slash away, which makes paths of HDFS relative to the home folder.
        with _as_oserror():
            found = self._system.find(self._inner, withdirs=True)
        fits = re.compile(glob_translate(pattern))
        inside = len(self._inner.strip("/")) + 1
        yield from (self._outer(path) for path in sorted(found) if fits.match(path.strip("/")[inside:]))

    def open(self, mode: Literal["rb"] = "rb") -> BinaryIO:
        with _as_oserror():
            return cast(BinaryIO, self._system.open(self._inner, mode))

    def read_bytes(self) -> bytes:
        with self.open() as file, _as_oserror():
            return file.read()

    def make(self, opener: Opener) -> Image.Image:
        return opener.image(self.content())

    def content(self) -> bytes:
        """The content of an image's file.

        Raises:
            ImageError: it cannot be read.
        """
        try:
            return self.read_bytes()
        except OSError as error:
            raise ImageError(f"{self} cannot be read: {error.strerror or error}") from error

    @property
    def _system(self) -> Any:
        scheme, host, _ = self._address
        return _file_system(scheme.lower(), host, os.getpid())

    @property
    def _prefix(self) -> str:
        """The beginning of the paths within the file system, before `rest`: the name of a bucket, for example."""
        scheme, host, _ = self._address
        if scheme.lower() in _HOSTS:
            return ""
        if scheme.lower() in _ARROW:
            return host.rpartition("@")[2 if _ARROW[scheme.lower()] != "abfs" else 0] or host
        return str(self._system._strip_protocol(f"{scheme}://{host}")).rstrip("/")

    @property
    def _inner(self) -> str:
        """The path within the file system."""
        return (self._prefix + self._address.rest) or "/"

    def _outer(self, inner: str) -> RemotePath:
        """The path that has a path within the file system."""
        scheme, host, _ = self._address
        rest = inner.lstrip("/").removeprefix(self._prefix.lstrip("/")).lstrip("/")
        return RemotePath(f"{scheme}://{host}/{rest}")


@dataclass(frozen=True)
class RemoteFrame(LazyImage):
    """A frame of a clip that is a file of its own in another file system."""

    path: RemotePath

    def make(self, opener: Opener) -> Image.Image:
        return opener.frame(self.path.content())


AnyPath = Path | RemotePath
"""A file or folder of this machine's file systems, or of another one."""


def place_of(name: str, folder: AnyPath | None = None) -> AnyPath:
    """The place that a name means: an address, or a path relative to a folder."""
    if is_remote(name):
        return RemotePath(name)
    return Path(name) if folder is None else folder / name


def found_places(url: str) -> list[AnyPath]:
    """The files and folders that an address means, which may be a pattern.

    Raises:
        DataError: the file system cannot be reached.
    """
    path, pattern = RemotePath(url), ""
    while glob.has_magic(path._address.rest):
        path, pattern = path.parent, f"{path.name}/{pattern}".rstrip("/")
    if not pattern:
        return [path] if path.exists() else []
    try:
        return list(path.glob(pattern)) if path.is_dir() else []
    except OSError as error:
        raise DataError(f"{url} cannot be reached: {error.strerror or error}") from error


@lru_cache(maxsize=64)
def _file_system(scheme: str, host: str, process: int) -> Any:
    """The file system of an address, by fsspec's interface; each process has its own, for they do not survive a fork.

    Raises:
        DataError: a package is missing, or the file system cannot be reached.
    """
    url = f"{scheme}://{host}"
    try:
        import fsspec
        import pyarrow
        import pyarrow.fs
        from fsspec.implementations.arrow import ArrowFSWrapper
    except ImportError as error:
        raise DataError(f"{url} needs the packages pyarrow and fsspec: {install_command('data')}") from error
    try:
        if scheme in _HOSTS:
            return ArrowFSWrapper(pyarrow.fs.HadoopFileSystem.from_uri(f"{url}/" if host else f"{scheme}://default/"))
        if scheme in _ARROW:
            limit = f"?retry_limit_seconds={_GOOGLE_RETRIES}" if _ARROW[scheme] == "gs" else ""
            return ArrowFSWrapper(pyarrow.fs.FileSystem.from_uri(f"{_ARROW[scheme]}://{host}{limit}")[0])
        return fsspec.url_to_fs(url)[0]
    except (ImportError, OSError, ValueError, TypeError, pyarrow.ArrowException) as error:
        advice = f"; {_ADVICE[_ARROW[scheme]]}" if scheme in _ARROW else ""
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{url} cannot be reached ({reason}){advice}; or mount it, or copy it to a folder") from error


def _soon(ask: Callable[[], _Answer], url: str) -> _Answer:
    """Asks a store about an address: the result of `ask`, or its error.

    Raises:
        DataError: it takes longer than `_PATIENCE`. It is left to itself then: clients of stores retry for minutes, not
            all can be told how long, and none can be interrupted.
    """
    answer: Future[_Answer] = Future()

    def work() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=work, daemon=True).start()
    if not wait([answer], _PATIENCE).done:
        raise DataError(f"{url} cannot be reached: there is no answer within {_PATIENCE:g} seconds")
    return answer.result()


@contextmanager
def _as_oserror() -> Iterator[None]:
    """Within it everything that a file system raises is an `OSError` that says why."""
    try:
        yield
    except OSError as error:
        if error.strerror is None:
            raise type(error)(error.errno or errno.EIO, " ".join(str(error).split())) from error
        raise
    except DataError:
        raise
    except Exception as error:  # the packages for stores have types of their own
        raise OSError(errno.EIO, f"{type(error).__name__}: {' '.join(str(error).split())}") from error
