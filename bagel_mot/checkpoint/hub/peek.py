"""A look at a checkpoint on the hub without its weights: configurations, sizes, headers of safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bagel_mot.checkpoint.hub.download import cached_whole, fetch_files, list_files, shards_of, weights_of
from bagel_mot.checkpoint.hub.errors import explained
from bagel_mot.checkpoint.names import POSITION_TABLES, official_name
from bagel_mot.checkpoint.official import table_sides
from bagel_mot.checkpoint.opening import StoredWeights
from bagel_mot.checkpoint.side_files import CONFIG_FILES, SETTINGS_FILES
from bagel_mot.config import BagelConfig, load_config, with_table_sides
from bagel_mot.errors import CheckpointError

_PLAIN = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_QUANTISED = {"I8": "int8", "F8_E4M3": "fp8"}


@dataclass(frozen=True)
class RemoteCheckpoint:
    """A checkpoint on the hub.

    Attributes:
        folder: the folder in the cache that has its configuration and settings.
        nbytes: bytes of the files with the model's weights.
        tensors: (type, shape) of each tensor by its name, as safetensors files state them; empty for other files.
    """

    folder: Path
    nbytes: int
    tensors: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)

    def config(self) -> BagelConfig:
        """The configuration, with the sides of the position tables that the weights have.

        Raises:
            CheckpointError: a file is missing or damaged, or a table does not fit.
        """
        config = load_config(self.folder)
        shapes = {ours: self.tensors[theirs][1] for ours, theirs in POSITION_TABLES.items() if theirs in self.tensors}
        return with_table_sides(config, **table_sides(config, shapes))

    def stored(self) -> StoredWeights:
        """The types and sizes of the weights, as far as their headers tell."""
        beginning = official_name("decoder.layers.0.und.q.weight").partition("0.")[0]
        types = {kind for name, (kind, _) in self.tensors.items() if name.startswith(beginning)}
        quantised = [_QUANTISED[kind] for kind in types if kind in _QUANTISED]
        only = _PLAIN.get(types.pop()) if len(types) == 1 else None
        return StoredWeights(nbytes=self.nbytes, layers=only, format=quantised[0] if len(quantised) == 1 else None)


def peek(repository: str) -> Path | RemoteCheckpoint:
    """Fetches some kilobytes of a repository; a folder where the cache has all of it.

    Raises:
        CheckpointError: it cannot be had, or is not a checkpoint; see `download`.
    """
    if (here := cached_whole(repository)) is not None:
        return here
    listed, commit = list_files(repository)
    try:
        weights = weights_of(repository, listed)
        names = [name for name in (*CONFIG_FILES, *SETTINGS_FILES) if name in listed]
        if "config.json" not in names:
            raise CheckpointError(f"{repository} has no config.json: it is not a checkpoint of this model.")
        is_index = weights.endswith(".json")
        folder = fetch_files(repository, commit, [listed[name] for name in (*names, *([weights] if is_index else ()))])
        files = shards_of(folder / weights, listed) if is_index else [weights]
        tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name in files:
            if name.endswith(".safetensors"):
                tensors |= _header(repository, name, commit)
        return RemoteCheckpoint(folder, sum(listed[name].size or 0 for name in files), tensors)
    except CheckpointError:
        raise
    except Exception as error:  # the connection breaks off: there are many types
        raise explained(error, repository, None) from error


def _header(repository: str, name: str, commit: str) -> dict[str, Any]:
    """(type, shape) of each tensor of a file, from its first bytes."""
    from huggingface_hub import HfApi

    found = HfApi().parse_safetensors_file_metadata(repository, name, revision=commit)
    return {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in found.tensors.items()}
