"""Checkpoint folders in the official layout, read and written.

    config.json llm_config.json vit_config.json     configuration
    ema.safetensors                                 the model (or model.safetensors)
    ae.safetensors                                  the autoencoder
    tokenizer.json vocab.json merges.txt tokenizer_config.json

The model may also be in several files with an index, in a file of another name, or in another layout
(`bagel_mot.checkpoint.formats`), beside the other files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor

from bagel_mot.checkpoint.formats.training_state import is_training_state
from bagel_mot.checkpoint.load_weights import DeviceOf, load_tensors, on_device
from bagel_mot.checkpoint.names import POSITION_TABLES, official_name
from bagel_mot.checkpoint.opening import EMBEDDING, embedding_dtype, open_checkpoint
from bagel_mot.checkpoint.parts import ModelParts
from bagel_mot.checkpoint.precision import Precision
from bagel_mot.checkpoint.shapes import model_shapes
from bagel_mot.checkpoint.side_files import AUTOENCODER_FILE, MODEL_FILE
from bagel_mot.checkpoint.source import SafetensorsFiles, TensorSource
from bagel_mot.checkpoint.write import Advance, ByteProgress, counting, entry_of, write_safetensors
from bagel_mot.config import BagelConfig, dump_config, load_config, with_table_sides
from bagel_mot.errors import CheckpointError, SettingError
from bagel_mot.files import write_text
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.prepacked_conv import prepack_convolutions
from bagel_mot.model.vae import Autoencoder
from bagel_mot.model.without_values import without_values
from bagel_mot.tokenizer import SpecialTokens, Tokenizer

TASKS = ("generate", "edit", "understand")
_HASHED = (".safetensors", ".gguf", ".json", ".txt")


@dataclass
class Checkpoint:
    """Everything a checkpoint folder holds, loaded.

    Attributes:
        config, model, tokenizer: its configuration, model and tokenizer.
        autoencoder: without values (on the meta device) where images are not drawn.
        tasks: the tasks it was loaded for, of TASKS.
        precision: the precision of its parts.
    """

    config: BagelConfig
    model: BagelModel
    autoencoder: Autoencoder
    tokenizer: Tokenizer
    tasks: tuple[str, ...] = TASKS
    precision: Precision = field(default_factory=Precision)

    @property
    def special(self) -> SpecialTokens:
        return self.tokenizer.special


def folder_of(where: Path) -> Path:
    """The folder with configuration, tokenizer and autoencoder: `where`, or the one that the file `where`, or a run's
    training state, is in.
    """
    return where.parent if where.is_file() or is_training_state(where) else where


def fingerprint(folder: Path) -> str:
    """The first 16 digits of the SHA-256 of a checkpoint's files: scores belong to weights and settings, not to a
    name."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in _HASHED):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def read_config(source: TensorSource) -> BagelConfig:
    """The configuration beside an opened model, with the sides of the position tables taken from the tables themselves.

    Raises:
        CheckpointError: a file is missing or damaged, or a table is not that of a square.
    """
    config = load_config(source.where.parent)
    shapes = {ours: source.shape(theirs) for ours, theirs in POSITION_TABLES.items() if theirs in source.names()}
    return with_table_sides(config, **table_sides(config, shapes))


