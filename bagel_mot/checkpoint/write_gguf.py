"""Writing GGUF through the package gguf, tensor by tensor, under the official names.

The architecture in the file is `bagel`, which llama.cpp does not know: what runs it is this package, and others that
read these names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bagel_mot.checkpoint.write import Advance, bytes_of
from bagel_mot.errors import CheckpointError
from bagel_mot.files import check_free_space, write_atomically

if TYPE_CHECKING:
    from gguf import GGUFWriter

ARCHITECTURE = "bagel"
TYPES = {"bf16": (1, 2), "f16": (1, 2), "q8_0": (32, 34), "q4_0": (32, 18)}
"""Types that are written: values in a block (of neighbours in a row), and its bytes."""
_PIECE = 1 << 22  # values that are rounded at a time
_HEADER = 1 << 20  # bytes, more than names and shapes take


@dataclass(frozen=True)
class GgufEntry:
    """A tensor that is to be written.

    Attributes:
        name, shape: its name and shape.
        type: its type, one of TYPES.
        make: makes it when its turn comes.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Its bytes in a file."""
        values, size = TYPES[self.type]
        return prod(self.shape) // values * size


def fits(type: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of this shape can be stored so."""
    return shape[-1] % TYPES[type][0] == 0


def check_package() -> None:
    """Checks that the package gguf is installed.

    Raises:
        CheckpointError: it is missing.
    """
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise CheckpointError("writing GGUF takes the package gguf: pip install 'bagel-mot[gguf]'") from error


def write_gguf(path: Path, entries: Sequence[GgufEntry], advance: Advance | None = None) -> None:
    """Writes one file, whole or not at all.

    Raises:
        CheckpointError: the package gguf is missing.
        OSError: it cannot be written there, or the disk has no room for it.
    """
    check_package()
    check_free_space(path.parent, _HEADER + sum(entry.nbytes for entry in entries))
    write_atomically(path, lambda temporary: _write(temporary, entries, advance))


def _write(path: Path, entries: Sequence[GgufEntry], advance: Advance | None) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quant_shape_to_byte_shape

    writer: GGUFWriter = GGUFWriter(path, ARCHITECTURE)
    try:
        for entry in entries:
            kind = GGMLQuantizationType[entry.type.upper()]
            # Rows are given in bytes.
            shape = quant_shape_to_byte_shape(entry.shape, kind)
            writer.add_tensor_info(entry.name, shape, np.dtype(np.uint8), entry.nbytes, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for entry in entries:
            writer.write_tensor_data(_stored(entry.make(), entry.type))
            if advance is not None:
                advance(entry.nbytes)
    finally:
        writer.close()


def _stored(tensor: Tensor, type: str) -> np.ndarray[Any, Any]:
    """The bytes of a tensor, uint8 (bytes,)."""
    if type == "bf16":
        return bytes_of(tensor.to(torch.bfloat16))
    if type == "f16":
        return bytes_of(tensor.to(torch.float16))
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    values, size = TYPES[type]
    kind = GGMLQuantizationType[type.upper()]
    blocks = tensor.reshape(-1, values)
    result = np.empty((blocks.shape[0], size), dtype=np.uint8)
    step = _PIECE // values
    for start in range(0, blocks.shape[0], step):
        result[start : start + step] = quantize(blocks[start : start + step].float().numpy(), kind)
    return result.reshape(-1)
