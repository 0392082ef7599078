"""FP8 as the community publishes it: float8 under the official names, scales beside them.

    X.weight            float8_e4m3fn or float8_e5m2
    X.weight_scale      compressed-tensors, vLLM, ComfyUI (2025 on)     one number, or one a row
    X.scale_weight      ComfyUI before that
    X.weight_scale_inv  DeepSeek-V3: one for each block of 128×128 weights
    X.input_scale, X.scale_input, X.comfy_quant, scaled_fp8    of activations, and markers: not needed to read weights

A weight is value · scale whatever the scale is called; without one in the whole file it is the value.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bagel_mot.checkpoint.formats.quantised_layouts import StoredTensor, look, unknown
from bagel_mot.checkpoint.source import SafetensorsFiles
from bagel_mot.errors import CheckpointError
from bagel_mot.model.finite import is_finite
from bagel_mot.model.quant import Fp8Matrix, QuantisedMatrix

_TYPES = {"F8_E4M3": "e4m3", "F8_E5M2": "e5m2"}
_SCALES = ("weight_scale", "scale_weight", "weight_scale_inv")
_IDLE = ("input_scale", "scale_input", "comfy_quant")
_BLOCK = 128


def is_marker(files: SafetensorsFiles, name: str) -> bool:
    """Whether a tensor only says that there is FP8 in the file (ComfyUI): it is of 0 or 2 numbers that mean nothing."""
    return name.rpartition(".")[2] == "scaled_fp8" and files.dtype(name) in _TYPES


def recognise(files: SafetensorsFiles, name: str) -> StoredTensor | None:
    """A tensor of float8; None for all others.

    Matrices of linear maps are read as `Fp8Matrix`, unless their scales are those of blocks; everything else
    (embeddings, norms, biases, tables) as bfloat16.

    Raises:
        CheckpointError: it has several scales, or one that does not fit its shape.
    """
    if files.dtype(name) not in _TYPES:
        return None
    module, _, leaf = name.rpartition(".")
    beside = [f"{module}.{s}" for s in _SCALES if f"{module}.{s}" in files.names()] if leaf == "weight" else []
    idle = tuple(f"{module}.{s}" for s in _IDLE if f"{module}.{s}" in files.names()) if leaf == "weight" else ()
    if len(beside) > 1:
        raise unknown(files, name, f"with {len(beside)} scales")
    shape, scale = files.shape(name), beside[0] if beside else None
    if scale is not None and not files.torch_dtype(scale).is_floating_point:
        raise unknown(files, name, f"its scale is {files.dtype(scale)}")
    if scale is not None and not shape:
        raise unknown(files, name, "a single number needs no scale")
    words = _spread(files, name, scale)
    linear = leaf == "weight" and len(shape) == 2 and "embed" not in module.rpartition(".")[2]
    if linear and scale is None and (other := _first_scale(files)) is not None:
        raise CheckpointError(
            f"{files.where}: {name} has no scale beside it, but the file has {other}: it is not whole; download it anew"
        )

    kept = Fp8Matrix.format if linear and words != _BLOCKWISE else None

    def load(files: SafetensorsFiles) -> Tensor | QuantisedMatrix:
        values = files.read(name)
        if not is_finite(values):
            raise CheckpointError(
                f"{files.where}: {name} holds infinite values or values that are not numbers; download it anew"
            )
        scales = torch.ones(1) if scale is None else files.read(scale).float()
        if not is_finite(scales):
            raise CheckpointError(
                f"{files.where}: {scale} holds infinite values or values that are not numbers; download it anew"
            )
        if words == _BLOCKWISE:
            return _from_blocks(values, scales)
        if len(shape) != 2:
            return (values.float() * (scales if scales.numel() == 1 else scales.view(-1))).to(torch.bfloat16)
        rows = scales.reshape(-1).expand(shape[0]).contiguous()
        matrix = Fp8Matrix((shape[0], shape[1]), {"values": values, "scale": rows})
        return matrix if kept else matrix.dequantise(torch.bfloat16)

    parts = (name,) if scale is None else (name, scale)
    return StoredTensor(f"FP8 ({_TYPES[files.dtype(name)]}) {words}", shape, parts, load, kept, idle)


def _first_scale(files: SafetensorsFiles) -> str | None:
    endings = tuple(f".{scale}" for scale in _SCALES)
    return next((name for name in files.names() if name.endswith(endings)), None)


_BLOCKWISE = f"with scales of {_BLOCK}×{_BLOCK} blocks"


def _spread(files: SafetensorsFiles, name: str, scale: str | None) -> str:
    """The extent of each scale, in words."""
    if scale is None:
        return "without scales"
    shape, found = files.shape(name), files.shape(scale)
    count = 1
    for side in found:
        count *= side
    if count == 1:
        return "with a scale for each tensor"
    if found in ((shape[0],), (shape[0], 1)):
        return "with per-row scales"
    if len(shape) == 2 and found == tuple(-(-side // _BLOCK) for side in shape):
        return _BLOCKWISE
    raise CheckpointError(
        f"{files.where}: {look(files, scale)} does not fit {look(files, name)}: a scale is one number, one for each of "
        f"{shape[0]} rows, or one for each block of {_BLOCK}×{_BLOCK}"
    )


def _from_blocks(values: Tensor, scales: Tensor) -> Tensor:
    """Values (out, in) times scales (⌈out/128⌉, ⌈in/128⌉), bfloat16."""
    result = torch.empty(values.shape, dtype=torch.bfloat16)
    for index, row in enumerate(scales):
        rows = slice(index * _BLOCK, (index + 1) * _BLOCK)
        result[rows] = values[rows].float() * row.repeat_interleave(_BLOCK)[: values.shape[1]]
    return result
