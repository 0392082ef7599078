"""Checkpoint folders in the official layout, read and written.

    config.json llm_config.json vit_config.json     configuration
    ema.safetensors                                 the model (or model.safetensors)
    ae.safetensors                                  the autoencoder
    tokenizer.json vocab.json merges.txt tokenizer_config.json

Reading is strict: a missing, extra or misshapen tensor is an error that names it. Only the two fixed position tables
may be missing (they are rebuilt from their formula); where they are present they are checked against it. Files are
memory-mapped and cast tensor by tensor, so that loading needs little more memory than the result.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bagel.checkpoint.names import POSITION_TABLES, official_name
from bagel.config import BagelConfig, dump_config, load_config, with_table_sides
from bagel.errors import CheckpointError
from bagel.files import write_atomically, write_text
from bagel.model.bagel import BagelModel, sincos_table
from bagel.model.vae import Autoencoder
from bagel.sequence import SpecialTokens
from bagel.tokenizer import Tokenizer

MODEL_FILE = "ema.safetensors"
AUTOENCODER_FILE = "ae.safetensors"
_MODEL_FILES = (MODEL_FILE, "model.safetensors")
_PORTION = 4_000_000  # values read before the file is opened anew
_TABLE_TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@dataclass
class Checkpoint:
    """Everything a checkpoint folder holds, loaded."""

    config: BagelConfig
    model: BagelModel
    autoencoder: Autoencoder
    tokenizer: Tokenizer

    @property
    def special(self) -> SpecialTokens:
        t = self.tokenizer
        return SpecialTokens(t.bos_id, t.eos_id, t.start_of_image_id, t.end_of_image_id)


@contextmanager
def _open(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} could not be read as safetensors (truncated or damaged?): {error}") from error


def model_file(folder: Path) -> Path:
    """The file that holds the model.

    Raises: CheckpointError if there is none.
    """
    for name in _MODEL_FILES:
        if (folder / name).exists():
            return folder / name
    raise CheckpointError(f"{folder} has no {MODEL_FILE}; a checkpoint folder in the official layout is expected")


def read_config(folder: Path | str) -> BagelConfig:
    """Configuration of a checkpoint folder, with the sides of the position tables taken from the tables themselves."""
    folder = Path(folder)
    config = load_config(folder)
    sides = {"latent": config.max_latent_size, "vit": config.vit_max_num_patch_per_side}
    with _open(model_file(folder)) as file:
        names = set(file.keys())
        for ours, theirs in POSITION_TABLES.items():
            if theirs in names:
                entries, width = file.get_slice(theirs).get_shape()
                if isqrt(entries) ** 2 != entries:
                    raise CheckpointError(f"{theirs} has {entries} entries; a position table needs a square number")
                if width != config.decoder.hidden_size:
                    raise CheckpointError(f"{theirs} is {width} wide; the decoder is {config.decoder.hidden_size}")
                sides["latent" if ours == "latent_pos_embed" else "vit"] = isqrt(entries)
    return with_table_sides(config, **sides)


def load_checkpoint(
    folder: Path | str, *, dtype: torch.dtype = torch.bfloat16, device: torch.device | str = "cpu"
) -> Checkpoint:
    """Loads a checkpoint folder.

    Args:
        folder: in the official layout.
        dtype: of all floating-point weights.
        device: where they go.

    Raises:
        CheckpointError: a file is missing or damaged, or a tensor missing, extra or misshapen.
    """
    folder = Path(folder)
    config = read_config(folder)
    tokenizer = Tokenizer.from_folder(folder)
    if tokenizer.vocab_size > config.decoder.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, "
            f"the embedding only {config.decoder.vocab_size} rows"
        )
    with torch.device("meta"):
        model = BagelModel(config)
    load_tensors(model, model_file(folder), dtype=dtype, device=device, name_of=official_name)
    autoencoder = load_autoencoder(folder, dtype=dtype, device=device)
    return Checkpoint(config, model.eval(), autoencoder, tokenizer)


def load_autoencoder(
    folder: Path | str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Autoencoder:
    """The autoencoder of a folder that holds config.json and ae.safetensors, with or without a model beside it."""
    path = Path(folder) / AUTOENCODER_FILE
    if not path.exists():
        raise CheckpointError(f"{folder} has no {AUTOENCODER_FILE} (the autoencoder); the official layout needs it")
    with torch.device("meta"):
        autoencoder = Autoencoder(load_config(folder).vae)
    load_tensors(autoencoder, path, dtype=dtype, device=device)
    return autoencoder.eval()


def load_tensors(
    module: nn.Module,
    path: Path,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    name_of: Callable[[str], str] = str,
) -> None:
    """Fills a module that was built on the meta device from one safetensors file, strictly."""
    wanted = {name_of(name): name for name in module.state_dict()}
    optional = set(POSITION_TABLES.values()) & wanted.keys()
    with _open(path) as file:
        present = set(file.keys())
        _refuse(path, "lacks", sorted(wanted.keys() - present - optional))
        _refuse(path, "has an unknown tensor", sorted(present - wanted.keys()))
        state = module.state_dict()
        for theirs in wanted.keys() & present:
            found, shape = list(file.get_slice(theirs).get_shape()), list(state[wanted[theirs]].shape)
            if found != shape:
                raise CheckpointError(f"{path}: {theirs} is {found}; the configuration makes it {shape}")
    for missing in optional - present:
        table = sincos_table(isqrt(state[wanted[missing]].shape[0]), state[wanted[missing]].shape[1])
        _assign(module, wanted[missing], table.to(device=device, dtype=dtype))
    for names in _in_portions([name for name in wanted if name in present], state, wanted):
        # Pages of a mapped file stay with the process until it is closed: opening it anew for each portion keeps them
        # few.
        with _open(path) as file:
            for theirs in names:
                tensor = file.get_tensor(theirs)
                if wanted[theirs] in POSITION_TABLES:
                    _check_table(path, theirs, tensor)
                # Where nothing is cast the tensor would stay a view of the mapped file: copy, so that it can be closed.
                _assign(module, wanted[theirs], tensor.to(device=device, dtype=dtype, copy=True))
                del tensor


def _in_portions(names: list[str], state: Mapping[str, Tensor], ours: Mapping[str, str]) -> Iterator[list[str]]:
    """Names in the order given, in portions of about `_PORTION` values."""
    portion: list[str] = []
    values = 0
    for name in names:
        portion.append(name)
        values += state[ours[name]].numel()
        if values >= _PORTION:
            yield portion
            portion, values = [], 0
    if portion:
        yield portion


def _refuse(path: Path, what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise CheckpointError(
            f"{path} {what}: {names[0]}{more}; the configuration and the weights do not belong together"
        )


def _check_table(path: Path, name: str, table: Tensor) -> None:
    formula = sincos_table(isqrt(table.shape[0]), table.shape[1])
    error = (table.float() - formula).abs().max().item()
    if not error <= _TABLE_TOLERANCE.get(table.dtype, 1e-2):  # also where the table holds NaN
        raise CheckpointError(
            f"{path}: {name} is off its formula by {error:.2g}; fixed position tables are never trained"
        )


def _assign(module: nn.Module, name: str, tensor: Tensor) -> None:
    parent_name, _, leaf = name.rpartition(".")
    parent = module.get_submodule(parent_name)
    if leaf in parent._parameters:
        parent._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        parent._buffers[leaf] = tensor


def write_json(path: Path, content: object) -> None:
    """Writes a JSON file, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Writes tensors as one safetensors file, cast to `dtype`."""
    ready = {n: t.detach().to(device="cpu", dtype=dtype or t.dtype).contiguous() for n, t in tensors.items()}
    write_atomically(path, lambda temporary: save_file(ready, temporary))


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
        dtype: of the weights on disk; None keeps theirs. The autoencoder's are always kept.
    """
    folder = Path(folder)
    for name, content in dump_config(config).items():
        write_json(folder / name, content)
    if tokenizer is not None:
        tokenizer.save(folder)
    if autoencoder is not None:
        save_tensors(folder / AUTOENCODER_FILE, autoencoder)
    if model is not None:
        save_tensors(folder / MODEL_FILE, {official_name(n): t for n, t in model.items()}, dtype)
