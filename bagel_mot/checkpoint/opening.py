"""From a checkpoint folder, or a file in one, to an opened source of its tensors, whatever layout they are in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from bagel_mot.checkpoint.formats import bitsandbytes_files, dfloat11, float8, int4
from bagel_mot.checkpoint.formats.gguf_file import GgufFile
from bagel_mot.checkpoint.formats.quantised_layouts import GroupedTensors, unknown
from bagel_mot.checkpoint.formats.training_state import METADATA_FILE, TrainingState, is_training_state
from bagel_mot.checkpoint.names import is_decoder_matrix, official_name
from bagel_mot.checkpoint.side_files import ADAPTER_FILE, AUTOENCODER_FILE, MODEL_FILE, MODEL_FILES
from bagel_mot.checkpoint.source import PLAIN_TYPES, SafetensorsFiles, TensorSource, safetensors_files
from bagel_mot.errors import CheckpointError
from bagel_mot.files import user_path

EMBEDDING = "decoder.embed_tokens.weight"
LARGE_EMBEDDING = 1 << 28  # bytes


def open_checkpoint(where: Path | str) -> TensorSource:
    """The model's tensors in a checkpoint.

    Args:
        where: a folder, or a file with weights in one.

    Raises:
        CheckpointError: as `model_file` and `open_source`.
    """
    return open_source(model_file(user_path(where, CheckpointError)))


def model_file(where: Path) -> Path:
    """The file that holds the model, or the index of the files that do: of a folder, or `where` itself if it is a file.

    Raises:
        CheckpointError: there is none, or it cannot be told which of several it is.
    """
    if where.is_file():
        return where
    if is_training_state(where):
        return where / METADATA_FILE
    if (where / ADAPTER_FILE).is_file() and not any((where / name).exists() for name in MODEL_FILES):
        raise CheckpointError(
            f"{where} is an adapter, which goes with a checkpoint: give that one, and this as adapter "
            f"(--checkpoint NAME --adapter {where})"
        )
    for name in MODEL_FILES:
        if (where / name).exists():
            return where / name
    if len(indices := list(where.glob("*.safetensors.index.json"))) == 1:
        return indices[0]
    others = [
        p for p in sorted(where.glob("*")) if p.suffix in (".safetensors", ".gguf") and p.name != AUTOENCODER_FILE
    ]
    if len(others) == 1:
        return others[0]
    found = f"; it has {', '.join(p.name for p in others)}: give one of them" if others else ""
    raise CheckpointError(f"{where} has no {MODEL_FILE}{found}; a checkpoint folder in the official layout is expected")


def open_source(path: Path) -> TensorSource:
    """The tensors behind a path: their layout is found out from the names and types within.

    Args:
        path: a file of safetensors, an index of several (`*.safetensors.index.json`), or a file of GGUF.

    Raises:
        CheckpointError: it is neither of these, is damaged, or holds a tensor of an unknown layout (the first is
            named); a package that reads the layout is missing.
    """
    if path.suffix == ".gguf":
        return GgufFile(path)
    if path.name == METADATA_FILE:
        official = path.parent.parent / MODEL_FILE
        return TrainingState(path.parent, open_source(official) if official.exists() else None)
    if not path.name.endswith((".safetensors", ".safetensors.index.json")):
        raise CheckpointError(
            f"{path} is of no kind that is read here: give a .safetensors file, an index "
            "(*.safetensors.index.json) or a .gguf file"
        )
    if not path.exists():
        raise CheckpointError(f"{path} is missing")
    files = SafetensorsFiles(path, safetensors_files(path))
    dfloat11.add_further_files(files)
    if stored := dfloat11.recognise(files):
        return GroupedTensors(files, stored, ())
    markers = [name for name in files.names() if float8.is_marker(files, name)]
    for name in files.names():
        for recognise in (float8.recognise, bitsandbytes_files.recognise, int4.recognise):
            if name not in markers and (found := recognise(files, name)) is not None:
                stored[name] = found
    source = GroupedTensors(files, stored, markers)
    for name in source.plain_names():
        if files.dtype(name) not in PLAIN_TYPES:
            raise unknown(files, name)
    return source if stored else files


# --------------------------------------------------------------------------------------------------- stored weights


@dataclass(frozen=True)
class StoredWeights:
    """The types and sizes in which a checkpoint stores its weights.

    Attributes:
        nbytes: bytes of all weights.
        layers: the type of the decoder's layers where all have the same and can be used from their files as they are;
            None elsewhere.
        embedding: the type of a large token embedding that can be used from its file; None elsewhere.
        format: the quantised format of the decoder's big matrices: "int8", "fp8", "int4" or "nf4". None if they, or
            some of them, are plain numbers, or if they are of several kinds: rounding the rest alike would lose what
            the file has. Layouts that are dequantised while they are read (GGUF, DFloat11) count as plain numbers.
    """

    nbytes: int = 0
    layers: torch.dtype | None = None
    embedding: torch.dtype | None = None
    format: str | None = None


UNKNOWN = StoredWeights()
"""Weights that cannot be used as they are stored."""


def stored_weights(source: TensorSource) -> StoredWeights:
    """The types and sizes in which an opened checkpoint stores its weights."""
    beginning = official_name("decoder.layers.0.und.q.weight").partition("0.")[0]
    formats = {source.format(name) for name in source.names() if is_decoder_matrix(name)}
    types: set[torch.dtype] = set()
    if isinstance(source, SafetensorsFiles):
        types = {source.torch_dtype(name) for name in source.names() if name.startswith(beginning)}
    return StoredWeights(
        nbytes=sum(source.stored_bytes(name) for name in source.names()),
        layers=types.pop() if len(types) == 1 else None,
        embedding=embedding_dtype(source),
        format=formats.pop() if len(formats) == 1 else None,
    )


def embedding_dtype(source: TensorSource) -> torch.dtype | None:
    """The type of a token embedding that can be used from its file; None if there is none, or it is small."""
    name = official_name(EMBEDDING)
    if name not in source.names() or source.stored_bytes(name) < LARGE_EMBEDDING:
        return None
    view = source.mapped(name)
    return None if view is None else view.dtype
