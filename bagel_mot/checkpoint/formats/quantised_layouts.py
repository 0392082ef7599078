"""Safetensors files in which a tensor of the model may consist of several: values, scales, and how to read them.

Tensors that belong together are told by names and types. A tensor that no layout claims is a plain one under its own
name, if it is of a plain type; others are an error that describes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bagel_mot.checkpoint.source import SafetensorsFiles, TensorSource
from bagel_mot.errors import CheckpointError
from bagel_mot.model.quant import QuantisedMatrix

_SHOWN = 6  # neighbours that a message names


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the model as it is stored: as one or several tensors in files.

    Attributes:
        layout: its layout in words.
        shape: the shape that it has in the model.
        parts: the names of the tensors in the files that it is made of.
        load: reads it.
        format: the format of the `QuantisedMatrix` that `load` yields; None if that is a plain tensor.
        idle: tensors beside it that are not needed for it.
        nbytes: the bytes that are read for it; all of its parts if not given.
    """

    layout: str
    shape: tuple[int, ...]
    parts: tuple[str, ...]
    load: Callable[[SafetensorsFiles], Tensor | QuantisedMatrix]
    format: str | None
    idle: tuple[str, ...] = ()
    nbytes: int | None = None


class GroupedTensors(TensorSource):
    """A `TensorSource` over files in which some tensors consist of several."""

    def __init__(self, files: SafetensorsFiles, stored: Mapping[str, StoredTensor], markers: Collection[str]) -> None:
        """Sets apart the tensors that no other one consists of.

        Args:
            files: the tensors as they are stored.
            stored: tensors that consist of several, by their official names; all others are plain.
            markers: tensors in the files that do not belong to the model.
        """
        self.where: Path = files.where
        self._files, self._stored = files, dict(stored)
        taken = {part for entry in stored.values() for part in (*entry.parts, *entry.idle)} | set(markers)
        self._plain = [name for name in files.names() if name not in taken]

    @property
    def kind(self) -> str:
        amounts: Counter[str] = Counter()
        for name, entry in self._stored.items():
            amounts[entry.layout] += self.stored_bytes(name)
        return amounts.most_common(1)[0][0]

    def names(self) -> Collection[str]:
        return [*self._stored, *self._plain]

    def plain_names(self) -> Collection[str]:
        """The names of the tensors that are stored as they are."""
        return self._plain

    def shape(self, name: str) -> tuple[int, ...]:
        entry = self._stored.get(name)
        return self._files.shape(name) if entry is None else entry.shape

    def stored_bytes(self, name: str) -> int:
        entry = self._stored.get(name)
        if entry is not None and entry.nbytes is not None:
            return entry.nbytes
        return sum(self._files.stored_bytes(part) for part in ([name] if entry is None else entry.parts))

    def read(self, name: str, buffer: Tensor | None = None) -> Tensor | QuantisedMatrix:
        entry = self._stored.get(name)
        return self._files.read(name, buffer) if entry is None else entry.load(self._files)

    def format(self, name: str) -> str | None:
        entry = self._stored.get(name)
        return None if entry is None else entry.format

    def mapped(self, name: str) -> Tensor | None:
        return None if name in self._stored else self._files.mapped(name)

    def close(self) -> None:
        self._files.close()


def unknown(files: SafetensorsFiles, name: str, reason: str = "") -> CheckpointError:
    """The error for a tensor that is not understood: its looks, and its neighbours in the file."""
    module = name.rpartition(".")[0]
    beside = [n for n in files.names() if n != name and n.startswith(module + ".")] if module else []
    more = [f"{len(beside) - _SHOWN} more"] if len(beside) > _SHOWN else []
    neighbours = ", ".join([*(look(files, n) for n in beside[:_SHOWN]), *more]) or "nothing"
    return CheckpointError(
        f"{files.where}: {look(files, name)} is of an unknown layout{f' ({reason})' if reason else ''}; "
        f"beside it: {neighbours}; plain tensors, FP8, INT8 and NF4 of bitsandbytes, INT4 as it is written here, "
        "DFloat11 and GGUF are read"
    )


def look(files: SafetensorsFiles, name: str) -> str:
    """A tensor's name, type and shape, for messages."""
    return f"{name} ({files.dtype(name)} {list(files.shape(name))})"
