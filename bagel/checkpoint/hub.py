"""Checkpoints from the hub: the files that are needed, each checked before it has its name, and resumed where it broke
off.

The package huggingface_hub lists, authorises and transfers. It compares sizes but no checksums, and of a file that
broke off it keeps nothing for the next process, which at 29 GB matters. So files are received here: into
`NAME.incomplete`, continued there, compared with the SHA-256 that the hub gives for large files (and the Git hash that
it gives for others), and renamed. In its cache they stand where the package itself would put them.

HF_ENDPOINT names a mirror, HF_TOKEN a token, HF_HUB_OFFLINE=1 asks for the cache alone, as everywhere.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bagel.checkpoint.companions import AUTOENCODER_FILE, COMPANIONS
from bagel.checkpoint.official import MODEL_FILES
from bagel.checkpoint.writing import Progress, counting
from bagel.errors import CheckpointError
from bagel.files import check_free_space

_CHUNK = 1 << 22


@dataclass(frozen=True)
class RemoteFile:
    """A file in a repository.

    Attributes:
        name, size: of it, in bytes.
        sha256: of a large file.
        git_hash: of any other: SHA-1 of its length and content.
    """

    name: str
    size: int
    sha256: str | None
    git_hash: str | None

    @property
    def etag(self) -> str:
        """What its content is called in the cache."""
        return self.sha256 or self.git_hash or self.name

    def digest(self) -> Any:
        """An empty digest of the kind that the hub gives."""
        if self.sha256 is not None:
            return hashlib.sha256()
        return hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)

    def is_right(self, path: Path) -> bool:
        """Whether a file here has its size and checksum."""
        return path.is_file() and path.stat().st_size == self.size and self._matches(_fed(self.digest(), path))

    def _matches(self, digest: Any) -> bool:
        wanted = self.sha256 or self.git_hash
        return wanted is None or digest.hexdigest() == wanted


def download(
    repository: str,
    *,
    folder: Path | None = None,
    revision: str | None = None,
    stored: str | None = None,
    check: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Fetches what is needed of a repository and is not here yet.

    Args:
        repository: "owner/name".
        folder: to put the files in; by default the cache of huggingface_hub.
        revision: branch, tag or commit; by default the main branch.
        stored: which file to take where there are several of GGUF, such as "gguf-q8_0".
        check: compare the checksums of files that are here already, too; those that are wrong are fetched anew.
        progress: told bytes received and bytes in all.

    Returns:
        The folder. Without network it is what the cache has, if it has the repository.

    Raises:
        CheckpointError: it cannot be had: no network, no such repository or revision, no access, no room, nothing in it
            that is a checkpoint, or a file came damaged.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise _explained(error, repository, revision) from error
    except Exception as error:  # no network, a mirror that is down: of many types
        cached = None if folder else _cached(repository, revision)
        if cached is None:
            raise _explained(error, repository, revision) from error
        return cached
    listed = {
        file.rfilename: RemoteFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else None, file.blob_id)
        for file in info.siblings or ()
    }
    fetch = _Fetch(repository, revision, str(info.sha), folder, check)
    try:
        weights = _weights(repository, listed, stored)
        if weights.endswith(".json"):
            fetch.get([listed[weights]], None)
            weights_files = _shards(fetch.place(listed[weights]), listed)
        else:
            if "config.json" not in listed:
                raise CheckpointError(f"{repository} has no config.json: it is no checkpoint of this model.")
            fetch.get([listed["config.json"]], None)
            weights_files = _beside(fetch.place(listed["config.json"]), listed)
        names = dict.fromkeys((*COMPANIONS, weights, *weights_files))
        return fetch.get([listed[name] for name in names if name in listed], progress)
    except CheckpointError:
        raise
    except Exception as error:
        raise _explained(error, repository, revision) from error


class _Fetch:
    """Files of one commit on their way here."""

    def __init__(self, repository: str, revision: str | None, commit: str, folder: Path | None, check: bool) -> None:
        self.repository, self.revision, self.commit = repository, revision, commit
        self.folder, self.check = folder, check

    def place(self, file: RemoteFile) -> Path:
        """Where its content is to be."""
        if self.folder is not None:
            return self.folder / file.name
        from huggingface_hub.constants import HF_HUB_CACHE
        from huggingface_hub.file_download import repo_folder_name

        return Path(HF_HUB_CACHE) / repo_folder_name(repo_id=self.repository, repo_type="model") / "blobs" / file.etag

    def get(self, files: Sequence[RemoteFile], progress: Progress | None) -> Path:
        """Receives what is missing, and returns the folder that the files are in."""
        missing = [file for file in files if not self._is_here(file)]
        begun = sum(_size(_incomplete(self.place(file))) for file in missing)
        if missing:
            check_free_space(self.place(missing[0]).parent, sum(file.size for file in missing) - begun)
        advance = counting(progress, sum(file.size for file in files))
        advance(sum(file.size for file in files if file not in missing))
        for file in missing:
            self._receive(file, advance, quiet=progress is not None)
        if self.folder is not None:
            return self.folder
        return self._named_in_cache(files)

    def _is_here(self, file: RemoteFile) -> bool:
        path = self.place(file)
        return file.is_right(path) if self.check else _size(path) == file.size and path.is_file()

    def _receive(self, file: RemoteFile, advance: Any, quiet: bool) -> None:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        path = self.place(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        url = hf_hub_url(self.repository, file.name, revision=self.commit)
        with _opened_alone(_incomplete(path)) as raw:
            if self._is_here(file):  # another process was quicker
                _incomplete(path).unlink()
                advance(file.size)
                return
            here = _size(_incomplete(path))
            if here > file.size:
                raw.truncate(0)
                here = 0
            receiver = _Receiver(raw, _fed(file.digest(), _incomplete(path)), advance)
            advance(here)
            with _quiet_bars(quiet):
                http_get(url, receiver, resume_size=here, headers=headers, expected_size=file.size)
            receiver.flush()
            digest = _fed(file.digest(), _incomplete(path)) if receiver.began_anew else receiver.digest
            if not file._matches(digest):
                _incomplete(path).unlink()
                raise CheckpointError(
                    f"{file.name} of {self.repository} came damaged: its checksum is {digest.hexdigest()}, not "
                    f"{file.etag}; it was removed, run the same again."
                )
            os.fsync(raw.fileno())
            if sys.platform == "win32":
                raw.close()  # no open file can be renamed there
            os.replace(_incomplete(path), path)

    def _named_in_cache(self, files: Sequence[RemoteFile]) -> Path:
        """Gives the contents in the cache their names there. Nothing is received: they are found."""
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        found: Any = None
        for file in files:
            found = try_to_load_from_cache(self.repository, file.name, revision=self.commit)
            if not isinstance(found, str) or not Path(found).exists():
                with _quiet_bars():
                    found = hf_hub_download(self.repository, file.name, revision=self.revision)
        return Path(found).parents[len(Path(files[-1].name).parts) - 1]


class _Receiver(io.BufferedWriter):
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


def _weights(repository: str, listed: dict[str, RemoteFile], stored: str | None) -> str:
    """The name of the file with weights, or of the index of several."""
    for name in MODEL_FILES:
        if name in listed:
            return name
    found = [
        name
        for name in listed
        if "/" not in name and name.endswith((".safetensors", ".gguf")) and name != AUTOENCODER_FILE
    ]
    if len(found) > 1 and stored is not None:
        type = stored.rpartition("-")[2]
        found = [name for name in found if type.lower() in name.lower()] or found
    if len(found) == 1:
        return found[0]
    if not found:
        raise CheckpointError(
            f"{repository} has no {' or '.join(MODEL_FILES)}, nor another file of safetensors or GGUF: it is no "
            "checkpoint of this model."
        )
    raise CheckpointError(
        f"{repository} has several files with weights ({', '.join(sorted(found))}): download the one that is wanted "
        "into a folder, and give that."
    )


def _shards(index: Path, listed: dict[str, RemoteFile]) -> list[str]:
    """The files that an index names."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} could not be read as an index of safetensors files: {error}") from error
    missing = [name for name in names if name not in listed]
    if missing:
        raise CheckpointError(f"the index of safetensors files names {missing[0]}, which the repository lacks.")
    return names


