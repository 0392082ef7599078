"""Sources of tensors: a file, or several with an index, read one tensor at a time under the official names.

A source may yield a quantised matrix as it is stored (`QuantisedMatrix`); everything else is a plain tensor. Other
rooms never ask which file layout it was. Sources are opened by `bagel_mot.checkpoint.opening`.
"""

from __future__ import annotations

import json
import mmap
import os
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath

import torch
from torch import Tensor

from bagel_mot.allocator import on_own_pages
from bagel_mot.errors import CheckpointError, MemoryShortageError
from bagel_mot.files import check_content, read_json, size_text
from bagel_mot.model.finite import is_finite
from bagel_mot.model.quant import QuantisedMatrix

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The types of stored tensors, by the names that safetensors gives them; GGUF has the same for plain numbers."""
PLAIN_TYPES = ("F64", "F32", "F16", "BF16")
_LONGEST_HEADER = 100 << 20  # bytes, as the format has it


class TensorSource(ABC):
    """Tensors by their official names.

    Attributes:
        where: the file, or the index of several; the rest of the checkpoint is beside it.
    """

    where: Path

    @property
    @abstractmethod
    def kind(self) -> str:
        """The layout in words."""

    @abstractmethod
    def names(self) -> Collection[str]:
        """The official names of all tensors."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor as the model has it, whatever its layout in the file."""

    @abstractmethod
    def stored_bytes(self, name: str) -> int:
        """Bytes that are read for a tensor."""

    @abstractmethod
    def read(self, name: str, buffer: Tensor | None = None) -> Tensor | QuantisedMatrix:
        """A tensor of its own on the CPU, in the type in which it is stored.

        Args:
            name: its official name.
            buffer: memory, uint8 (n,), that it may lie in instead, where it is read as it is stored. Reading into
                memory that was used before takes a fifth of the time, because its pages are there.
        """

    def format(self, name: str) -> str | None:
        """The format of the quantised matrix as which a tensor is read; None for a plain one. Reads nothing."""
        return None

    def mapped(self, name: str) -> Tensor | None:
        """A view of the file, not to be written to, where the tensor is stored as it is; None elsewhere. Its pages are
        read when they are used, and the system may take them back.
        """
        return None

    def close(self) -> None:
        """Releases mapped files; views of them stay, and a later `read` opens the file again."""
        return None


