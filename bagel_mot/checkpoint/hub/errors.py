"""Sentences for when a checkpoint cannot be had from the hub."""

from __future__ import annotations

import errno
from pathlib import Path

from bagel_mot.errors import CheckpointError

_LOCAL = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
"""Errors of files here, not of the network."""


def explained(
    error: Exception, repository: str, revision: str | None, folder: Path | None = None, *, partly: bool = False
) -> CheckpointError:
    """One sentence for whatever the package or the system raised.

    Args:
        error: the error that was raised.
        repository, revision: the repository and the revision that were asked for.
        folder: the folder that files were being put in; None for the cache.
        partly: whether the cache has a part of the repository.
    """
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
        return CheckpointError(f"{repository!r} cannot be a repository: its name must be 'owner/name'.")
    if isinstance(error, OfflineModeIsEnabled):
        held = f"only a part of {repository} is" if partly else f"{repository} is not"
        return CheckpointError(f"{held} in the cache, and HF_HUB_OFFLINE forbids to download it.")
    if isinstance(error, HfHubHTTPError):
        status = getattr(error.response, "status_code", "an error")
        return CheckpointError(f"{hub} answered {status} when asked for {repository}: try again later, or log in.")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return CheckpointError(f"{repository} could not be downloaded: {error.strerror}.")
    if isinstance(error, OSError) and error.errno in _LOCAL:
        place = error.filename or folder or "the cache"
        return CheckpointError(f"{repository} could not be downloaded: {place} cannot be written: {error.strerror}.")
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    held = f"only a part of {repository} is in the cache" if partly else f"{repository!r} is no folder here"
    return CheckpointError(
        f"{held}, and {hub} could not be reached or broke off ({reason}): check the network "
        "(HF_ENDPOINT names a mirror) and run the same again, which goes on where it stopped; or download it elsewhere "
        "and give the folder."
    )
