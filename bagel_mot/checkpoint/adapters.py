"""Adapters on disk, in the layout of the package peft, under the official names of the matrices.

    adapter_config.json           the kind of adapter, its ranks, α and targets
    adapter_model.safetensors     base_model.model.{official name of the linear map}.lora_A.weight   (rank, in)
                                  … .lora_B.weight (out, rank), and with DoRA … .lora_magnitude_vector (out,)

Other trainers write the names of the language model alone (`model.layers.0…`, `layers.0…`), or leave out
`base_model.model.`: these are read, too. Strictly: every tensor finds its matrix, or an error names it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bagel_mot.checkpoint.names import official_module
from bagel_mot.checkpoint.official import write_json
from bagel_mot.checkpoint.shapes import model_shapes
from bagel_mot.checkpoint.side_files import ADAPTER_FILE
from bagel_mot.checkpoint.source import SafetensorsFiles, check_finite
from bagel_mot.checkpoint.write import entry_of, write_safetensors
from bagel_mot.config import BagelConfig
from bagel_mot.errors import CheckpointError
from bagel_mot.files import read_json
from bagel_mot.model.adapters import Adapter, MatrixAdapter

WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PARTS = re.compile(r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector)(\.default)?(\.weight)?")
_OUTER = ("", "language_model.", "language_model.model.")
"""The beginnings that a name may lack."""
# Further keys of a configuration, and the values with which they ask for nothing.
_MUST_BE: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "use_qalora": (False, None),
    "use_bdlora": (None, False),
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None,),
    "velora_config": (None,),
    "monteclora_config": (None,),
    "kasa_config": (None,),
}
# Ways to begin that leave the base's weights as they are. The others take a part out of them, and an adapter alone is
# of no use then.
_INITIAL = (True, False, None, "gaussian", "orthogonal", "eva")


def read_adapter(folder: Path, config: BagelConfig) -> Adapter:
    """Reads an adapter of a model.

    Args:
        folder: the folder with its two files.
        config: the model's configuration.

    Raises:
        CheckpointError: a file is missing or damaged; the adapter is of a kind that is not read here; or a tensor in it
            belongs to none of the model's matrices, has another shape than its matrix takes, lacks its counterpart,
            or is not finite.
    """
    content = read_config_file(folder)
    source = _open(folder)
    shapes = linear_shapes(config)
    ours = {official_module(name): name for name in shapes}
    found: dict[str, dict[str, str]] = {}  # the tensors' names in the file by our name of the matrix and their part
    stored: dict[str, str] = {}  # the name of the linear map as the file has it
    for key in source.names():
        match = _PARTS.fullmatch(key.removeprefix(_PREFIX))
        module = match["module"] if match else ""
        known = next((outer + module for outer in _OUTER if outer + module in ours), None)
        if match is None or known is None:
            raise CheckpointError(
                f"{source.where}: {key} belongs to no matrix of this model: the adapter is of another model, or "
                "trains parts that are not read here"
            )
        place = found.setdefault(ours[known], {})
        if match["part"] in place:
            raise CheckpointError(f"{source.where}: {key} and {place[match['part']]} are of the same matrix")
        place[match["part"]] = key
        stored[ours[known]] = module
    if not found:
        raise CheckpointError(f"{source.where} holds no tensors: an adapter of some matrices is expected")
    ranks = {place: _rank(content, name, "r", "rank_pattern") for place, name in stored.items()}
    alphas = {place: _rank(content, name, "lora_alpha", "alpha_pattern") for place, name in stored.items()}
    matrices = {
        place: _matrix(source, parts, shapes[place], ranks[place], alphas[place], bool(content.get("use_dora")))
        for place, parts in found.items()
    }
    source.close()
    return Adapter(matrices, bool(content.get("use_rslora")))


def _open(folder: Path) -> SafetensorsFiles:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        pickled = folder / "adapter_model.bin"
        hint = "; adapter_model.bin may run code and is not read: save it as safetensors" if pickled.is_file() else ""
        raise CheckpointError(f"{folder} has no {WEIGHTS_FILE}{hint}")
    return SafetensorsFiles(path, [path])


def read_config_file(folder: Path) -> dict[str, Any]:
    """The configuration of an adapter, checked for what is not read here. Errors as `read_adapter`."""
    path = folder / ADAPTER_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {ADAPTER_FILE}: it is not the folder of an adapter")
    content = read_json(path, CheckpointError)
    if content.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: peft_type is {content.get('peft_type')!r}; LORA is read here")
    for key, allowed in _MUST_BE.items():
        if content.get(key) not in allowed:
            raise CheckpointError(
                f"{path}: {key} is {content[key]!r}, which is not read here; it must be {allowed[0]!r}"
            )
    if content.get("init_lora_weights", True) not in _INITIAL:
        raise CheckpointError(
            f"{path}: init_lora_weights is {content['init_lora_weights']!r}, which changes the base's weights: convert "
            "it to a plain adapter first (save_pretrained of peft with path_initial_model_for_weight_conversion)"
        )
    for key in ("r", "lora_alpha"):
        if isinstance(content.get(key), bool) or not isinstance(content.get(key), int | float) or content[key] <= 0:
            raise CheckpointError(f"{path}: {key} is {content.get(key)!r}; it must be a number above 0")
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(content.get(key) or {}, dict):
            raise CheckpointError(f"{path}: {key} is {content[key]!r}; it must be an object")
    return content


def _rank(content: Mapping[str, Any], module: str, key: str, patterns: str) -> float:
    """The rank or α of a linear map: that of the first pattern that matches the end of its name, as peft has it."""
    for pattern, value in (content.get(patterns) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(value)
    return float(content[key])


def _matrix(
    source: SafetensorsFiles, parts: dict[str, str], shape: tuple[int, int], rank: float, alpha: float, dora: bool
) -> MatrixAdapter:
    """Reads the adapter of a matrix (out, in)."""
    wanted: dict[str, tuple[int, ...]] = {"lora_A": (int(rank), shape[1]), "lora_B": (shape[0], int(rank))}
    if dora:
        wanted["lora_magnitude_vector"] = (shape[0],)
    some = next(iter(parts.values()))
    if lacking := sorted(wanted.keys() - parts.keys()):
        raise CheckpointError(f"{source.where} has {some}, but not the {lacking[0]} of the same matrix")
    if further := sorted(parts.keys() - wanted.keys()):
        raise CheckpointError(f"{source.where} has {parts[further[0]]}, but use_dora in {ADAPTER_FILE} is not true")
    for part, expected in wanted.items():
        if source.shape(parts[part]) != expected:
            raise CheckpointError(
                f"{source.where}: {parts[part]} is {list(source.shape(parts[part]))}; a matrix of "
                f"{shape[0]}×{shape[1]} and rank {int(rank)} take {list(expected)}: the adapter is of another model, "
                f"or of another rank"
            )
    tensors: dict[str, Tensor] = {}
    for part, key in parts.items():
        tensors[part] = source.read(key).float()
        check_finite(source.where, key, tensors[part])
    return MatrixAdapter(tensors["lora_A"], tensors["lora_B"], alpha, tensors.get("lora_magnitude_vector"))


def linear_shapes(config: BagelConfig) -> dict[str, tuple[int, int]]:
    """The shapes (out, in) of a model's linear maps by our names: all that an adapter may adapt."""
    return {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in model_shapes(config).items()
        if name.endswith(".weight")
        and len(shape) == 2
        and not name.endswith(("embed_tokens.weight", "position_embedding.weight"))
    }


