"""A checkpoint's configuration and stored types, without loading its weights."""

from __future__ import annotations

from pathlib import Path

from bagel_mot.checkpoint.official import read_config
from bagel_mot.checkpoint.opening import StoredWeights, open_checkpoint, stored_weights
from bagel_mot.config import BagelConfig
from bagel_mot.inference.loading import locate


def described(name: str) -> tuple[BagelConfig, StoredWeights, Path]:
    """The configuration of a checkpoint, its stored weights, and the place of its files. Of one on the hub that is not
    in the cache only configuration files and headers are fetched.
    """
    found = locate(name)
    if isinstance(found, str):
        from bagel_mot.checkpoint.hub.peek import peek

        remote = peek(found)
        if not isinstance(remote, Path):
            return remote.config(), remote.stored(), remote.folder
        found = remote
    source = open_checkpoint(found)
    return read_config(source), stored_weights(source), found
