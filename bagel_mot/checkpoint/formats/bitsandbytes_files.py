"""INT8 and NF4 as bitsandbytes stores them in state dictionaries (`Linear8bitLt`, `Linear4bit`).

    INT8 (LLM.int8)     X.weight         int8 (out, in)
                        X.SCB            float32 (out,), the largest of a row: a weight is value · SCB / 127
                        X.weight_format  uint8, 0: in the order of rows, the only one still written
    NF4 (QLoRA)         X.weight         bytes of two weights each, (out·in/2, 1) as uint8, or as a wider type
                        X.weight.absmax  float32 (blocks,), the scales; or uint8 where they are themselves quantised:
                        X.weight.nested_absmax, X.weight.nested_quant_map   scales of those, and their 256 levels
                        X.weight.quant_map                                  the 16 levels
                        X.weight.quant_state.bitsandbytes__nf4              JSON in bytes: shape, block sizes, offset

Nothing is rounded on the way: a matrix that is read multiplies as it does there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from torch import Tensor

from bagel_mot.checkpoint.formats.quantised_layouts import StoredTensor, unknown
from bagel_mot.checkpoint.source import SafetensorsFiles
from bagel_mot.errors import CheckpointError
from bagel_mot.model.quant import Int8Matrix, Nf4Matrix, QuantisedMatrix
from bagel_mot.model.quant.nf4 import LEVELS
from bagel_mot.model.quant.rounding import SCALE_BLOCK

_SCALE_LEVELS = 256
_STATE = ".quant_state.bitsandbytes__"


def recognise(files: SafetensorsFiles, name: str) -> StoredTensor | None:
    """A matrix in INT8 or NF4 of bitsandbytes; None for all other tensors.

    Raises:
        CheckpointError: parts of it are missing or do not fit, or it is in FP4 or in an order that is no more written.
    """
    if name + _STATE + "fp4" in files.names():
        raise CheckpointError(
            f"{files.where}: {name} is in FP4 of bitsandbytes, which is not read: quantise the checkpoint anew as NF4"
        )
    if name + _STATE + "nf4" in files.names():
        return _nf4(files, name)
    module, _, leaf = name.rpartition(".")
    if leaf == "weight" and files.dtype(name) == "I8" and f"{module}.SCB" in files.names():
        return _int8(files, name, module)
    return None


def _int8(files: SafetensorsFiles, name: str, module: str) -> StoredTensor:
    scale, order = f"{module}.SCB", f"{module}.weight_format"
    shape = files.shape(name)
    if len(shape) != 2 or files.shape(scale) not in ((shape[0],), (shape[0], 1)):
        raise unknown(files, name, "INT8 of bitsandbytes has a number in SCB for each row")
    if not files.torch_dtype(scale).is_floating_point:
        raise unknown(files, name, f"its SCB is {files.dtype(scale)}")
    idle = (order,) if order in files.names() else ()
    if idle and (orders := files.read(order).flatten().tolist()) != [0]:
        raise unknown(files, name, f"its weight_format is {', '.join(map(str, orders))}, and only 0, rows, is read")

    def load(files: SafetensorsFiles) -> QuantisedMatrix:
        scales = files.read(scale).float().view(-1) / 127
        return Int8Matrix((shape[0], shape[1]), {"values": files.read(name), "scale": scales})

    return StoredTensor("bitsandbytes INT8", shape, (name, scale), load, Int8Matrix.format, idle)


@dataclass(frozen=True)
class _Nf4State:
    """The JSON beside an NF4 matrix.

    Attributes:
        shape: (out, in).
        block: weights that share a scale.
        dtype: the type of the weights before they were quantised.
        scale_block: scales that share a scale; 0 where they are not quantised.
        offset: is added to all scales.
    """

    shape: tuple[int, int]
    block: int
    dtype: torch.dtype
    scale_block: int
    offset: float

    @classmethod
    def read(cls, files: SafetensorsFiles, name: str) -> _Nf4State:
        state = name + _STATE + "nf4"
        try:
            content = json.loads(bytes(files.read(state).tolist()))
            out, inner = (int(side) for side in content["shape"])
            dtype = getattr(torch, content["dtype"])
            if not isinstance(dtype, torch.dtype):
                raise TypeError(f"dtype is {content['dtype']!r}")
            outer, offset = int(content.get("nested_blocksize", 0)), float(content.get("nested_offset", 0.0))
            return cls((out, inner), int(content["blocksize"]), dtype, outer, offset)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{files.where}: {state} could not be read as the JSON of bitsandbytes ({error}); download it anew"
            ) from error


def _nf4(files: SafetensorsFiles, name: str) -> StoredTensor:
    state = _Nf4State.read(files, name)
    (out, inner), nested = state.shape, state.scale_block > 0
    parts = [f"{name}.{part}" for part in ("quant_map", "absmax")]
    parts += [f"{name}.{part}" for part in ("nested_absmax", "nested_quant_map") if nested]
    for part in parts:
        if part not in files.names():
            raise CheckpointError(f"{files.where} lacks {part}, which NF4 of bitsandbytes needs; download it anew")
    if not torch.equal(files.read(parts[0]).float(), torch.tensor(LEVELS)):
        raise unknown(files, name, "its quant_map is not that of NF4")
    blocks = out * inner // state.block if state.block else 0
    if 2 * files.stored_bytes(name) != out * inner or blocks * state.block != out * inner:
        raise unknown(files, name, f"NF4 of {out}×{inner} in blocks of {state.block} is of another size")
    if files.shape(parts[1]) != (blocks,) or (nested and files.shape(parts[2]) != (-(-blocks // state.scale_block),)):
        raise unknown(files, name, f"its scales are not those of {blocks} blocks")
    types = [files.torch_dtype(part) for part in parts[1:]]
    if nested and (types[0] != torch.uint8 or files.shape(parts[3]) != (_SCALE_LEVELS,)):
        raise unknown(files, name, f"its scales are not in 8 bits with {_SCALE_LEVELS} levels")
    if not all(dtype.is_floating_point for dtype in types[nested:]):
        raise unknown(files, name, f"its scales are {', '.join(files.dtype(part) for part in parts[1 + nested :])}")

    kept = Nf4Matrix.format if inner % state.block == 0 else None

    def load(files: SafetensorsFiles) -> Tensor | QuantisedMatrix:
        values = files.read(name).view(torch.uint8).flatten()
        tensors = {"values": values, **_scales(files, name, state)}
        if kept:
            return Nf4Matrix((out, inner), tensors)
        # Blocks run over the ends of rows: the matrix is dequantised as one of a block a row.
        return Nf4Matrix((blocks, state.block), tensors).dequantise(state.dtype).view(out, inner)

    words = "bitsandbytes NF4, scales in 8 bits" if nested else "bitsandbytes NF4"
    return StoredTensor(words, state.shape, (name, *parts, name + _STATE + "nf4"), load, kept)


def _scales(files: SafetensorsFiles, name: str, state: _Nf4State) -> dict[str, Tensor]:
    """The scales as `Nf4Matrix` has them."""
    scale = files.read(f"{name}.absmax")
    if not state.scale_block:
        return {"scale": scale.float()}
    levels, outer = (files.read(f"{name}.{part}").float() for part in ("nested_quant_map", "nested_absmax"))
    offset = torch.tensor(state.offset, dtype=torch.float32)
    if state.scale_block == SCALE_BLOCK:
        return {"scale": scale, "scale_levels": levels, "scale_scale": outer, "scale_offset": offset}
    return {"scale": levels[scale.int()] * outer.repeat_interleave(state.scale_block)[: scale.numel()] + offset}
