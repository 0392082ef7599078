"""The state of a training run as a checkpoint: PyTorch's distributed checkpoint, written by any number of processes.

It holds the averages of the parameters that train in float32, where the official files beside it have bfloat16. What it
lacks, frozen parameters, is read from those files.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bagel_mot.checkpoint.names import official_name
from bagel_mot.checkpoint.source import TensorSource
from bagel_mot.errors import CheckpointError
from bagel_mot.model.quant import QuantisedMatrix

METADATA_FILE = ".metadata"
_AVERAGE, _WEIGHT = "ema.", "module."


def is_training_state(folder: Path) -> bool:
    """Whether a folder is the state of a training run."""
    return (folder / METADATA_FILE).is_file()


class TrainingState(TensorSource):
    """A `TensorSource` over the folder `training_state` of a run's checkpoint."""

    def __init__(self, folder: Path, beside: TensorSource | None) -> None:
        """Reads what the folder holds.

        Args:
            folder: the folder.
            beside: the official files of the same checkpoint, for what the folder lacks.

        Raises:
            CheckpointError: it is damaged, or holds adapters.
        """
        from torch.distributed.checkpoint.filesystem import FileSystemReader

        self.where, self._beside = folder, beside
        try:
            stored: dict[str, Any] = FileSystemReader(folder).read_metadata().state_dict_metadata
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise CheckpointError(f"{folder} could not be read as a training state: {reason}") from error
        if any("lora_" in key for key in stored):
            raise CheckpointError(
                f"{folder} is the state of adapters: give the folder {folder.parent}, which holds them"
            )
        self._keys: dict[str, str] = {}
        for kind in (_WEIGHT, _AVERAGE):  # averages count, where there are any
            self._keys |= {official_name(key.removeprefix(kind)): key for key in stored if key.startswith(kind)}
        self._sizes = {key: (tuple(part.size), part.properties.dtype) for key, part in stored.items()}
        others = set() if beside is None else set(beside.names()) - self._keys.keys()
        self._names = [*self._keys, *sorted(others)]

    @property
    def kind(self) -> str:
        return "training state"

    def names(self) -> Collection[str]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        if name in self._keys:
            return self._sizes[self._keys[name]][0]
        assert self._beside is not None
        return self._beside.shape(name)

    def stored_bytes(self, name: str) -> int:
        if name in self._keys:
            shape, dtype = self._sizes[self._keys[name]]
            return torch.Size(shape).numel() * dtype.itemsize
        assert self._beside is not None
        return self._beside.stored_bytes(name)

    def read(self, name: str, buffer: Tensor | None = None) -> Tensor | QuantisedMatrix:
        """A tensor of its own on the CPU, in float32 where it trained.

        Raises:
            CheckpointError: it is damaged.
        """
        if name not in self._keys:
            assert self._beside is not None
            return self._beside.read(name, buffer)
        from torch.distributed.checkpoint import state_dict_loader
        from torch.distributed.checkpoint.api import CheckpointException

        key = self._keys[name]
        shape, dtype = self._sizes[key]
        room = {key: torch.empty(shape, dtype=dtype)}
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")
                state_dict_loader.load(room, checkpoint_id=self.where, no_dist=True)
        except (Exception, CheckpointException) as error:
            raise CheckpointError(f"{self.where}: {name} could not be read (truncated or damaged?)") from error
        return room[key]
