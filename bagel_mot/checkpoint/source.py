"""Where tensors come from: a file, or several with an index, read one tensor at a time under the official names.

A source may hand out a matrix in few bits as it is stored (`QuantisedMatrix`); everything else is a plain tensor. Other
rooms never ask which file layout it was.
"""

from __future__ import annotations

import json
import math
import mmap
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bagel_mot.allocator import on_own_pages
from bagel_mot.errors import CheckpointError, MemoryShortageError
from bagel_mot.files import size_text
from bagel_mot.model.quant import QuantisedMatrix


class TensorSource(Protocol):
    """Tensors by their official names.

    Attributes:
        where: file or folder, for messages.
        kind: its layout in words.
    """

    where: Path
    kind: str

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

    def format(self, name: str) -> str | None:
        """Of the matrix in few bits as which a tensor is read; None for a plain one. Nothing is read for it."""
        ...

    def mapped(self, name: str) -> Tensor | None:
        """A view of the file, not to be written to, where the tensor stands in one as it is; None elsewhere."""
        ...

    def close(self) -> None:
        """Gives back what is mapped; a later `read` opens the file again."""
        ...


class SafetensorsFiles:
    """The tensors of one or more safetensors files, as they are stored: read into memory of their own, or as
    views of the mapped files.
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
        self._offsets: dict[str, int] = {}
        self._maps: dict[Path, mmap.mmap] = {}
        for path in files:
            with _opened(path) as file:
                for name in file.keys():  # noqa: SIM118 - it is no dictionary
                    if name in self._file_of:
                        raise CheckpointError(f"{name} stands in {self._file_of[name]} and in {path}")
                    entry = file.get_slice(name)
                    self._file_of[name] = path
                    self._shapes[name], self._dtypes[name] = tuple(entry.get_shape()), entry.get_dtype()
                    if entry.get_dtype() not in DTYPES:
                        raise CheckpointError(f"{path}: {name} is of type {entry.get_dtype()}, which is not known here")
            self._offsets |= _offsets(path)
        amounts: Counter[str] = Counter()
        for name, dtype in self._dtypes.items():
            amounts[dtype] += self.stored_bytes(name)
        most = amounts.most_common(1)[0][0] if amounts else "nothing"
        self.kind = f"safetensors, {_WORDS.get(most, most)}"

    def names(self) -> Collection[str]:
        return self._file_of.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def dtype(self, name: str) -> str:
        """As safetensors names it: BF16, F32, F8_E4M3, I8, …"""
        return self._dtypes[name]

    def torch_dtype(self, name: str) -> torch.dtype:
        return DTYPES[self._dtypes[name]]

    def stored_bytes(self, name: str) -> int:
        count = 1
        for side in self._shapes[name]:
            count *= side
        return count * self.torch_dtype(name).itemsize

    def file(self, name: str) -> Path:
        """The one that holds a tensor."""
        return self._file_of[name]

    def read(self, name: str) -> Tensor:
        return self._read(name, 0, self._shapes[name])

    def read_part(self, name: str, start: int, stop: int) -> Tensor:
        """Entries start..stop along the first axis, as many of them as there are."""
        count, *rest = self._shapes[name]
        stop = min(stop, count)
        before = self.stored_bytes(name) // max(1, count) * start
        return self._read(name, before, (stop - start, *rest))

    def _read(self, name: str, skipped: int, shape: tuple[int, ...]) -> Tensor:
        """Into memory of its own: the pages of a mapped file would stay with the process."""
        tensor = on_own_pages(shape, self.torch_dtype(name))
        path = self._file_of[name]
        left = memoryview(tensor.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        try:
            with open(path, "rb", buffering=0) as file:
                file.seek(self._offsets[name] + skipped)
                while left:
                    count = file.readinto(left)
                    if not count:
                        raise CheckpointError(f"{path} ends within {name}: it was truncated; download it anew")
                    left = left[count:]
        except OSError as error:
            raise CheckpointError(f"{path} could not be read at {name}: {error}") from error
        return tensor

    def format(self, name: str) -> None:
        """All are plain."""

    def mapped(self, name: str) -> Tensor:
        """A view of the file, not to be written to: nothing is read before it is used, and what was read the system may
        take back.
        """
        path, shape, dtype = self._file_of[name], self._shapes[name], self.torch_dtype(name)
        if path not in self._maps:
            with open(path, "rb") as file:
                self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
            return torch.frombuffer(
                self._maps[path], dtype=dtype, count=math.prod(shape), offset=self._offsets[name]
            ).view(shape)

    def metadata(self) -> Mapping[str, str]:
        """What is written at the head of the first file."""
        for path in self._file_of.values():
            with _opened(path) as file:
                return dict(file.metadata() or {})
        return {}

    def close(self) -> None:
        """Lets go of mapped files; views of them stay."""
        self._maps.clear()


_WORDS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
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


def _offsets(path: Path) -> dict[str, int]:
    """Where the values of each tensor begin: the file starts with eight bytes, the length of a JSON header, which
    counts from its own end.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def _opening(path: Path) -> safe_open:
    try:
        # With framework="pt" all of the file would be mapped so that it could be written to, which systems refuse for a
        # file larger than their memory.
        return safe_open(path, framework="np")
    except MemoryError as error:
        raise MemoryShortageError(
            f"{path} cannot be opened: mapping its {size_text(path.stat().st_size)} takes more address space than this "
            "process may have; raise the limit (ulimit -v)."
        ) from error
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
        named = sorted({Path(name) for name in json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} could not be read as an index of safetensors files: {error}") from error
    files = [path.parent / name for name in named]
    for file in files:
        name = file.relative_to(path.parent) if file.is_relative_to(path.parent) else file
        if ".." in name.parts or name.is_absolute():
            raise CheckpointError(f"{path} names {name}, which is outside its folder")
        if not file.is_file():
            raise CheckpointError(f"{path} names {name}, which is missing beside it; download it anew")
    return files


def as_tensor(found: Tensor | QuantisedMatrix, dtype: torch.dtype) -> Tensor:
    """A plain tensor, whatever a source gave."""
    return found.dequantise(dtype) if isinstance(found, QuantisedMatrix) else found.to(dtype)


def open_source(path: Path) -> TensorSource:
    """The tensors behind a path, whatever layout they are in: the layout is found out from the names and types within.

    Args:
        path: a file of safetensors, an index of several (`*.safetensors.index.json`), or a file of GGUF.

    Raises:
        CheckpointError: it is none of these, is damaged, or holds a tensor of an unknown layout; a package that reads
            the layout is missing.
    """
    # Layouts stand on this file, and are imported where one is met.
    if path.suffix == ".gguf":
        from bagel_mot.checkpoint.formats.gguf_file import GgufFile

        return GgufFile(path)
    if not path.name.endswith((".safetensors", ".safetensors.index.json")):
        raise CheckpointError(
            f"{path} is of no kind that is read here: give a .safetensors file, an index "
            "(*.safetensors.index.json) or a .gguf file"
        )
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    from bagel_mot.checkpoint.formats import dfloat11
    from bagel_mot.checkpoint.formats import quantised_layouts as grouped

    files = SafetensorsFiles(path, [*safetensors_files(path), *dfloat11.further_files(path)])
    return dfloat11.open_files(files) or grouped.open_files(files)