def _beside(config: Path, listed: dict[str, RemoteFile]) -> list[str]:
    """The further files of DFloat11, which has one for each layer and says so in config.json."""
    if "dfloat11_config" not in config.read_text(encoding="utf-8"):
        return []
    return [name for name in listed if "/" not in name and name.endswith(".safetensors")]


def _cached(repository: str, revision: str | None) -> Path | None:
    """What the cache has of a repository."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except Exception:  # of many types: there is none
        return None
    return folder if (folder / "config.json").exists() else None


def _explained(error: Exception, repository: str, revision: str | None) -> CheckpointError:
    """One sentence for whatever the package raised."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    hub = constants.ENDPOINT
    if isinstance(error, GatedRepoError):
        return CheckpointError(
            f"{repository} is gated: accept its conditions at {hub}/{repository}, then log in with `hf auth login` or "
            "set HF_TOKEN."
        )
    if isinstance(error, RevisionNotFoundError):
        return CheckpointError(f"{repository} has no revision {revision!r}: see {hub}/{repository}.")
    if isinstance(error, RepositoryNotFoundError):
        return CheckpointError(
            f"there is no repository {repository!r} at {hub}, or it is private: check the name, or log in with "
            "`hf auth login`."
        )
    if isinstance(error, HFValidationError):
        return CheckpointError(f"{repository!r} is no name of a repository: it must be 'owner/name'.")
    if isinstance(error, OfflineModeIsEnabled):
        return CheckpointError(f"{repository} is not in the cache, and HF_HUB_OFFLINE forbids to download it.")
    if isinstance(error, HfHubHTTPError):
        status = getattr(error.response, "status_code", "an error")
        return CheckpointError(f"{hub} answered {status} when asked for {repository}: try again later, or log in.")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return CheckpointError(f"{repository} could not be downloaded: {error.strerror}.")
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return CheckpointError(
        f"{repository!r} is no folder here, and {hub} could not be reached or broke off ({reason}): check the network "
        "(HF_ENDPOINT names a mirror) and run the same again, which goes on where it stopped; or download it elsewhere "
        "and give the folder."
    )


def _incomplete(path: Path) -> Path:
    return path.with_name(path.name + ".incomplete")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _fed(digest: Any, path: Path) -> Any:
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest


@contextmanager
def _opened_alone(path: Path) -> Iterator[io.FileIO]:
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


@contextmanager
def _quiet_bars(quiet: bool = True) -> Iterator[None]:
    """Without the package's own progress bars."""
    from huggingface_hub import utils

    if not quiet or utils.are_progress_bars_disabled():  # type: ignore[attr-defined]
        yield
        return
    utils.disable_progress_bars()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        utils.enable_progress_bars()  # type: ignore[attr-defined]
