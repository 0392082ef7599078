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
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bagel.checkpoint.names import POSITION_TABLES, official_name
from bagel.checkpoint.precision import DYNAMIC, Precision, format_of
from bagel.checkpoint.source import SafetensorsFiles, TensorSource, as_tensor, open_source
from bagel.config import BagelConfig, dump_config, load_config, with_table_sides
from bagel.errors import CheckpointError, SettingError
from bagel.files import write_atomically, write_text
from bagel.model.bagel import BagelModel, sincos_table
from bagel.model.matrices import FORMATS, QuantisedMatrix
from bagel.model.packed import pack_linear
from bagel.model.quantised import QuantisedLinear
from bagel.model.vae import Autoencoder
from bagel.sequence import SpecialTokens
from bagel.tokenizer import Tokenizer

MODEL_FILE = "ema.safetensors"
AUTOENCODER_FILE = "ae.safetensors"
TASKS = ("generate", "edit", "understand")
# In this order: the official file, an index, a plain file, then whatever stands alone.
_MODEL_FILES = (MODEL_FILE, MODEL_FILE + ".index.json", "model.safetensors.index.json", "model.safetensors")
_AHEAD = 1 << 28  # bytes: the next tensor is read ahead if it is no larger
_TABLE_TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
_COARSE_TABLE_TOLERANCE = 0.07  # of a table in 8 bits

DeviceOf = Callable[[str], "torch.device | None"]
"""By our name of a tensor the device it goes to; None leaves it a view of its file."""


@dataclass
class Checkpoint:
    """Everything a checkpoint folder holds, loaded.

    Attributes:
        config, model, tokenizer: its own.
        autoencoder: without values (on the meta device) where pictures are not drawn.
        tasks: what it was loaded for, of TASKS.
        precision: of its parts.
    """

    config: BagelConfig
    model: BagelModel
    autoencoder: Autoencoder
    tokenizer: Tokenizer
    tasks: tuple[str, ...] = TASKS
    precision: Precision = Precision()

    @property
    def special(self) -> SpecialTokens:
        t = self.tokenizer
        return SpecialTokens(t.bos_id, t.eos_id, t.start_of_image_id, t.end_of_image_id)


def model_file(where: Path) -> Path:
    """The file that holds the model, or the index of the files that do: of a folder, or `where` itself if it is a file.

    Raises: CheckpointError if there is none, or it cannot be told which.
    """
    if where.is_file():
        return where
    for name in _MODEL_FILES:
        if (where / name).exists():
            return where / name
    others = [
        p for p in sorted(where.glob("*")) if p.suffix in (".safetensors", ".gguf") and p.name != AUTOENCODER_FILE
    ]
    if len(others) == 1:
        return others[0]
    found = f"; it has {', '.join(p.name for p in others)}: give one of them" if others else ""
    raise CheckpointError(f"{where} has no {MODEL_FILE}{found}; a checkpoint folder in the official layout is expected")


def weight_bytes(where: Path) -> int:
    """Bytes of the model's weights as they are stored."""
    source = open_source(model_file(where))
    return sum(source.stored_bytes(name) for name in source.names())


def folder_of(where: Path) -> Path:
    """The folder with configuration, tokenizer and autoencoder: `where`, or the one that the file `where` is in."""
    return where.parent if where.is_file() else where


def read_config(where: Path | str, source: TensorSource | None = None) -> BagelConfig:
    """Configuration of a checkpoint, with the sides of the position tables taken from the tables themselves.

    Args:
        where: the folder, or a file in it.
        source: of its tensors, where it is open already.
    """
    where = Path(where)
    config = load_config(folder_of(where))
    sides = {"latent": config.max_latent_size, "vit": config.vit_max_num_patch_per_side}
    source = source or open_source(model_file(where))
    for ours, theirs in POSITION_TABLES.items():
        if theirs in source.names():
            entries, width = source.shape(theirs)
            if isqrt(entries) ** 2 != entries:
                raise CheckpointError(f"{theirs} has {entries} entries; a position table needs a square number")
            if width != config.decoder.hidden_size:
                raise CheckpointError(f"{theirs} is {width} wide; the decoder is {config.decoder.hidden_size}")
            sides["latent" if ours == "latent_pos_embed" else "vit"] = isqrt(entries)
    return with_table_sides(config, **sides)


