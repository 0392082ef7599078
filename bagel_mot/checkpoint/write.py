"""Writing safetensors files of any size with memory for one tensor: the header first, then tensor after tensor.

A file is eight bytes (little-endian length of the header), the header (JSON, padded with spaces to a multiple of eight
bytes) and the tensors' bytes one after the other (https://huggingface.co/docs/safetensors). Names, types and shapes are
known beforehand, so the header can be written before the first tensor is made.

A quantised matrix becomes several tensors, for a weight `X.weight` of (out, in):

    int8   X.weight I8 (out, in), X.SCB F32 (out,)                     as bitsandbytes: a weight is value · SCB / 127
    fp8    X.weight F8_E4M3 (out, in), X.weight_scale F32 (out, 1)     a weight is value · scale
    nf4    X.weight U8 (n/2, 1), X.weight.absmax U8 (n/64,), X.weight.quant_map F32 (16,),
           X.weight.nested_absmax F32, X.weight.nested_quant_map F32 (256,),
           X.weight.quant_state.bitsandbytes__nf4 U8, a JSON object    as bitsandbytes with double quantisation
    int4   X.weight U8 (out/64, in, 32), X.weight_scale_and_middle BF16 (in/group, out, 2)    see `Int4Matrix`
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bagel_mot.checkpoint.source import DTYPES
from bagel_mot.errors import CheckpointError
from bagel_mot.files import check_free_space, write_atomically, write_text
from bagel_mot.model.quant import QuantisedMatrix
from bagel_mot.model.quant.int4 import group_of
from bagel_mot.model.quant.nf4 import LEVELS
from bagel_mot.model.quant.rounding import BLOCK, SCALE_BLOCK

INDEX_FILE = "model.safetensors.index.json"
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
BLOCKS = {"q8_0": (32, 34), "q4_0": (32, 18)}
"""Quantised types of GGUF: the values in a block (neighbours in a row), and its bytes."""
_METADATA = {"format": "pt"}
_NF4_STATE = 256  # bytes of its JSON, spaces at the end included: one number's digits are not known beforehand

Advance = Callable[[int], None]
"""Called with the number of bytes that were written since the last call."""
ByteProgress = Callable[[int, int], None]
"""Called with bytes done, and bytes in all."""


@dataclass(frozen=True)
class TensorEntry:
    """A tensor that is to be written.

    Attributes:
        name: the name in the file; that of a quantised matrix ends in `.weight`.
        shape: the shape that it has in the model.
        stored: the type; for a quantised matrix the name of its format, of BLOCKS in a file of GGUF.
        make: makes it when its turn comes.
    """

    name: str
    shape: tuple[int, ...]
    stored: torch.dtype | str
    make: Callable[[], Tensor | QuantisedMatrix]

    @property
    def nbytes(self) -> int:
        """Its bytes in a file."""
        return sum(part.nbytes for part in parts_of(self))


class StoredPart(NamedTuple):
    """One tensor of a file: a quantised matrix consists of several."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def entry_of(name: str, tensor: Tensor, dtype: torch.dtype | None = None) -> TensorEntry:
    """A tensor that is there already, to be cast when its turn comes."""
    stored = dtype or tensor.dtype
    return TensorEntry(name, tuple(tensor.shape), stored, lambda: tensor.detach().to(device="cpu", dtype=stored))