def write_adapter(
    folder: Path,
    adapter: Adapter,
    base: str | None = None,
    *,
    dropout: float = 0.0,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Writes the folder of an adapter.

    Args:
        folder: created where it is missing.
        adapter: the adapter.
        base: the checkpoint that it is of, a name or a path, for whoever reads it.
        dropout: the dropout it was trained with.
        dtype: the type of its tensors on disk; magnitudes, which multiply whole rows, stay float32.
    """
    modules = {official_module(place): matrix for place, matrix in adapter.matrices.items()}
    ranks, ranks_of = _common({name: matrix.rank for name, matrix in modules.items()})
    alphas, alphas_of = _common({name: matrix.alpha for name, matrix in modules.items()})
    content = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "r": ranks,
        "lora_alpha": int(alphas) if float(alphas).is_integer() else alphas,
        "rank_pattern": ranks_of,
        "alpha_pattern": alphas_of,
        "target_modules": _targets(modules),
        "lora_dropout": dropout,
        "use_rslora": adapter.rslora,
        "use_dora": adapter.dora,
        "bias": "none",
        "modules_to_save": None,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    entries = []
    for name, matrix in modules.items():
        entries += [
            entry_of(f"{_PREFIX}{name}.lora_A.weight", matrix.down, dtype),
            entry_of(f"{_PREFIX}{name}.lora_B.weight", matrix.up, dtype),
        ]
        if matrix.magnitude is not None:
            entries.append(entry_of(f"{_PREFIX}{name}.lora_magnitude_vector", matrix.magnitude, torch.float32))
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / WEIGHTS_FILE, entries)
    write_json(folder / ADAPTER_FILE, content)


def _kind(module: str) -> str:
    """The name of a linear map within its layer: the same in all of them."""
    return re.sub(r".*\.layers\.\d+\.", "", module)


def _common(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The most frequent of the values by linear map, and the others by patterns as `_rank` reads them."""
    most = Counter(values.values()).most_common(1)[0][0]
    by_kind: dict[str, set[Any]] = {}
    for module, value in values.items():
        by_kind.setdefault(_kind(module), set()).add(value)
    others = {}
    for module, value in values.items():
        if value != most or len(by_kind[_kind(module)]) > 1:
            others[re.escape(_kind(module) if len(by_kind[_kind(module)]) == 1 else module)] = value
    return most, others


def _targets(modules: Iterable[str]) -> str | list[str]:
    """The linear maps that peft is to adapt: one pattern where all layers are adapted alike, else a list of all names.
    The names within a layer alone would be found in the vision transformer, too.
    """
    names = list(modules)
    beginning = "language_model.model.layers."
    layers: dict[str, set[str]] = {}
    for name in names:
        layers.setdefault(name.removeprefix(beginning).partition(".")[0], set()).add(_kind(name))
    if all(name.startswith(beginning) for name in names) and len({frozenset(kinds) for kinds in layers.values()}) == 1:
        numbers = sorted(layers, key=int)
        if numbers == [str(number) for number in range(len(numbers))]:
            kinds = "|".join(re.escape(kind) for kind in sorted({_kind(name) for name in names}))
            return rf"language_model\.model\.layers\.\d+\.({kinds})"
    return names