def load_checkpoint(
    where: Path | str,
    *,
    precision: Precision | torch.dtype = torch.bfloat16,
    device: torch.device | str | DeviceOf = "cpu",
    tasks: Collection[str] = TASKS,
    pack: bool = False,
) -> Checkpoint:
    """Loads a checkpoint, tensor by tensor: what is quantised is so at once, and never stands in memory as it was.

    Args:
        where: a folder in the official layout, or a file with weights in it.
        precision: of the parts. A dtype means all floating-point weights, the autoencoder's too.
        device: where they go, or a function that tells it for each tensor.
        tasks: what the model is for. Without "edit", parts that the others do not need are left out.
        pack: keep matrices of the CPU in the order in which it multiplies them (`bagel.model.packed`).

    Raises:
        CheckpointError: a file is missing or damaged, or a tensor missing, extra or misshapen.
    """
    where = Path(where)
    if isinstance(precision, torch.dtype):
        precision = Precision(precision, autoencoder=precision)
    source = open_source(model_file(where))
    config = read_config(where, source)
    tokenizer = Tokenizer.from_folder(folder_of(where))
    if tokenizer.vocab_size > config.decoder.vocab_size:
        raise CheckpointError(
            f"{where}: the tokenizer has {tokenizer.vocab_size} tokens, "
            f"the embedding only {config.decoder.vocab_size} rows"
        )
    with torch.device("meta"):
        model = BagelModel(config)
    known = {official_name(name) for name in model.state_dict()}
    reads, draws = needed(tasks)
    model.drop(pictures_in=not reads, pictures_out=not draws)
    load_tensors(model, source, precision, device, name_of=official_name, known=known, pack=pack)
    if draws:
        place = device("autoencoder") if callable(device) else device
        assert place is not None
        autoencoder = load_autoencoder(where, dtype=precision.autoencoder, device=place)
    else:
        with torch.device("meta"):
            autoencoder = Autoencoder(config.vae)
    return Checkpoint(config, model.eval(), autoencoder, tokenizer, tuple(tasks), precision)


def needed(tasks: Collection[str]) -> tuple[bool, bool]:
    """Whether tasks read pictures, and whether they draw them.

    Raises:
        SettingError: a task is unknown, or there is none.
    """
    if not tasks or isinstance(tasks, str) or set(tasks) - set(TASKS):
        raise SettingError(f"tasks is {tasks!r}: it must be one or several of {', '.join(map(repr, TASKS))}.")
    return bool({"edit", "understand"} & set(tasks)), bool({"edit", "generate"} & set(tasks))


