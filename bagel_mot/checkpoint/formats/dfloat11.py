"""DFloat11: bfloat16 without loss in about 11 bits, decoded bit for bit when it is read.

The exponents of one matrix, or of all the matrices of a layer one behind the other, are in one Huffman code. M is the
module: the linear map or embedding itself, or the layer.

    M.encoded_exponent   uint8, the codes (`bagel_mot.checkpoint.formats.exponents`)
    M.sign_mantissa      uint8 (n,), the other eight bits of each weight
    M.luts               uint8 (tables + 1, 256), the code
    M.gaps               uint8, 5 bits for each 64 bits of codes
    M.output_positions   bytes of uint32 (blocks + 1,): the first weight of each block of codes, and n
    M.split_positions    int64: where, of all weights in a row, a new matrix starts

Which matrices a layer's are and how large a block is says `dfloat11_config` in config.json; how the weights of a matrix
lie in rows, the shape of the model. The package writes one file for each module and one for the rest, and no index.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from functools import lru_cache, partial
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bagel_mot.checkpoint.formats.exponents import CHUNK_BYTES, CodeTable, DamagedCodes, join, read_gaps
from bagel_mot.checkpoint.formats.quantised_layouts import StoredTensor, unknown
from bagel_mot.checkpoint.names import official_name
from bagel_mot.checkpoint.shapes import model_shapes
from bagel_mot.checkpoint.source import SafetensorsFiles, read_header
from bagel_mot.config import load_config
from bagel_mot.errors import CheckpointError
from bagel_mot.files import read_json

_CODES = ".encoded_exponent"
_NUMBER = "#"
_LAYOUT = "DFloat11 (bfloat16 without loss in 11 bits)"
_OTHERS = ("sign_mantissa", "luts", "gaps", "output_positions", "split_positions")
# Chunks of codes that are read at a time: on the CPU their numbers stay in the cache, a GPU wants enough to do.
_CHUNKS = {"cpu": 1 << 14, "cuda": 1 << 18}


def add_further_files(files: SafetensorsFiles) -> None:
    """Adds the files with codes beside one that holds the rest of a model in DFloat11."""
    path = files.where
    if path.suffix == ".json" or not _settings(path.parent):
        return
    if not any(name in files.names() for name in _shapes(path.parent)):
        return  # the autoencoder, say
    for other in sorted(path.parent.glob("*.safetensors")):
        if other != path:
            found = read_header(other)
            if any(name.endswith(_CODES) for name in found):
                files.add(found)


def recognise(files: SafetensorsFiles) -> dict[str, StoredTensor]:
    """The matrices that are in DFloat11, by official name; none if the files are of another layout.

    Raises:
        CheckpointError: something of them is missing, or does not fit.
    """
    modules = [name.removesuffix(_CODES) for name in files.names() if name.endswith(_CODES)]
    if not modules:
        return {}
    folder = files.where.parent
    settings, shapes = _settings(folder), _shapes(folder)
    if settings is None:
        raise CheckpointError(
            f"{files.where} is in DFloat11, but {folder / 'config.json'} has no dfloat11_config, "
            "which says whose codes they are; download it anew"
        )
    block, patterns = _checked(files.where, settings)
    decoder = _WeightDecoder(files, block)
    found: dict[str, StoredTensor] = {}
    for module in modules:
        found |= _matrices(files, module, patterns, shapes, decoder)
    return found


def _matrices(
    files: SafetensorsFiles,
    module: str,
    patterns: dict[str, list[str]],
    shapes: dict[str, tuple[int, ...]],
    decoder: _WeightDecoder,
) -> dict[str, StoredTensor]:
    """The matrices of a module by official name."""
    parts = (module + _CODES, *(f"{module}.{other}" for other in _OTHERS))
    missing = next((part for part in parts if part not in files.names()), None)
    if missing is not None:
        raise CheckpointError(f"{files.where} lacks {missing}, which DFloat11 needs; download it anew")
    names = [f"{module}.weight"]
    if names[0] not in shapes:
        inner = patterns.get(module) or patterns.get(re.sub(r"\d+", _NUMBER, module), [])
        names = [f"{module}.{path}.weight" for path in inner]
    count = files.shape(f"{module}.sign_mantissa")[0]
    borders = [0, *files.read(f"{module}.split_positions").tolist(), count]
    if len(names) != len(borders) - 1 or any(name not in shapes for name in names):
        reason = f"it is of {len(borders) - 1} matrices, which dfloat11_config does not name"
        raise unknown(files, module + _CODES, reason)
    found = {}
    for name, start, stop in zip(names, borders, borders[1:], strict=False):
        if stop - start != prod(shapes[name]):
            raise CheckpointError(
                f"{files.where}: {name} has {stop - start} weights; the configuration makes it {list(shapes[name])}"
            )
        load = partial(decoder.read, name, shapes[name], module, start)
        size = stop - start + (stop - start) * files.stored_bytes(module + _CODES) // count
        found[name] = StoredTensor(_LAYOUT, shapes[name], parts, load, None, nbytes=size)
    return found


class _WeightDecoder:
    """Decodes weights, on the GPU where CUDA has one.

    Args:
        files: the tensors as they are stored.
        block: the number of chunks in a block.
    """

    def __init__(self, files: SafetensorsFiles, block: int) -> None:
        self._files, self._block = files, block
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._table = lru_cache(maxsize=64)(lambda module: CodeTable(files.read(f"{module}.luts").to(self._device)))

    def read(self, name: str, shape: tuple[int, ...], module: str, start: int, files: SafetensorsFiles) -> Tensor:
        """A matrix of a module, bfloat16 on the CPU; its weights begin at `start` there."""
        try:
            return self._decode(module, start, start + prod(shape)).view(shape)
        except DamagedCodes as error:
            raise CheckpointError(
                f"{files.where}: {name} cannot be decoded from DFloat11 (damaged?): it has {error}"
            ) from error

    def _decode(self, module: str, start: int, stop: int) -> Tensor:
        """The weights start..stop of a module, (n,) bfloat16 on the CPU."""
        files, chunks = self._files, self._block
        borders = files.read(f"{module}.output_positions").view(torch.uint8).view(torch.int32).tolist()
        borders = [border & 0xFFFFFFFF for border in borders]
        first, last = bisect_right(borders, start) - 1, bisect_left(borders, stop)
        table = self._table(module)
        result = torch.empty(stop - start, dtype=torch.bfloat16)
        blocks = max(1, _CHUNKS[self._device.type] // chunks)
        for block in range(first, last, blocks):
            end = min(last, block + blocks)
            count = (end - block) * chunks
            codes = files.read_part(module + _CODES, block * chunks * CHUNK_BYTES, (end * chunks + 1) * CHUNK_BYTES)
            gaps = files.read_part(f"{module}.gaps", block * chunks * 5 // 8, end * chunks * 5 // 8)
            if len(gaps) != count * 5 // 8:
                raise DamagedCodes("fewer gaps than blocks")
            codes = F.pad(codes, (0, (count + 1) * CHUNK_BYTES - len(codes))).view(-1, CHUNK_BYTES).to(self._device)
            exponents, numbers = table.decode(codes, read_gaps(gaps.to(self._device)))
            # The last block is filled up with bits that mean nothing; all others must have what they should.
            found = numbers.view(-1, chunks).sum(1).cumsum(0).tolist()
            wanted = [border - borders[block] for border in borders[block + 1 : end + 1]]
            if found[:-1] != wanted[:-1] or found[-1] < wanted[-1] or (end < len(borders) - 1 and found != wanted):
                raise DamagedCodes("another number of codes than it should")
            one, other = max(borders[block], start), min(borders[end], stop)
            others = files.read_part(f"{module}.sign_mantissa", one, other).to(self._device)
            exponents = exponents[one - borders[block] : other - borders[block]]
            result[one - start : other - start] = join(exponents, others)
        return result


def _settings(folder: Path) -> Any:
    """`dfloat11_config` of config.json; None if there is none."""
    try:
        return read_json(folder / "config.json", CheckpointError).get("dfloat11_config")
    except CheckpointError:
        return None


def _checked(where: Path, settings: Any) -> tuple[int, dict[str, list[str]]]:
    """The chunks in a block, and the linear maps within modules by a pattern of their names, from `dfloat11_config`."""
    try:
        threads, size = settings["threads_per_block"], int(settings["bytes_per_thread"])
        block = int(threads[0] if isinstance(threads, list) else threads)
        patterns = {str(p): [str(path) for path in paths] for p, paths in settings["pattern_dict"].items()}
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise CheckpointError(
            f"{where.parent / 'config.json'}: dfloat11_config is incomplete or damaged ({error!r}); download it anew"
        ) from error
    if size != CHUNK_BYTES or block < 8 or block % 8:
        raise CheckpointError(
            f"{where}: DFloat11 with {size} bytes a thread and {block} threads a block; "
            f"{CHUNK_BYTES} bytes and a multiple of 8 threads are read"
        )
    return block, {_plain_pattern(where, pattern): paths for pattern, paths in patterns.items()}


def _plain_pattern(where: Path, pattern: str) -> str:
    """A pattern of module names with `_NUMBER` for its numbers. It is never run as the regular expression that it is:
    one from a hostile checkpoint could take for ever. In published ones `\\d+` is all that is no plain character.

    Raises:
        CheckpointError: the pattern is anything else.
    """
    plain = pattern.strip("^$").replace(r"\d+", _NUMBER).replace("[0-9]+", _NUMBER).replace(r"\.", ".")
    if not re.fullmatch(r"[\w.#-]*", plain):
        raise CheckpointError(
            f"{where.parent / 'config.json'}: dfloat11_config names modules by {pattern[:80]!r}; names with \\d+ in "
            "the place of a number are read"
        )
    return plain


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's tensors by official name, as its configuration makes them."""
    return {official_name(name): tuple(shape) for name, shape in model_shapes(load_config(folder)).items()}