@dataclass(frozen=True)
class StoredBytes:
    """The bytes of one tensor in a safetensors file.

    Attributes:
        file: the file.
        dtype: the tensor's type, one of DTYPES.
        shape: the tensor's shape.
        offset: the place in the file at which its bytes begin.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * DTYPES[self.dtype].itemsize


class SafetensorsFiles(TensorSource):
    """The tensors of one or more safetensors files, as they are stored: read into memory of their own, or as views of
    the mapped files. Each file's header is read once.
    """

    def __init__(self, where: Path, files: Iterable[Path]) -> None:
        """Reads the headers of files.

        Raises:
            CheckpointError: a file is missing, damaged or truncated, or a name is in two of them.
        """
        self.where = where
        self._stored: dict[str, StoredBytes] = {}
        self._maps: dict[Path, mmap.mmap] = {}
        for path in files:
            self.add(read_header(path))

    def add(self, found: dict[str, StoredBytes]) -> None:
        """Adds the tensors of another file."""
        for name, stored in found.items():
            if name in self._stored:
                raise CheckpointError(f"{name} is in {self._stored[name].file} and in {stored.file}")
            self._stored[name] = stored

    @property
    def kind(self) -> str:
        amounts: Counter[str] = Counter()
        for stored in self._stored.values():
            amounts[stored.dtype] += stored.nbytes
        most = amounts.most_common(1)[0][0] if amounts else "nothing"
        return f"safetensors, {str(DTYPES[most]).removeprefix('torch.') if most in PLAIN_TYPES else most}"

    def names(self) -> Collection[str]:
        return self._stored.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored[name].shape

    def dtype(self, name: str) -> str:
        """The type of a tensor as safetensors names it: BF16, F32, F8_E4M3, I8, …"""
        return self._stored[name].dtype

    def torch_dtype(self, name: str) -> torch.dtype:
        return DTYPES[self._stored[name].dtype]

    def stored_bytes(self, name: str) -> int:
        return self._stored[name].nbytes

    def read(self, name: str, buffer: Tensor | None = None) -> Tensor:
        return self._read(name, 0, self._stored[name].shape, buffer)

    def read_part(self, name: str, start: int, stop: int) -> Tensor:
        """Entries start..stop along the first axis, as many of them as there are."""
        count, *rest = self._stored[name].shape
        stop = min(stop, count)
        before = self.stored_bytes(name) // max(1, count) * start
        return self._read(name, before, (stop - start, *rest))

    def _read(self, name: str, skipped: int, shape: tuple[int, ...], buffer: Tensor | None = None) -> Tensor:
        """Reads into a buffer, or memory of its own: the pages of a mapped file would stay with the process."""
        stored, dtype = self._stored[name], self.torch_dtype(name)
        size = prod(shape) * dtype.itemsize
        if buffer is None or buffer.numel() < size:
            tensor = on_own_pages(shape, dtype)
        else:
            tensor = buffer[:size].view(dtype).view(shape)
        left = memoryview(tensor.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        try:
            with open(stored.file, "rb", buffering=0) as file:
                file.seek(stored.offset + skipped)
                while left:
                    count = file.readinto(left)
                    if not count:
                        raise CheckpointError(f"{stored.file} ends within {name}: it was truncated; download it anew")
                    left = left[count:]
        except OSError as error:
            raise CheckpointError(f"{stored.file} could not be read at {name}: {error}") from error
        return tensor

    def mapped(self, name: str) -> Tensor:
        stored = self._stored[name]
        if stored.file not in self._maps:
            self._maps[stored.file] = _map(stored.file)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
            return torch.frombuffer(
                self._maps[stored.file], dtype=self.torch_dtype(name), count=prod(stored.shape), offset=stored.offset
            ).view(stored.shape)

    def close(self) -> None:
        self._maps.clear()


def read_header(path: Path) -> dict[str, StoredBytes]:
    """The tensors of a safetensors file by name. It begins with eight bytes, the length of a JSON header, whose offsets
    count from its own end; the tensors' bytes follow one another without gaps.

    Raises:
        CheckpointError: the file is missing, damaged or truncated, or a type in it is unknown.
    """
    try:
        check_content(path, CheckpointError)
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if length > min(size - 8, _LONGEST_HEADER):
                raise ValueError(f"its header of {length} bytes is longer than it may be")
            entries = json.loads(file.read(length))
        entries.pop("__metadata__", None)
        found, end = {}, 8 + length
        for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
            dtype, shape = entry["dtype"], tuple(entry["shape"])
            if dtype not in DTYPES:
                raise CheckpointError(f"{path}: {name} is of type {dtype}, which is not known here")
            if not all(isinstance(side, int) and side >= 0 for side in shape):
                raise ValueError(f"the shape of {name} is {list(shape)}")
            found[name] = StoredBytes(path, dtype, shape, end)
            if [8 + length + border for border in entry["data_offsets"]] != [end, end + found[name].nbytes]:
                raise ValueError(f"the bytes of {name} are not those of its type and shape")
            end += found[name].nbytes
        if end != size:
            raise ValueError(f"it has {size} bytes, and its header names {end}")
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} could not be read as safetensors (truncated or damaged?): {error}") from error
    return {name: found[name] for name in entries}


def _map(path: Path) -> mmap.mmap:
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, MemoryError) as error:
        raise MemoryShortageError(
            f"{path} cannot be mapped: its {size_text(path.stat().st_size)} take more address space than this process "
            f"may have; raise the limit (ulimit -v)."
        ) from error


def index_names(index: Path) -> list[str]:
    """The files that an index (`*.safetensors.index.json`) names, relative to its folder.

    Raises:
        CheckpointError: the index cannot be read, or names a file outside its folder.
    """
    try:
        names = sorted(set(read_json(index, CheckpointError)["weight_map"].values()))
        outside = next((name for name in names if not is_inside(name)), None)
    except (KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} could not be read as an index of safetensors files: {error}") from error
    if outside is not None:
        raise CheckpointError(f"{index} names {outside}, which is outside its folder")
    return names


def is_inside(name: str) -> bool:
    """Whether a file's name stays inside the folder that it is relative to, by the rules of every system."""
    return not any(path.anchor or ".." in path.parts for path in (PurePosixPath(name), PureWindowsPath(name)))


def safetensors_files(path: Path) -> list[Path]:
    """The files behind a path: itself, or those that an index (`*.safetensors.index.json`) names.

    Raises:
        CheckpointError: the index cannot be read, or names a file that is not there.
    """
    if path.suffix != ".json":
        return [path]
    names = index_names(path)
    for name in names:
        if not (path.parent / name).is_file():
            raise CheckpointError(f"{path} names {name}, which is missing beside it; download it anew")
    return [path.parent / name for name in names]


def as_tensor(found: Tensor | QuantisedMatrix, dtype: torch.dtype) -> Tensor:
    """A plain tensor in a type, whatever a source yielded."""
    return found.dequantise(dtype) if isinstance(found, QuantisedMatrix) else found.to(dtype)


def as_stored(found: Tensor | QuantisedMatrix, dtype: torch.dtype = torch.float32) -> Tensor:
    """A plain tensor in the type in which it is stored; a quantised matrix dequantised to `dtype`."""
    return found.dequantise(dtype) if isinstance(found, QuantisedMatrix) else found


def check_finite(where: Path, name: str, found: Tensor | QuantisedMatrix) -> None:
    """Checks the values of a tensor that was read from `where`.

    Raises:
        CheckpointError: some are infinite or no numbers.
    """
    parts = found.tensors.values() if isinstance(found, QuantisedMatrix) else (found,)
    if not all(map(is_finite, parts)):
        raise CheckpointError(
            f"{where}: {name} holds infinite values or values that are not numbers: download or convert it anew"
        )