def load_autoencoder(
    where: Path | str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Autoencoder:
    """The autoencoder of a folder that holds config.json and ae.safetensors, with or without a model beside it."""
    folder = folder_of(Path(where))
    path = folder / AUTOENCODER_FILE
    if not path.exists():
        raise CheckpointError(f"{folder} has no {AUTOENCODER_FILE} (the autoencoder); the official layout needs it")
    with torch.device("meta"):
        autoencoder = Autoencoder(load_config(folder).vae)
    load_tensors(autoencoder, SafetensorsFiles(path, [path]), Precision(dtype), device)
    return autoencoder.eval()


def load_tensors(
    module: nn.Module,
    source: TensorSource,
    precision: Precision,
    device: torch.device | str | DeviceOf,
    *,
    name_of: Callable[[str], str] = str,
    known: Collection[str] = (),
    pack: bool = False,
) -> None:
    """Fills a module that was built on the meta device, strictly.

    The largest tensors come first, when there is least beside them.

    Args:
        module: is filled.
        source: of the tensors.
        precision: of its parts; parts go by our names of a `BagelModel`.
        device: where they go, or a function that tells it for each tensor.
        name_of: our names to those of the source.
        known: further names that may stand in the source.
        pack: as in `load_checkpoint`.
    """
    state = module.state_dict()
    wanted = {name_of(name): name for name in state}
    optional = set(POSITION_TABLES.values()) & wanted.keys()
    present = set(source.names())
    _refuse(source.where, "lacks", sorted(wanted.keys() - present - optional))
    _refuse(source.where, "has an unknown tensor", sorted(present - wanted.keys() - set(known)))
    for theirs in wanted.keys() & present:
        stored, shape = list(source.shape(theirs)), list(state[wanted[theirs]].shape)
        if stored != shape:
            raise CheckpointError(f"{source.where}: {theirs} is {stored}; the configuration makes it {shape}")
    if callable(device):
        device_of: DeviceOf = device
    else:
        single = torch.device(device)
        device_of = lambda name: single  # noqa: E731
    for missing in optional - present:
        table = sincos_table(isqrt(state[wanted[missing]].shape[0]), state[wanted[missing]].shape[1])
        place = device_of(wanted[missing]) or torch.device("cpu")
        _assign(module, wanted[missing], table.to(device=place, dtype=precision.activations))
    names = sorted((n for n in wanted if n in present), key=lambda n: (-source.stored_bytes(n) // _AHEAD, n))
    mapped = [n for n in names if device_of(wanted[n]) is None]
    for theirs in mapped:
        _assign(module, wanted[theirs], _left_in_file(source, theirs, precision.activations))
    for theirs, found in _read_ahead(source, [n for n in names if n not in set(mapped)]):
        ours = wanted[theirs]
        if ours in POSITION_TABLES:
            found = _checked_table(source, theirs, found)
        target = device_of(ours)
        assert target is not None
        _install(module, ours, found, precision, target, pack)
        del found


def _read_ahead(source: TensorSource, names: list[str]) -> Iterator[tuple[str, Tensor | QuantisedMatrix]]:
    """Tensors in the order given; while one is worked on the next is read, unless it is large."""
    with ThreadPoolExecutor(1, thread_name_prefix="bagel-read") as reader:
        ahead: Future[Tensor | QuantisedMatrix] | None = None
        for index, name in enumerate(names):
            found = source.read(name) if ahead is None else ahead.result()
            ahead = None
            if index + 1 < len(names) and source.stored_bytes(names[index + 1]) <= _AHEAD:
                ahead = reader.submit(source.read, names[index + 1])
            yield name, found
            del found
    source.close()


def _left_in_file(source: TensorSource, name: str, dtype: torch.dtype) -> Tensor:
    """A tensor as a view of its file.

    Raises:
        CheckpointError: it is not stored in the precision that is wanted.
    """
    if not isinstance(source, SafetensorsFiles):
        raise CheckpointError(
            f"{source.where} is {source.kind}; only plain safetensors files can be used from the disk"
        )
    tensor = source.mapped(name)
    if tensor.dtype != dtype:
        raise CheckpointError(
            f"{source.where}: {name} is {tensor.dtype}, not {dtype}; used from the disk a checkpoint stays as it is"
        )
    return tensor


def _install(
    module: nn.Module,
    name: str,
    found: Tensor | QuantisedMatrix,
    precision: Precision,
    device: torch.device,
    pack: bool,
) -> None:
    """Puts one tensor in its place, in its precision; a matrix that is stored in few bits brings its own module."""
    parent_name, _, leaf = name.rpartition(".")
    stored = precision.stored_as(name)
    if stored is None:
        _assign(module, name, as_tensor(found, precision.activations).to(device))
        if pack and leaf == "weight":
            pack_linear(module, parent_name)
        return
    kind = FORMATS[format_of(stored)]
    if not isinstance(found, kind):
        # Where rounding is slow on the CPU an accelerator does it, one matrix at a time.
        plain = as_tensor(found, torch.bfloat16 if isinstance(found, QuantisedMatrix) else found.dtype).to(device)
        if not kind.fits((plain.shape[0], plain.shape[1])):
            _assign(module, name, plain.to(precision.activations))
            return
        found = kind.quantise(plain)
    matrix = kind(found.shape, {key: tensor.to(device) for key, tensor in found.tensors.items()})
    place, _, last = parent_name.rpartition(".")
    linear = module.get_submodule(parent_name)
    bias = getattr(linear, "bias", None)
    setattr(
        module.get_submodule(place),
        last,
        QuantisedLinear(matrix, bias, precision.activations, dynamic=stored.endswith(DYNAMIC)),
    )


def _refuse(path: Path, what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise CheckpointError(
            f"{path} {what}: {names[0]}{more}; the configuration and the weights do not belong together"
        )


def _checked_table(source: TensorSource, name: str, found: Tensor | QuantisedMatrix) -> Tensor:
    """A position table, if it is that of the formula; of one stored in 8 bits the formula's own."""
    rows, width = source.shape(name)
    formula = sincos_table(isqrt(rows), width)
    coarse = source.stored_bytes(name) <= rows * width or isinstance(found, QuantisedMatrix)
    table = as_tensor(found, torch.float32) if isinstance(found, QuantisedMatrix) else found
    error = (table.float() - formula).abs().max().item()
    tolerance = _COARSE_TABLE_TOLERANCE if coarse else _TABLE_TOLERANCE.get(table.dtype, 1e-2)
    if not error <= tolerance:  # also where the table holds NaN
        raise CheckpointError(
            f"{source.where}: {name} is off its formula by {error:.2g}; fixed position tables are never trained"
        )
    return formula if coarse else table


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
