"""Modules filled from a source of tensors, one tensor at a time: cast, quantised, placed.

Strictly: a missing, extra or misshapen tensor is an error that names it. Only the two fixed position tables may be
missing (they are rebuilt from their formula); where they are present they are checked against it. A tensor
is quantised at once: memory never holds the whole model as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor, nn

from bagel_mot.checkpoint.names import POSITION_TABLES
from bagel_mot.checkpoint.precision import DYNAMIC, PARTS, Precision, format_of
from bagel_mot.checkpoint.read_ahead import LARGEST_AHEAD, read_ahead
from bagel_mot.checkpoint.source import TensorSource, as_stored, as_tensor, check_finite
from bagel_mot.checkpoint.write import Advance
from bagel_mot.errors import CheckpointError, DeviceError
from bagel_mot.model.bagel import sincos_table
from bagel_mot.model.joined import join
from bagel_mot.model.prepacked import prepack_linear
from bagel_mot.model.quant import FORMATS, QuantisedMatrix, RowScaledMatrix
from bagel_mot.model.quant.linear import QuantisedEmbedding, QuantisedLinear

# Bytes of the largest tensors that are always checked. Larger ones are where they are quantised, by their scales;
# elsewhere numbers that are not finite are found at work.
_ALWAYS_CHECKED = 1 << 24
_TABLE_TOLERANCE = 8e-3  # error of a table in bfloat16, which the type does not tell: others are made from such files
_COARSE_TABLE_TOLERANCE = 0.15  # error of a table in 4 to 8 bits

DeviceOf = Callable[[str], "torch.device | None"]
"""The device that a tensor (our name) goes to; None leaves it a view of its file."""


def on_device(device: torch.device | str) -> DeviceOf:
    """All tensors on one device."""
    single = torch.device(device)
    return lambda name: single


def load_tensors(
    module: nn.Module,
    source: TensorSource,
    precision: Precision,
    device_of: DeviceOf,
    *,
    name_of: Callable[[str], str] = str,
    known: Collection[str] = (),
    prepack: bool = False,
    advance: Advance | None = None,
) -> None:
    """Fills a module that was built on the meta device, strictly.

    Args:
        module: the module to fill.
        source: the source of its tensors.
        precision: the precision of its parts, which go by our names of a `BagelModel`.
        device_of: tells the device of each tensor.
        name_of: our names to those of the source.
        known: further names that the source may have.
        prepack: keep matrices of the CPU in the order in which it multiplies them (`bagel_mot.model.prepacked`).
        advance: called with the stored bytes of each tensor that is in its place; what it raises ends the filling.

    Raises:
        CheckpointError: a tensor is missing, extra or misshapen, a small one or one that is quantised is not finite, or
            a position table is not that of its formula.
    """
    state = module.state_dict()
    wanted = {name_of(name): name for name in state}
    optional = set(POSITION_TABLES.values()) & wanted.keys()
    present = set(source.names())
    check_tensors(source, {theirs: tuple(state[ours].shape) for theirs, ours in wanted.items()}, known)
    for missing in optional - present:
        table = sincos_table(isqrt(state[wanted[missing]].shape[0]), state[wanted[missing]].shape[1])
        place = device_of(wanted[missing]) or torch.device("cpu")
        _assign(module, wanted[missing], table.to(device=place, dtype=precision.activations))
    # Tensors that take most memory beside themselves come first: tables, whose formula is in float64, and large ones.
    names = sorted(
        (n for n in wanted if n in present),
        key=lambda n: (n not in optional, -source.stored_bytes(n) // LARGEST_AHEAD, n),
    )
    mapped = [n for n in names if device_of(wanted[n]) is None]
    for theirs in mapped:
        _assign(module, wanted[theirs], _left_in_file(source, theirs, precision.activations))
        if advance is not None:
            advance(source.stored_bytes(theirs))

    def passes(theirs: str) -> bool:
        """Whether nothing stays of a tensor as it is read, be it rounded or copied to another device."""
        stored, place = precision.stored_as(wanted[theirs]), device_of(wanted[theirs])
        if stored is None or place is None or place.type != "cpu":
            return place is not None and place.type != "cpu"
        shape = source.shape(theirs)
        return source.format(theirs) is None and FORMATS[format_of(stored)].fits((shape[0], shape[1]))

    for theirs, found in read_ahead(source, [n for n in names if n not in set(mapped)], passes):
        ours = wanted[theirs]
        if ours in POSITION_TABLES:
            found = checked_table(source, theirs, found)
        elif source.stored_bytes(theirs) <= _ALWAYS_CHECKED:
            check_finite(source.where, theirs, found)
        target = device_of(ours)
        assert target is not None
        found = _in_precision(ours, found, precision, target)
        if precision.stored_as(ours) is not None:
            check_finite(source.where, theirs, found)  # a value that is not finite makes its scale so
        _install(module, ours, found, precision, prepack)
        del found
        if advance is not None:
            advance(source.stored_bytes(theirs))


def _left_in_file(source: TensorSource, name: str, dtype: torch.dtype) -> Tensor:
    """A tensor as a view of its file.

    Raises:
        CheckpointError: it is not stored in the precision that is wanted.
    """
    tensor = source.mapped(name)
    if tensor is None:
        raise CheckpointError(
            f"{source.where} is {source.kind}; only plain safetensors files can be used from the disk"
        )
    if tensor.dtype != dtype:
        raise CheckpointError(
            f"{source.where}: {name} is {tensor.dtype}, not {dtype}; used from the disk a checkpoint stays as it is"
        )
    return tensor


def _in_precision(
    name: str, found: Tensor | QuantisedMatrix, precision: Precision, device: torch.device
) -> Tensor | QuantisedMatrix:
    """A tensor (our name) in its precision on a device."""
    stored = precision.stored_as(name)
    if stored is None:
        return as_tensor(found, precision.activations).to(device)
    kind = FORMATS[format_of(stored)]
    if not isinstance(found, kind):
        # Where rounding is slow on the CPU an accelerator does it, one matrix at a time.
        plain = as_stored(found, torch.bfloat16).to(device)
        if not kind.fits((plain.shape[0], plain.shape[1])):
            if not PARTS["decoder"].fullmatch(name):  # it was named, and would be left as it is for the most part
                raise DeviceError(
                    f"precision is {precision.name!r}, but {name} of {plain.shape[0]}×{plain.shape[1]} cannot be "
                    f"stored so: name int8 or fp8 for this part, which take any size."
                )
            return plain.to(precision.activations)
        found = kind.quantise(plain)
    return kind(found.shape, {key: tensor.to(device) for key, tensor in found.tensors.items()})


def _install(
    module: nn.Module, name: str, found: Tensor | QuantisedMatrix, precision: Precision, prepack: bool
) -> None:
    """Puts one tensor, as `_in_precision` makes it, in its place; a quantised matrix brings its own module."""
    parent_name, _, leaf = name.rpartition(".")
    stored = precision.stored_as(name)
    if isinstance(found, Tensor):
        _assign(module, name, found)
        if prepack and leaf == "weight" and stored is None:
            _prepack(module, parent_name)
        return
    assert stored is not None
    place, _, last = parent_name.rpartition(".")
    plain_module = module.get_submodule(parent_name)
    quantised: nn.Module
    if isinstance(plain_module, nn.Embedding):
        assert isinstance(found, RowScaledMatrix)
        quantised = QuantisedEmbedding(found, precision.activations)
    else:
        bias = getattr(plain_module, "bias", None)
        quantised = QuantisedLinear(found, bias, precision.activations, dynamic=stored.endswith(DYNAMIC))
    setattr(module.get_submodule(place), last, quantised)


def _prepack(module: nn.Module, name: str) -> None:
    """Prepacks a linear map that has its values: with those that it is joined with, as soon as all have theirs."""
    place, _, leaf = name.rpartition(".")
    owner = module.get_submodule(place)
    for joined, parts in getattr(owner, "JOINED", {}).items():
        if leaf in parts:
            setattr(owner, joined, join(owner, parts, prepack=True))
            return
    prepack_linear(module, name)


def check_tensors(source: TensorSource, wanted: Mapping[str, tuple[int, ...]], known: Collection[str] = ()) -> None:
    """Compares the tensors of a source with those that are wanted, without reading them.

    Args:
        source: the source of tensors.
        wanted: the shapes of the wanted tensors by official name.
        known: further names that the source may have.

    Raises:
        CheckpointError: a tensor is missing (other than a fixed position table), extra or misshapen.
    """
    present = set(source.names())
    _refuse(source.where, "lacks", sorted(wanted.keys() - present - set(POSITION_TABLES.values())))
    _refuse(source.where, "has an unknown tensor", sorted(present - wanted.keys() - set(known)))
    for name in wanted.keys() & present:
        stored, shape = list(source.shape(name)), list(wanted[name])
        if stored != shape:
            raise CheckpointError(f"{source.where}: {name} is {stored}; the configuration makes it {shape}")


def _refuse(path: Path, what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise CheckpointError(
            f"{path} {what}: {names[0]}{more}; the configuration and the weights do not belong together"
        )


def checked_table(source: TensorSource, name: str, found: Tensor | QuantisedMatrix) -> Tensor:
    """A position table, if it is that of its formula; the formula's own, if it was stored quantised.

    Raises:
        CheckpointError: it is another table.
    """
    rows, width = source.shape(name)
    formula = sincos_table(isqrt(rows), width)
    coarse = source.stored_bytes(name) < 2 * rows * width or isinstance(found, QuantisedMatrix)
    table = as_stored(found)
    low, high = torch.sub(table, formula).aminmax()
    error = max(-low.item(), high.item())
    tolerance = _COARSE_TABLE_TOLERANCE if coarse else _TABLE_TOLERANCE
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


def quantise(model: nn.Module, precision: Precision) -> None:
    """Quantises the matrices of a model in memory as a precision says."""
    for name, parameter in list(model.named_parameters()):
        if precision.stored_as(name) is not None:
            found = _in_precision(name, parameter.detach(), precision, parameter.device)
            _install(model, name, found, precision, False)
