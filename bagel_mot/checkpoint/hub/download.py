"""Checkpoints from the hub: the files that are needed, each checked before it has its name, and resumed where it broke
off.

The package huggingface_hub lists, authorises and transfers. It compares sizes but no checksums, and of a file that
broke off it keeps nothing for the next process, which at 29 GB matters. So files are received here: into
`NAME.incomplete`, continued there, compared with the SHA-256 that the hub gives for large files (and the Git hash that
it gives for others), and renamed. In its cache they stand where the package itself would put them.

HF_ENDPOINT names a mirror, HF_TOKEN a token, HF_HUB_OFFLINE=1 asks for the cache alone, as everywhere.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bagel_mot.checkpoint.hub.errors import explained
from bagel_mot.checkpoint.hub.files import Receiver, RemoteFile, fed, incomplete, opened_alone
from bagel_mot.checkpoint.side_files import AUTOENCODER_FILE, COMPANIONS, MODEL_FILES
from bagel_mot.checkpoint.source import index_names, is_inside
from bagel_mot.checkpoint.write import ByteProgress, counting
from bagel_mot.errors import CheckpointError
from bagel_mot.files import check_free_space

_WEIGHTS = (".safetensors", ".gguf")


def download(
    repository: str,
    *,
    folder: Path | None = None,
    revision: str | None = None,
    stored: str | None = None,
    check: bool = False,
    progress: ByteProgress | None = None,
) -> Path:
    """Fetches what is needed of a repository and is not here yet.

    Args:
        repository: "owner/name".
        folder: the folder to put the files in; by default the cache of huggingface_hub.
        revision: branch, tag or commit; by default the main branch.
        stored: the file to take where there are several of GGUF, such as "gguf-q8_0".
        check: compare the checksums of files that are here already, too; those that are wrong are fetched anew.
        progress: told bytes received and bytes in all. What it raises ends the download.

    Returns:
        The folder. Without network it is what the cache has, if it has the repository.

    Raises:
        CheckpointError: it cannot be had: no network, no such repository or revision, no access, no room, nothing in it
            that is a checkpoint, or a file came damaged.
    """
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    if folder is not None and folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file: give a folder to download into.")
    try:
        listed, commit = _list_files(repository, revision)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise explained(error, repository, revision) from error
    except Exception as error:  # no network, a mirror that is down: there are many types
        cached = None if folder else _cached(repository, revision)
        if cached is None or not _is_whole(repository, cached, stored):
            raise explained(error, repository, revision, partly=cached is not None) from error
        if check:
            _check_cached(repository, cached)
        return cached
    fetch = _Fetch(repository, revision, commit, folder, check)
    watched = _Watched(progress)
    try:
        weights = weights_of(repository, listed, stored)
        if folder is not None:
            fetch.refuse_others(folder, listed)
        if weights.endswith(".json"):
            fetch.get([listed[weights]], None)
            weights_files = shards_of(fetch.place(listed[weights]), listed)
        else:
            if "config.json" not in listed:
                raise CheckpointError(f"{repository} has no config.json: it is not a checkpoint of this model.")
            fetch.get([listed["config.json"]], None)
            weights_files = _beside(fetch.place(listed["config.json"]), listed)
        names = dict.fromkeys((*COMPANIONS, weights, *weights_files))
        return fetch.get([listed[name] for name in names if name in listed], watched if progress else None)
    except CheckpointError:
        raise
    except Exception as error:
        if error is watched.raised:
            raise
        raise explained(error, repository, revision, folder) from error


def download_adapter(repository: str, names: Sequence[str]) -> Path:
    """Fetches the files of an adapter that are not here yet into the cache of huggingface_hub; returns their folder.

    Args:
        repository: "owner/name".
        names: the files.

    Raises:
        CheckpointError: it cannot be had, or the repository lacks one of the files.
    """
    try:
        listed, commit = _list_files(repository, None)
    except Exception as error:  # no network, no such repository: there are many types
        cached = _cached(repository, None)
        if cached is None or not all((cached / name).is_file() for name in names):
            raise explained(error, repository, None, partly=cached is not None) from error
        return cached
    if lacking := [name for name in names if name not in listed]:
        raise CheckpointError(f"{repository} has no {lacking[0]}: it is not an adapter in the layout of peft.")
    try:
        return fetch_files(repository, commit, [listed[name] for name in names])
    except CheckpointError:
        raise
    except Exception as error:
        raise explained(error, repository, None) from error


def list_files(repository: str) -> tuple[dict[str, RemoteFile], str]:
    """The files of a repository's main branch by name, and its commit.

    Raises:
        CheckpointError: there is no network, no such repository, or no access.
    """
    try:
        return _list_files(repository, None)
    except Exception as error:  # there are many types
        raise explained(error, repository, None) from error


def fetch_files(repository: str, commit: str, files: Sequence[RemoteFile]) -> Path:
    """Receives files of a repository into the cache where they are not there yet, and returns the folder there."""
    return _Fetch(repository, None, commit, None, False).get(files, None)


def cached_whole(repository: str) -> Path | None:
    """The folder of a repository in the cache, if all of it is there."""
    folder = _cached(repository, None)
    return folder if folder is not None and _is_whole(repository, folder, None) else None


def _list_files(repository: str, revision: str | None) -> tuple[dict[str, RemoteFile], str]:
    from huggingface_hub import HfApi

    info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    listed = {
        file.rfilename: RemoteFile.of(file.rfilename, file.size, file.lfs.sha256 if file.lfs else None, file.blob_id)
        for file in info.siblings or ()
        if is_inside(file.rfilename)  # a mirror may list whatever it likes
    }
    return listed, str(info.sha)


class _Watched:
    """Who is told of the progress. What they raise is theirs, and says nothing of the network."""

    def __init__(self, progress: ByteProgress | None) -> None:
        self._progress = progress
        self.raised: BaseException | None = None

    def __call__(self, done: int, total: int) -> None:
        assert self._progress is not None
        try:
            self._progress(done, total)
        except BaseException as error:
            self.raised = error
            raise


class _Fetch:
    """Files of one commit on their way here."""

    def __init__(self, repository: str, revision: str | None, commit: str, folder: Path | None, check: bool) -> None:
        self.repository, self.revision, self.commit = repository, revision, commit
        self.folder, self.check = folder, check
        self._known: dict[str, RemoteFile] = {}
        self._package = _package()

    def known(self, file: RemoteFile) -> RemoteFile:
        """The same with its size, which some mirrors do not list: they are asked for the file itself."""
        if file.size is not None:
            return file
        if file.name not in self._known:
            from huggingface_hub import get_hf_file_metadata, hf_hub_url

            found = get_hf_file_metadata(hf_hub_url(self.repository, file.name, revision=self.commit))
            if found.size is None:
                raise CheckpointError(
                    f"the hub does not say how large {file.name} of {self.repository} is, so that it could not be told "
                    "whether all of it came: use another mirror (HF_ENDPOINT)."
                )
            sha256, git_hash = file.sha256 or found.etag, file.git_hash or found.etag
            self._known[file.name] = RemoteFile.of(file.name, found.size, sha256, git_hash)
        return self._known[file.name]

    def place(self, file: RemoteFile) -> Path:
        """Where its content is to be."""
        file = self.known(file)
        if self.folder is not None:
            return self.folder / file.name
        from huggingface_hub.constants import HF_HUB_CACHE

        if file.etag is None:
            raise CheckpointError(
                f"the hub gives no checksum of {file.name} of {self.repository}, by which it is named in the cache: "
                "download it into a folder (--output), or use another mirror (HF_ENDPOINT)."
            )
        folder = self._package.repo_folder_name(repo_id=self.repository, repo_type="model")
        return Path(HF_HUB_CACHE) / folder / "blobs" / file.etag

    def refuse_others(self, folder: Path, listed: dict[str, RemoteFile]) -> None:
        """Refuses a folder that holds another checkpoint.

        Raises:
            CheckpointError: a folder holds weights that are not of the repository, which might be taken for its own, or
                another checkpoint's settings, which would be lost.
        """
        kinds = (".safetensors", ".safetensors.index.json", ".gguf")
        held = [path.name for path in sorted(folder.glob("*")) if path.is_file()]
        others = [name for name in held if name.endswith(kinds) and name not in listed]
        if not others and not any(name.endswith(".incomplete") for name in held):
            settings = [name for name in COMPANIONS if name in held and name in listed]
            if not any(self.known(listed[name]).is_right(folder / name) for name in settings):
                others = settings
        if others:
            raise CheckpointError(f"{folder} holds another {others[0]} than {self.repository}: give another folder.")

    def get(self, files: Sequence[RemoteFile], progress: ByteProgress | None) -> Path:
        """Receives what is missing, and returns the folder that the files are in."""
        files = [self.known(file) for file in files]
        missing = [file for file in files if not self._is_here(file)]
        begun = sum(_size(incomplete(self.place(file))) for file in missing)
        if missing:
            check_free_space(self.place(missing[0]).parent, _total(missing) - begun)
        advance = counting(progress, _total(files))
        advance(_total([file for file in files if file not in missing]))
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

        assert file.size is not None
        path = self.place(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        headers = {**self._package.build_hf_headers(), "Accept-Encoding": "identity"}
        url = hf_hub_url(self.repository, file.name, revision=self.commit)
        with opened_alone(incomplete(path)) as raw:
            if self._is_here(file):  # another process was quicker
                incomplete(path).unlink()
                advance(file.size)
                return
            here = _size(incomplete(path))
            if here > file.size:
                raw.truncate(0)
                here = 0
            receiver = Receiver(raw, fed(file.digest(), incomplete(path)), advance)
            advance(here)
            with _quiet_bars(quiet):
                self._package.http_get(url, receiver, resume_size=here, headers=headers, expected_size=file.size)
            receiver.flush()
            digest = fed(file.digest(), incomplete(path)) if receiver.began_anew else receiver.digest
            if not file.matches(digest):
                incomplete(path).unlink()
                raise CheckpointError(
                    f"{file.name} of {self.repository} came damaged: its checksum is {digest.hexdigest()}, not "
                    f"{file.etag}; it was removed, run the same again."
                )
            os.fsync(raw.fileno())
            if sys.platform == "win32":
                raw.close()  # no open file can be renamed there
            os.replace(incomplete(path), path)

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


def _package() -> Any:
    """The module of huggingface_hub with the functions that are not public: the names of folders in its cache, headers
    with the token, and the transfer itself.

    Raises:
        CheckpointError: the installed version lacks one of them.
    """
    import huggingface_hub
    from huggingface_hub import file_download

    for name in ("repo_folder_name", "build_hf_headers", "http_get"):
        if not callable(getattr(file_download, name, None)):
            raise CheckpointError(
                f"huggingface_hub {huggingface_hub.__version__} has no {name}, which downloads are made with: install "
                "another version, pip install 'huggingface_hub>=0.30,<3'."
            )
    return file_download


def weights_of(repository: str, listed: Collection[str], stored: str | None = None) -> str:
    """The name of the file with weights, or of the index of several."""
    for name in MODEL_FILES:
        if name in listed:
            return name
    found = [name for name in listed if "/" not in name and name.endswith(_WEIGHTS) and name != AUTOENCODER_FILE]
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


def shards_of(index: Path, listed: dict[str, RemoteFile]) -> list[str]:
    """The files that an index names, all of the repository."""
    names = index_names(index)
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
    """The folder of a repository in the cache; None without one."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except Exception:  # there is none, which has many types
        return None
    return folder if any(folder.iterdir()) else None


def _is_whole(repository: str, folder: Path, stored: str | None) -> bool:
    """Whether a folder of the cache has the configuration and all weights, which are given their names last."""
    here = [path.name for path in folder.iterdir() if path.exists()]
    some = any(name.endswith((*MODEL_FILES, *_WEIGHTS)) and name != AUTOENCODER_FILE for name in here)
    if not some or "config.json" not in here:
        return False
    weights = weights_of(repository, here, stored)
    if not weights.endswith(".json"):
        return True
    return all((folder / name).is_file() for name in index_names(folder / weights))


def _check_cached(repository: str, folder: Path) -> None:
    """Compares the large files in the cache with their checksums, which are their names there.

    Raises:
        CheckpointError: one of them is damaged.
    """
    for path in folder.rglob("*"):
        sha256 = path.resolve().name
        if len(sha256) == 64 and path.is_file() and fed(hashlib.sha256(), path).hexdigest() != sha256:
            raise CheckpointError(
                f"{path.name} of {repository} is damaged in the cache: its checksum is not {sha256}; "
                "download it anew where the hub can be reached."
            )


def _total(files: Sequence[RemoteFile]) -> int:
    return sum(file.size or 0 for file in files)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


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
