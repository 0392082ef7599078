"""GGUF, the format of llama.cpp, through the package gguf: names official or llama.cpp's, for both experts.

Everything is read as plain tensors: F32, F16 and BF16 as they are, all other types dequantised to bfloat16, some rows
at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bagel_mot.checkpoint.names import official_of_llama
from bagel_mot.checkpoint.source import DTYPES, PLAIN_TYPES, TensorSource
from bagel_mot.errors import CheckpointError
from bagel_mot.files import check_content
from bagel_mot.installation import install_command

_PIECE = 1 << 20  # values dequantised at a time, over float32


@dataclass(frozen=True)
class _GgufTensor:
    """A tensor's place in the file.

    Attributes:
        type: a `gguf.GGMLQuantizationType`.
        shape: the shape of its values.
        offset, size: bytes.
    """

    type: Any
    shape: tuple[int, ...]
    offset: int
    size: int


class GgufFile(TensorSource):
    """A `TensorSource` over one file. It is mapped anew for each tensor, so that no pages of it stay."""

    def __init__(self, path: Path) -> None:
        """Reads the header of a file.

        Raises:
            CheckpointError: the package is missing, the file cannot be read or is a part of several, or a tensor in it
                is of an unknown type.
        """
        try:
            import gguf
        except ImportError as error:
            raise CheckpointError(
                f"{path} is GGUF, which takes the package gguf: run {install_command('gguf')}"
            ) from error
        try:
            check_content(path, CheckpointError)
            reader = gguf.GGUFReader(path)
        except CheckpointError:
            raise
        except Exception as error:  # it reads whatever is where a number should be, and raises many types
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(
                f"{path} could not be read as GGUF (missing, truncated or damaged?): {reason}"
            ) from error
        parts = reader.get_field("split.count")
        if parts is not None and int(parts.contents()) > 1:
            raise CheckpointError(
                f"{path} is one of {parts.contents()} parts: put them together with `llama-gguf-split --merge` and "
                "give the whole file"
            )
        self.where = path
        self._stored: dict[str, _GgufTensor] = {}
        for tensor in reader.tensors:
            shape = tuple(int(side) for side in reversed(tensor.shape.tolist()))
            name = official_of_llama(tensor.name)
            if name in self._stored:
                raise CheckpointError(f"{path}: {name} is in it twice, under the names of llama.cpp and official")
            if not _can_be_read(tensor.tensor_type):
                raise CheckpointError(
                    f"{path}: {tensor.name} ({tensor.tensor_type.name} {list(shape)}) is of a type that is not read; "
                    "F32, F16, BF16 and the quantised types that the package gguf dequantises are"
                )
            self._stored[name] = _GgufTensor(tensor.tensor_type, shape, int(tensor.data_offset), int(tensor.n_bytes))

    @property
    def kind(self) -> str:
        amounts: Counter[str] = Counter()
        for stored in self._stored.values():
            amounts[stored.type.name] += stored.size
        return f"GGUF {amounts.most_common(1)[0][0]}" if amounts else "GGUF"

    def names(self) -> Collection[str]:
        return self._stored.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored[name].shape

    def stored_bytes(self, name: str) -> int:
        return self._stored[name].size

    def read(self, name: str, buffer: Tensor | None = None) -> Tensor:
        import gguf

        stored = self._stored[name]
        try:
            mapped = np.memmap(self.where, np.uint8, "r", stored.offset, (stored.size,))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.where} could not be read anew ({error}): is it still there?") from error
        if stored.type.name in PLAIN_TYPES:
            return torch.from_numpy(np.array(mapped)).view(DTYPES[stored.type.name]).view(stored.shape)
        result = torch.empty(stored.shape, dtype=torch.bfloat16)
        # As many blocks of values as there are, whatever rows they are of: none runs over the end of one.
        values, size = gguf.GGML_QUANT_SIZES[stored.type]
        blocks = mapped.reshape(-1, size)
        step = max(1, _PIECE // values)
        flat = result.view(-1)
        for start in range(0, len(blocks), step):
            # As one row: the package works on sixteen rows at a time, which are few blocks.
            piece = gguf.dequantize(np.array(blocks[start : start + step]).reshape(1, -1), stored.type)
            flat[start * values : start * values + piece.size] = torch.from_numpy(piece.ravel())
        return result


def _can_be_read(kind: Any) -> bool:
    """Whether values of a type are plain, or dequantised by the package: it is asked to, with one block."""
    import gguf

    if kind.name in PLAIN_TYPES:
        return True
    try:
        gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except (NotImplementedError, KeyError):
        return False
    return True
