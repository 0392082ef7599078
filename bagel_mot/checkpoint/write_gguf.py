"""Writing GGUF through the package gguf, tensor by tensor, under the official names.

The architecture in the file is `bagel`, which llama.cpp does not know: what runs it is this package, and others that
read these names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bagel_mot.checkpoint.write import BLOCKS, Advance, TensorEntry, bytes_of
from bagel_mot.errors import CheckpointError
from bagel_mot.files import check_free_space, write_atomically
from bagel_mot.installation import install_command
from bagel_mot.model.finite import is_finite

if TYPE_CHECKING:
    from gguf import GGUFWriter

ARCHITECTURE = "bagel"
TYPES: dict[str, torch.dtype | str] = {"bf16": torch.bfloat16, "f16": torch.float16, "q8_0": "q8_0", "q4_0": "q4_0"}
"""The types that are written, by name, as `TensorEntry.stored` has them."""
_PIECE = 1 << 22  # values that are rounded at a time
_HEADER = 1 << 20  # bytes, more than names and shapes take


def fits(type: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of this shape can be stored so."""
    return type not in BLOCKS or shape[-1] % BLOCKS[type][0] == 0


def check_package() -> None:
    """Checks that the package gguf is installed.

    Raises:
        CheckpointError: it is missing.
    """
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise CheckpointError(f"writing GGUF takes the package gguf: run {install_command('gguf')}") from error


def write_gguf(path: Path, entries: Sequence[TensorEntry], advance: Advance | None = None) -> None:
    """Writes one file, whole or not at all.

    Raises:
        CheckpointError: the package gguf is missing, or values are beyond the range of their type.
        OSError: it cannot be written there, or the disk has no room for it.
    """
    check_package()
    check_free_space(path.parent, _HEADER + sum(entry.nbytes for entry in entries))
    write_atomically(path, lambda temporary: _write(temporary, entries, advance))


def _write(path: Path, entries: Sequence[TensorEntry], advance: Advance | None) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quant_shape_to_byte_shape

    writer: GGUFWriter = GGUFWriter(path, ARCHITECTURE)
    try:
        for entry in entries:
            kind = GGMLQuantizationType[next(name for name, type in TYPES.items() if type == entry.stored).upper()]
            # Rows are given in bytes.
            shape = quant_shape_to_byte_shape(entry.shape, kind)
            writer.add_tensor_info(entry.name, shape, np.dtype(np.uint8), entry.nbytes, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for entry in entries:
            writer.write_tensor_data(_stored(entry))
            if advance is not None:
                advance(entry.nbytes)
    finally:
        writer.close()


def _stored(entry: TensorEntry) -> np.ndarray[Any, Any]:
    """The bytes of a tensor, uint8 (bytes,).

    Raises:
        CheckpointError: it has values that are beyond the range of the type.
    """
    tensor, type = entry.make(), entry.stored
    assert isinstance(tensor, Tensor)
    if isinstance(type, torch.dtype):
        cast = tensor.to(type)
        if not is_finite(cast):
            raise _too_large(entry)
        return bytes_of(cast)
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    values, size = BLOCKS[type]
    kind = GGMLQuantizationType[type.upper()]
    blocks = tensor.reshape(-1, values)
    result = np.empty((blocks.shape[0], size), dtype=np.uint8)
    step = _PIECE // values
    for start in range(0, blocks.shape[0], step):
        with np.errstate(over="ignore", invalid="ignore"):
            result[start : start + step] = quantize(blocks[start : start + step].float().numpy(), kind)
    # Each block begins with its scale in float16.
    if not np.isfinite(np.ascontiguousarray(result[:, :2]).view(np.float16)).all():
        raise _too_large(entry)
    return result.reshape(-1)


def _too_large(entry: TensorEntry) -> CheckpointError:
    return CheckpointError(
        f"{entry.name} has values beyond the range of float16, which {entry.stored} is made of: take gguf-bf16"
    )