def parts_of(entry: TensorEntry) -> list[StoredPart]:
    """The parts of an entry in the file."""
    if isinstance(entry.stored, torch.dtype):
        return [StoredPart(entry.name, entry.stored, entry.shape)]
    if entry.stored in BLOCKS:
        values, size = BLOCKS[entry.stored]
        return [StoredPart(entry.name, torch.uint8, (prod(entry.shape) // values * size,))]
    out, inner = entry.shape
    group, blocks = group_of(inner) or 1, out * inner // BLOCK
    endings: dict[str, list[tuple[str, torch.dtype, tuple[int, ...]]]] = {
        "int8": [(".weight", torch.int8, entry.shape), (".SCB", torch.float32, (out,))],
        "fp8": [(".weight", torch.float8_e4m3fn, entry.shape), (".weight_scale", torch.float32, (out, 1))],
        "int4": [
            (".weight", torch.uint8, (out // 64, inner, 32)),
            (".weight_scale_and_middle", torch.bfloat16, (inner // group, out, 2)),
        ],
        "nf4": [
            (".weight", torch.uint8, (out * inner // 2, 1)),
            (".weight.absmax", torch.uint8, (blocks,)),
            (".weight.quant_map", torch.float32, (len(LEVELS),)),
            (".weight.nested_absmax", torch.float32, (-(-blocks // SCALE_BLOCK),)),
            (".weight.nested_quant_map", torch.float32, (256,)),
            (".weight.quant_state.bitsandbytes__nf4", torch.uint8, (_NF4_STATE,)),
        ],
    }
    module = entry.name.removesuffix(".weight")
    return [StoredPart(module + ending, dtype, shape) for ending, dtype, shape in endings[entry.stored]]


def _tensors_of(made: Tensor | QuantisedMatrix) -> list[Tensor]:
    """The parts themselves, in the order of `parts_of`."""
    if isinstance(made, Tensor):
        return [made]
    t = made.tensors
    if made.format == "int8":
        return [t["values"], t["scale"] * 127]
    if made.format == "fp8":
        return [t["values"], t["scale"][:, None]]
    if made.format == "int4":
        return [t["values"], t["scale_and_middle"]]
    state = {
        "quant_type": "nf4",
        "blocksize": BLOCK,
        "dtype": "bfloat16",
        "shape": list(made.shape),
        "nested_blocksize": SCALE_BLOCK,
        "nested_dtype": "float32",
        "nested_offset": t["scale_offset"].item(),
    }
    text = json.dumps(state).encode().ljust(_NF4_STATE)
    return [
        t["values"].view(-1, 1),
        t["scale"],
        torch.tensor(LEVELS),
        t["scale_scale"],
        t["scale_levels"],
        torch.frombuffer(bytearray(text), dtype=torch.uint8),
    ]


def is_written_so(matrix: QuantisedMatrix) -> bool:
    """Whether a matrix consists of the very parts that are written: files bring other types of scales and blocks."""
    if matrix.format == "nf4" and "scale_offset" not in matrix.tensors:
        return False
    wanted = parts_of(TensorEntry(".weight", matrix.shape, matrix.format, lambda: matrix))
    return [(p.dtype, p.shape) for p in wanted] == [(t.dtype, tuple(t.shape)) for t in _tensors_of(matrix)]


def write_safetensors(path: Path, entries: Sequence[TensorEntry], advance: Advance | None = None) -> None:
    """Writes one file, whole or not at all.

    Raises:
        CheckpointError: a tensor is not of the type and shape that were announced.
        OSError: it cannot be written there, or the disk has no room for it.
    """
    header, places = _header([part for entry in entries for part in parts_of(entry)])
    check_free_space(path.parent, len(header) + sum(entry.nbytes for entry in entries))

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            file.write(header)
            for entry in entries:
                for part, tensor in zip(parts_of(entry), _tensors_of(entry.make()), strict=True):
                    if tensor.dtype != part.dtype or tuple(tensor.shape) != part.shape:
                        raise CheckpointError(
                            f"{part.name} is {tensor.dtype} {list(tensor.shape)}; "
                            f"{part.dtype} {list(part.shape)} was to be written"
                        )
                    file.seek(len(header) + places[part.name])
                    file.write(bytes_of(tensor).data)
                    if advance is not None:
                        advance(part.nbytes)

    write_atomically(path, write)


def _header(parts: Iterable[StoredPart]) -> tuple[bytes, dict[str, int]]:
    """The bytes before the data, and where in the data each part begins.

    Wide types come first, so that everything is aligned to its size, as safetensors' own writer has it.
    """
    content: dict[str, Any] = {"__metadata__": _METADATA}
    places: dict[str, int] = {}
    end = 0
    for part in sorted(parts, key=lambda part: -part.dtype.itemsize):
        if part.name in places:
            raise CheckpointError(f"two tensors are to be written under the name {part.name}")
        places[part.name], start, end = end, end, end + part.nbytes
        content[part.name] = {"dtype": _NAMES[part.dtype], "shape": list(part.shape), "data_offsets": [start, end]}
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, places


def bytes_of(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The bytes of a tensor on the CPU, without a copy where it is contiguous: uint8 (bytes,)."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


def write_model(
    path: Path, entries: Sequence[TensorEntry], shard_size: int | None, advance: Advance | None = None
) -> None:
    """Writes one file, or where `shard_size` (bytes) is given, beside where it would stand
    `model-00001-of-00007.safetensors`, … of at most that size each, and last the index that names them, as the hub's
    libraries have it. A tensor that is larger alone has a file of its own.

    Errors as `write_safetensors`.
    """
    if shard_size is None:
        write_safetensors(path, entries, advance)
        return
    shards: list[list[TensorEntry]] = [[]]
    filled = 0
    for entry in entries:
        if shards[-1] and filled + entry.nbytes > shard_size:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += entry.nbytes
    total = sum(entry.nbytes for entry in entries)
    check_free_space(path.parent, total)
    files: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(path.parent / file, shard, advance)
        files |= {part.name: file for entry in shard for part in parts_of(entry)}
    index = {"metadata": {"total_size": total}, "weight_map": files}
    write_text(path.parent / INDEX_FILE, json.dumps(index, indent=2) + "\n")


def counting(progress: ByteProgress | None, total: int) -> Advance:
    """Adds up what is written, for `progress`."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    return advance
