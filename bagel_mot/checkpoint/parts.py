"""The values of a model, read part by part: each process of several reads what it keeps, and nobody holds the whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bagel_mot.checkpoint.load_weights import check_tensors, checked_table
from bagel_mot.checkpoint.names import POSITION_TABLES, official_name
from bagel_mot.checkpoint.shapes import model_shapes
from bagel_mot.checkpoint.source import TensorSource, as_tensor
from bagel_mot.config import BagelConfig
from bagel_mot.model.bagel import BagelModel, sincos_table
from bagel_mot.model.without_values import without_values


class ModelParts:
    """The tensors of a `BagelModel` in a checkpoint, by our names."""

    def __init__(self, source: TensorSource, config: BagelConfig) -> None:
        """Compares the tensors of a source with those of a model; none is read.

        Raises:
            CheckpointError: a tensor is missing, extra or misshapen.
        """
        with without_values():
            state = BagelModel(config).state_dict()
        self.source, self._shapes = source, {name: tuple(tensor.shape) for name, tensor in state.items()}
        wanted = {official_name(name): shape for name, shape in self._shapes.items()}
        check_tensors(source, wanted, {official_name(name) for name in model_shapes(config)})

    def read(self, name: str, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
        """A part of a tensor, float32, in memory of its own.

        Of plain safetensors files no more than the part is read, elsewhere the one tensor for as long as this takes.

        Args:
            name: our name of the tensor.
            offsets: the place of the part's first entry along each axis.
            sizes: its entries along each axis.

        Raises:
            CheckpointError: a file is damaged, or a position table is not that of its formula.
        """
        stored = self._whole(name)
        part = stored[tuple(slice(offset, offset + size) for offset, size in zip(offsets, sizes, strict=True))]
        return part.to(torch.float32, copy=True, memory_format=torch.contiguous_format)

    def blocks(self, name: str, rows: int) -> Iterator[Tensor]:
        """Yields a tensor, by our name, in blocks of at most `rows` rows, float32, each in memory of its own.

        Raises:
            CheckpointError: as `read` does.
        """
        for block in self._whole(name).split(rows):
            yield block.to(torch.float32, copy=True, memory_format=torch.contiguous_format)

    def _whole(self, name: str) -> Tensor:
        """A whole tensor, where it can be as a view of its file."""
        theirs = official_name(name)
        if name in POSITION_TABLES:
            if theirs not in self.source.names():
                entries, width = self._shapes[name]
                return sincos_table(round(entries**0.5), width)
            return checked_table(self.source, theirs, self.source.read(theirs))
        mapped = self.source.mapped(theirs)
        return as_tensor(self.source.read(theirs), torch.float32) if mapped is None else mapped

    def close(self) -> None:
        """Gives the mapped files back, whose pages count as this process's memory until then."""
        self.source.close()
