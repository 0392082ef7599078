"""Where the images of rows lie: in the rows, in folders, or in zip and tar files that stay packed."""

from __future__ import annotations

import posixpath
import re
import urllib.request
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from bagel_mot.data.documents import AnyImage, LazyImage, Opener
from bagel_mot.data.readers.tars import open_tar, tar_index
from bagel_mot.data.remote import AnyPath, RemotePath
from bagel_mot.data.rows import SkipRow
from bagel_mot.data.tasks.fields import image_of
from bagel_mot.errors import DataError, ImageError

_URL = re.compile(r"https?://", re.IGNORECASE)
_OTHER_URL = re.compile(r"\w+://")
_SECONDS, _MOST_BYTES = 30, 1 << 27
_SPLIT = re.compile(r"(.*\.tar)\.(?:split|part)[._-]?\w*")
_ARCHIVE = (".zip", ".tar")

Archive = tuple[Path, ...]
"""A zip or tar file, or the parts that a tar was split in."""


@dataclass(frozen=True)
class UrlImage(LazyImage):
    """An image that is fetched when it is needed."""

    url: str

    def make(self, opener: Opener) -> Image.Image:
        try:
            with urllib.request.urlopen(self.url, timeout=_SECONDS) as answer:
                content = answer.read(_MOST_BYTES + 1)
        except (OSError, ValueError) as error:
            raise ImageError(f"{self.url[:200]} could not be fetched: {error}") from error
        if len(content) > _MOST_BYTES:
            raise ImageError(f"{self.url[:200]} has more than {_MOST_BYTES >> 20} MiB, which no image has")
        return opener.image(content)


@dataclass(frozen=True)
class PackedImage(LazyImage):
    """An image in one of some archives."""

    archives: tuple[Archive, ...]
    name: str

    def make(self, opener: Opener) -> Image.Image:
        for archive in self.archives:
            try:
                content = _members(archive).read(self.name)
            except DataError as error:
                raise ImageError(str(error)) from error
            if content is not None:
                return opener.image(content)
        where = str(self.archives[0][0]) if len(self.archives) == 1 else f"any of {len(self.archives)} archives"
        raise ImageError(f"there is no {self.name} in {where}")


class _Members:
    """The files in an archive by name."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        if archive[0].suffix.lower() == ".zip":
            try:
                self._zip: zipfile.ZipFile | None = zipfile.ZipFile(archive[0])
            except (OSError, zipfile.BadZipFile) as error:
                raise DataError(f"{archive[0]} could not be read as a zip file: {error}") from error
            names = self._zip.namelist()
        else:
            self._zip, self._index = None, tar_index(archive)
            names = self._index.names
        self._numbers = {name: number for number, name in enumerate(names)}
        tops = {name.partition("/")[0] for name in names}
        self._top = f"{tops.pop()}/" if len(tops) == 1 else ""

    def read(self, name: str) -> bytes | None:
        """The content of a file, whose name may lack the archive's only top folder or have folders before it."""
        tried = name
        while True:
            for wanted in (tried, self._top + tried):
                if wanted in self._numbers:
                    return self._content(wanted)
            _, slash, tried = tried.partition("/")
            if not slash:
                return None

    def _content(self, name: str) -> bytes:
        if self._zip is None:
            with open_tar(self.archive) as tar:  # anew: there may be many archives, and several threads
                return self._index.read(tar, self._numbers[name])
        try:
            return self._zip.read(name)
        except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
            raise DataError(f"{name} in {self.archive[0]} cannot be read: {error}") from error


@lru_cache(maxsize=256)
def _members(archive: Archive) -> _Members:
    return _Members(archive)


