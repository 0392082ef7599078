"""Where tensors come from: a file, or several with an index, read one tensor at a time under the official names.

A source may hand out a matrix in few bits as it is stored (`QuantisedMatrix`); everything else is a plain tensor. Other
rooms never ask which file layout it was.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bagel.errors import CheckpointError
from bagel.model.matrices import QuantisedMatrix

_PORTION = 1 << 27  # bytes read before a file is opened anew


class TensorSource(Protocol):
    """Tensors by their official names.

    Attributes:
        where: file or folder, for messages.
    """

    where: Path

    def names(self) -> Collection[str]: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the tensor as the model has it, whatever its layout in the file."""
        ...

    def stored_bytes(self, name: str) -> int:
        """Bytes that are read for it."""
        ...

    def read(self, name: str) -> Tensor | QuantisedMatrix:
        """A tensor of its own on the CPU, in the type it is stored in."""
        ...


class SafetensorsFiles:
    """The tensors of one or more safetensors files, as they are stored.

    Files are memory-mapped. Pages of a mapped file stay with the process until it is closed: opening it anew now and
    then keeps them few.
    """

    def __init__(self, where: Path, files: Collection[Path]) -> None:
        """
        Raises:
            CheckpointError: a file is missing, damaged or truncated, or a name stands in two of them.
        """
        self.where = where
        self._file_of: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, str] = {}
        for path in files:
            with _opened(path) as file:
                for name in file.keys():  # noqa: SIM118 - it is no dictionary
                    if name in self._file_of:
                        raise CheckpointError(f"{name} stands in {self._file_of[name]} and in {path}")
                    entry = file.get_slice(name)
                    self._file_of[name] = path
                    self._shapes[name], self._dtypes[name] = tuple(entry.get_shape()), entry.get_dtype()
        self._open: safe_open | None = None
        self._open_path: Path | None = None
        self._read_since = 0

    def names(self) -> Collection[str]:
        return self._file_of.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def dtype(self, name: str) -> str:
        """As safetensors names it: BF16, F32, F8_E4M3, I8, …"""
        return self._dtypes[name]

    def stored_bytes(self, name: str) -> int:
        count = 1
        for side in self._shapes[name]:
            count *= side
        return count * _BYTES.get(self._dtypes[name], 1)

    def file(self, name: str) -> Path:
        """The one that holds a tensor."""
        return self._file_of[name]

    def read(self, name: str) -> Tensor:
        path = self._file_of[name]
        if self._open is None or path != self._open_path or self._read_since > _PORTION:
            self.close()
            self._open, self._open_path = _opening(path), path
        self._read_since += self.stored_bytes(name)
        return self._open.get_tensor(name).clone()

    def mapped(self, name: str) -> Tensor:
        """A view of the file: nothing is read before it is used, and what was read the system may take back."""
        return _opening(self._file_of[name]).get_tensor(name)

    def metadata(self) -> Mapping[str, str]:
        """What is written at the head of the first file."""
        for path in self._file_of.values():
            with _opened(path) as file:
                return dict(file.metadata() or {})
        return {}

    def close(self) -> None:
        """Gives the mapped pages back; a later `read` opens the file again."""
        self._open, self._open_path, self._read_since = None, None, 0


_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


def _opening(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} could not be read as safetensors (truncated or damaged?): {error}") from error


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    with _opening(path) as file:
        yield file


def safetensors_files(path: Path) -> list[Path]:
    """The files behind a path: itself, or those that an index (`*.safetensors.index.json`) names.

    Raises:
        CheckpointError: the index cannot be read, or names a file that is not there.
    """
    if path.suffix != ".json":
        return [path]
    try:
        named = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} could not be read as an index of safetensors files: {error}") from error
    files = [path.parent / name for name in named]
    for file in files:
        if file.parent != path.parent or not file.is_file():
            raise CheckpointError(f"{path} names {file.name}, which is missing beside it; download it anew")
    return files


def bytes_of(tensor: Tensor | QuantisedMatrix) -> int:
    return tensor.nbytes


def as_tensor(found: Tensor | QuantisedMatrix, dtype: torch.dtype) -> Tensor:
    """A plain tensor, whatever a source gave."""
    return found.dequantise(dtype) if isinstance(found, QuantisedMatrix) else found.to(dtype)
