"""One checkpoint folder from another: the weights in another precision or file format, tensor by tensor.

The decoder's big matrices (q, k, v, o, gate, up, down of both experts: nine tenths of all weights) are stored as asked;
everything else is in bfloat16. A matrix whose sides the format does not take stays in bfloat16, too.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bagel_mot.checkpoint import write_gguf as gguf_writing
from bagel_mot.checkpoint.adapters import read_adapter
from bagel_mot.checkpoint.load_weights import check_tensors
from bagel_mot.checkpoint.names import official_name
from bagel_mot.checkpoint.official import folder_of, read_config
from bagel_mot.checkpoint.opening import open_checkpoint
from bagel_mot.checkpoint.precision import PARTS
from bagel_mot.checkpoint.shapes import model_shapes
from bagel_mot.checkpoint.side_files import COMPANIONS, MODEL_FILE
from bagel_mot.checkpoint.source import TensorSource, as_stored, as_tensor, check_finite
from bagel_mot.checkpoint.write import ByteProgress, TensorEntry, counting, is_written_so, write_model
from bagel_mot.checkpoint.write_gguf import write_gguf
from bagel_mot.errors import CheckpointError, SettingError
from bagel_mot.files import check_free_space, check_new, user_path, whole_folder
from bagel_mot.model.adapters import Adapter, merge
from bagel_mot.model.quant import FORMATS, QuantisedMatrix
from bagel_mot.threads import choose_threads

GGUF_FILE = "ema.gguf"
_GGUF = "gguf-"
_PLAIN = "bf16"
STORED = (_PLAIN, *FORMATS, *(_GGUF + name for name in gguf_writing.TYPES))
"""The formats in which weights can be stored."""


def convert(
    source: Path,
    folder: Path,
    stored: str,
    *,
    adapters: Sequence[tuple[Path, float]] = (),
    shard_size: int | None = None,
    progress: ByteProgress | None = None,
) -> None:
    """Writes a checkpoint folder with the weights of another.

    Args:
        source: a checkpoint folder, or a file with weights in one.
        folder: new or empty.
        stored: one of STORED.
        adapters: folders of adapters with their strengths, which are merged into the weights.
        shard_size: bytes in a file; by default all weights are in one.
        progress: told bytes written and bytes in all.

    Raises:
        SettingError: `stored` is unknown, or GGUF is to be sharded.
        CheckpointError: the source or an adapter cannot be read, the adapter is of another model, the source has
            values that are not finite or beyond the range of the format, or is in `folder` itself; the package gguf is
            missing.
        OSError: the folder is not empty or cannot be written, or the disk has no room.
    """
    source, folder = user_path(source, CheckpointError), user_path(folder)
    check_request(source, folder, stored, shard_size)
    tensors = open_checkpoint(source)
    shapes = _shapes(tensors)
    companions = [path for path in (tensors.where.parent / name for name in COMPANIONS) if path.is_file()]
    config = read_config(tensors)
    adapted = _AdaptedTensors(tensors, [(read_adapter(place, config), strength) for place, strength in adapters])
    entries = [_entry(adapted, ours, shape, stored) for ours, shape in shapes.items()]
    total = sum(entry.nbytes for entry in entries) + sum(path.stat().st_size for path in companions)
    check_free_space(folder, total)
    advance = counting(progress, total)
    try:
        with choose_threads().at_work(), whole_folder(folder) as staging:
            for path in companions:
                shutil.copyfile(path, staging / path.name)
                advance(path.stat().st_size)
            if stored.startswith(_GGUF):
                write_gguf(staging / GGUF_FILE, entries, advance)
            else:
                write_model(staging / MODEL_FILE, entries, shard_size, advance)
    finally:
        tensors.close()


def check_request(source: Path | None, folder: Path, stored: str, shard_size: int | None) -> None:
    """Refuses a conversion that cannot be made, before anything is read or even there. Errors as `convert`."""
    if stored not in STORED:
        raise SettingError(f"the format is {stored!r}: it must be {', '.join(STORED)}.")
    if stored.startswith(_GGUF):
        gguf_writing.check_package()
        if shard_size is not None:
            raise SettingError(f"a shard size is for safetensors files: {stored} is one file.")
    if source is not None and folder.exists() and folder.resolve() == folder_of(source).resolve():
        raise CheckpointError(f"{folder} is the checkpoint that is to be converted: give a new folder.")
    check_new(folder)


def _shapes(source: TensorSource) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors by our names, in the model's order. Tables that the source lacks are left out, as they
    may be.
    """
    shapes = {name: tuple(shape) for name, shape in model_shapes(read_config(source)).items()}
    check_tensors(source, {official_name(name): shape for name, shape in shapes.items()})
    present: Collection[str] = set(source.names())
    return {name: shape for name, shape in shapes.items() if official_name(name) in present}


class _AdaptedTensors:
    """The tensors of a source with adapters merged into them, each checked to be finite."""

    def __init__(self, source: TensorSource, adapters: Sequence[tuple[Adapter, float]]) -> None:
        self.source, self.adapters = source, adapters

    def plain(self, ours: str, dtype: torch.dtype) -> Tensor:
        """A tensor by our name, in a type."""
        found = self._found(ours)
        return self._merged(ours, found).to(dtype) if self._changes(ours) else as_tensor(found, dtype)

    def rounded(self, ours: str, kind: type[QuantisedMatrix]) -> QuantisedMatrix:
        """A quantised matrix by our name; one that the source has so, and that stays, is not rounded again."""
        found = self._found(ours)
        if self._changes(ours):
            return kind.quantise(self._merged(ours, found))
        if isinstance(found, kind) and is_written_so(found):
            return found
        return kind.quantise(as_stored(found))

    def _found(self, ours: str) -> Tensor | QuantisedMatrix:
        name = official_name(ours)
        found = self.source.read(name)
        check_finite(self.source.where, name, found)
        return found

    def _changes(self, ours: str) -> bool:
        place = ours.removesuffix(".weight")
        return any(strength and place in adapter.matrices for adapter, strength in self.adapters)

    def _merged(self, ours: str, found: Tensor | QuantisedMatrix) -> Tensor:
        return merge(as_stored(found), ours.removesuffix(".weight"), self.adapters)


def _entry(adapted: _AdaptedTensors, ours: str, shape: tuple[int, ...], stored: str) -> TensorEntry:
    """The entry of a tensor; a matrix that the format does not take is in bfloat16."""
    name = official_name(ours)
    if PARTS["decoder"].fullmatch(ours):
        type = stored.removeprefix(_GGUF)
        if stored.startswith(_GGUF) and gguf_writing.fits(type, shape):
            return TensorEntry(name, shape, gguf_writing.TYPES[type], partial(adapted.plain, ours, torch.float32))
        if stored in FORMATS and FORMATS[stored].fits((shape[0], shape[1])):
            return TensorEntry(name, shape, stored, partial(adapted.rounded, ours, FORMATS[stored]))
    return TensorEntry(name, shape, torch.bfloat16, partial(adapted.plain, ours, torch.bfloat16))