@dataclass(frozen=True)
class ImagePlace:
    """Makes images of what rows hold for them.

    Attributes:
        folders: the folders that relative paths are looked up in, in order. A path never leaves them.
        archives: the zip and tar files that are looked into if no folder has the file.
        urls: whether images at http and https addresses are fetched.
        anywhere: whether paths may lead out of the folders: those of data that the user wrote, on this machine.
    """

    folders: tuple[AnyPath, ...] = ()
    archives: tuple[Archive, ...] = ()
    urls: bool = False
    anywhere: bool = False

    def image(self, value: Any) -> AnyImage:
        """The image of a value: bytes, {"bytes", "path"}, a relative path, base64, a URL, or an image of Pillow's.

        Raises:
            SkipRow: it is null, leaves the folders, is a URL though these are not fetched, or is of another type.
        """
        if isinstance(value, Mapping):
            if value.get("bytes") is not None:
                return image_of(value["bytes"])
            value = value.get("path", value.get("url"))
        if isinstance(value, str) and _OTHER_URL.match(value):
            return self._fetched(value)
        found = image_of(value)
        return self._placed(found) if isinstance(found, Path) else found

    def path(self, name: str) -> AnyPath:
        """The path of a file or folder, such as a video, within the folders.

        Raises:
            SkipRow: it leaves them.
        """
        inner = self._inner(name)
        places = [folder / inner for folder in self.folders]
        return next((place for place in places if place.exists()), places[0] if places else Path(inner))

    def _fetched(self, url: str) -> AnyImage:
        if self.urls and _URL.match(url):
            return UrlImage(url)
        way_out = (
            "only http and https addresses are fetched"
            if self.urls
            else "URLs are not fetched: download the images and name their folder by data.images, or set "
            "data.urls: true"
        )
        raise SkipRow("an image is a URL", f"the image {url[:200]} is a URL; {way_out}")

    def _placed(self, path: Path) -> AnyImage:
        inner = self._inner(str(path))
        for folder in self.folders:
            # A file that is missing from the only place is missed when it is opened.
            is_only_place = len(self.folders) == 1 and not self.archives
            if is_only_place or (folder / inner).is_file():
                return folder / inner
        return PackedImage(self.archives, inner) if self.archives else self.folders[0] / inner

    def _inner(self, name: str) -> str:
        """A path relative to the folders."""
        if not self.folders and not self.archives:
            raise SkipRow("an image is a path", f"the image is the path {name[:200]}, and no data.images says where")
        plain = posixpath.normpath(name.replace("\\", "/"))
        if self.anywhere:
            return plain
        if posixpath.isabs(plain):
            for folder in self.folders:
                if isinstance(folder, Path) and Path(plain).is_relative_to(folder.absolute()):
                    return str(Path(plain).relative_to(folder.absolute()))
        if posixpath.isabs(plain) or plain == ".." or plain.startswith("../"):
            where = self.folders[0] if self.folders else self.archives[0][0]
            raise SkipRow("a path leaves its folder", f"the path {name[:200]} leads out of {where}")
        return plain


def image_place(places: Sequence[AnyPath], urls: bool, where: str) -> ImagePlace:
    """The place of images by paths of folders, zip and tar files, and parts of split tars, in any order.

    Args:
        places: the paths, which are there.
        urls: whether URLs are fetched.
        where: the words that errors begin with.

    Raises:
        DataError: a file is neither a zip nor a tar.
    """
    folders: list[AnyPath] = []
    archives: dict[str, list[Path]] = {}
    for place in places:
        if place.is_dir():
            folders.append(place)
        elif isinstance(place, RemotePath):
            raise DataError(f"{where} is {place}; archives are read on this machine alone: copy it, or unpack it there")
        elif split := _SPLIT.fullmatch(str(place)):
            archives.setdefault(split[1], []).append(place)
        elif place.suffix.lower() in _ARCHIVE:
            archives[str(place)] = [place]
        else:
            raise DataError(f"{where} is {place}; a folder, or .zip or .tar files are expected")
    return ImagePlace(tuple(folders), tuple(tuple(sorted(parts)) for parts in archives.values()), urls)