def table_sides(config: BagelConfig, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The sides of the position tables: those of the tables that there are, else what the configuration says.

    Args:
        config: the configuration.
        shapes: the shapes of tables, by this package's names.

    Raises:
        CheckpointError: a table is not that of a square, or not as wide as the decoder.
    """
    sides = {"latent": config.max_latent_size, "vit": config.vit_max_num_patch_per_side}
    for ours, (entries, width) in shapes.items():
        if isqrt(entries) ** 2 != entries:
            raise CheckpointError(
                f"{POSITION_TABLES[ours]} has {entries} entries; a position table needs a square number"
            )
        if width != config.decoder.hidden_size:
            raise CheckpointError(
                f"{POSITION_TABLES[ours]} is {width} wide; the decoder is {config.decoder.hidden_size}"
            )
        sides["latent" if ours == "latent_pos_embed" else "vit"] = isqrt(entries)
    return sides


def load_checkpoint(
    where: Path | str | TensorSource,
    *,
    precision: Precision | torch.dtype = torch.bfloat16,
    device: torch.device | str | DeviceOf = "cpu",
    tasks: Collection[str] = TASKS,
    prepack: bool = False,
    progress: ByteProgress | None = None,
) -> Checkpoint:
    """Loads a checkpoint, tensor by tensor: each is quantised at once, so that memory never holds the whole as it was.

    Args:
        where: a folder in the official layout, a file with weights in it, or the opened source of its tensors.
        precision: the precision of its parts. A dtype means all floating-point weights, the autoencoder's too.
        device: the device that they go to, or a function that tells it for each tensor.
        tasks: the tasks that the model is for. Without "edit", parts that the others do not need are left out.
        prepack: keep matrices and convolutions of the CPU in the order in which it computes them
            (`bagel_mot.model.prepacked`, `bagel_mot.model.prepacked_conv`).
        progress: told the bytes that have been read, and all that are to be read. What it raises ends the loading.

    Raises:
        CheckpointError: a file is missing or damaged, or a tensor missing, extra or misshapen.
    """
    if isinstance(precision, torch.dtype):
        precision = Precision(precision, autoencoder=precision)
    source = open_checkpoint(where) if isinstance(where, Path | str) else where
    folder = source.where.parent
    config, tokenizer, model = _without_values(source)
    known = {official_name(name) for name in model_shapes(config)}
    reads, draws = needed(tasks)
    model.drop(image_input=not reads, image_output=not draws)
    device_of = device if callable(device) else on_device(device)
    if prepack:
        device_of = _with_embedding_in_file(device_of, source, precision)
    present = set(source.names())
    parts = [(source, [name for name in map(official_name, model.state_dict()) if name in present])]
    if draws:
        second = _autoencoder_file(folder)
        parts.append((second, list(second.names())))
    advance = counting(progress, sum(each.stored_bytes(name) for each, names in parts for name in names))
    load_tensors(
        model, source, precision, device_of, name_of=official_name, known=known, prepack=prepack, advance=advance
    )
    if draws:
        place = device_of("autoencoder")
        assert place is not None
        autoencoder = _autoencoder(second, precision.autoencoder_on(place, config.vae), place, advance)
        if prepack:
            prepack_convolutions(autoencoder)
    else:
        with without_values():
            autoencoder = Autoencoder(config.vae)
    return Checkpoint(config, model.eval(), autoencoder, tokenizer, tuple(tasks), precision)


def open_parts(where: Path | str) -> tuple[Checkpoint, ModelParts]:
    """A checkpoint whose model has no values yet (on the meta device), and the parts that these can be read in. The
    autoencoder is whole, in float32.

    Raises:
        CheckpointError: a file is missing or damaged, or a tensor missing, extra or misshapen.
    """
    source = open_checkpoint(where)
    config, tokenizer, model = _without_values(source)
    autoencoder = load_autoencoder(source.where.parent)
    precision = Precision(torch.float32, autoencoder=torch.float32)
    return Checkpoint(config, model.eval(), autoencoder, tokenizer, precision=precision), ModelParts(source, config)


def _without_values(source: TensorSource) -> tuple[BagelConfig, Tokenizer, BagelModel]:
    """The configuration and the tokenizer of a checkpoint, and its model on the meta device.

    Raises:
        CheckpointError: a file is missing or damaged, or the tokenizer has more tokens than the embedding.
    """
    config, folder = read_config(source), source.where.parent
    tokenizer = Tokenizer.from_folder(folder)
    if tokenizer.vocab_size > config.decoder.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, "
            f"the embedding only {config.decoder.vocab_size} rows"
        )
    with without_values():
        return config, tokenizer, BagelModel(config)


def _with_embedding_in_file(device_of: DeviceOf, source: TensorSource, precision: Precision) -> DeviceOf:
    """Leaves a large embedding a view of its file where it is stored as it is wanted and would be on the CPU: a text
    takes a few of its rows, and all of them are a gigabyte at the official size.
    """
    stays = embedding_dtype(source) == precision.activations and precision.stored_as(EMBEDDING) is None
    place = device_of(EMBEDDING)
    if not stays or place is None or place.type != "cpu":
        return device_of
    return lambda name: None if name == EMBEDDING else device_of(name)


def needed(tasks: Collection[str]) -> tuple[bool, bool]:
    """Whether tasks read images, and whether they draw them.

    Raises:
        SettingError: a task is unknown, or there is none.
    """
    if not isinstance(tasks, Collection) or not tasks or isinstance(tasks, str) or set(tasks) - set(TASKS):
        raise SettingError(f"tasks is {tasks!r}: it must be one or several of {', '.join(map(repr, TASKS))}.")
    return bool({"edit", "understand"} & set(tasks)), bool({"edit", "generate"} & set(tasks))


def load_autoencoder(
    where: Path | str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Autoencoder:
    """The autoencoder of a folder that holds config.json and ae.safetensors, with or without a model beside it."""
    return _autoencoder(_autoencoder_file(folder_of(Path(where))), dtype, torch.device(device), None)


def _autoencoder_file(folder: Path) -> SafetensorsFiles:
    path = folder / AUTOENCODER_FILE
    if not path.exists():
        raise CheckpointError(f"{folder} has no {AUTOENCODER_FILE} (the autoencoder); the official layout needs it")
    return SafetensorsFiles(path, [path])


def _autoencoder(
    source: SafetensorsFiles, dtype: torch.dtype, device: torch.device, advance: Advance | None
) -> Autoencoder:
    with without_values():
        autoencoder = Autoencoder(load_config(source.where.parent).vae)
    load_tensors(autoencoder, source, Precision(dtype), on_device(device), advance=advance)
    return autoencoder.eval()


def write_json(path: Path, content: object) -> None:
    """Writes a JSON file, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def save_checkpoint(
    folder: Path | str,
    config: BagelConfig,
    *,
    model: Mapping[str, Tensor] | None = None,
    autoencoder: Mapping[str, Tensor] | None = None,
    tokenizer: Tokenizer | None = None,
    dtype: torch.dtype | None = torch.bfloat16,
) -> None:
    """Writes a folder in the official layout.

    Args:
        folder: created where it is missing.
        config: written as the three JSON files.
        model: state of a `BagelModel`, under our names.
        autoencoder: state of an `Autoencoder`.
        tokenizer: written in the official files.
        dtype: the type of the weights on disk; None keeps theirs. The autoencoder's are always kept.
    """
    folder = Path(folder)
    for name, content in dump_config(config).items():
        write_json(folder / name, content)
    if tokenizer is not None:
        tokenizer.save(folder)
    if autoencoder is not None:
        write_safetensors(folder / AUTOENCODER_FILE, [entry_of(name, t) for name, t in autoencoder.items()])
    if model is not None:
        write_safetensors(folder / MODEL_FILE, [entry_of(official_name(name), t, dtype) for name, t in model.items()])
