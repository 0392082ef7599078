"""From a name to a loaded checkpoint: the embedded model, a folder, or the hub; device and precision."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bagel_mot.checkpoint.hub.download import download
from bagel_mot.checkpoint.names import official_name
from bagel_mot.checkpoint.official import (
    TASKS,
    Checkpoint,
    embedding_dtype,
    folder_of,
    load_checkpoint,
    model_file,
    needed,
    read_config,
    stored_format,
    weight_bytes,
)
from bagel_mot.checkpoint.precision import PLAIN, Precision, check_hardware, parse_precision
from bagel_mot.checkpoint.source import SafetensorsFiles, TensorSource, open_source
from bagel_mot.errors import CheckpointError, DeviceError, SettingError
from bagel_mot.files import parse_size
from bagel_mot.model.bagel import BagelModel
from bagel_mot.placement.offload import apply
from bagel_mot.placement.oom import explained
from bagel_mot.placement.plan import Machine, Plan, choose, plans, this_machine

MINI = "mini"
MINI_FOLDER = Path(__file__).parent.parent / "worlds" / "mini" / "weights"
AUTOMATIC = ("bfloat16", "int8", "fp8", "int4", "nf4")
"""Precisions that are chosen from for large checkpoints: what they cost is known (docs/precision.md)."""
_FOUR_BITS = ("int4", "nf4")
OFFLOADS = ("auto", "none", "cpu", "disk")
_LARGE = 10**9  # bytes
_WEIGHT_FILES = (".safetensors", ".json", ".gguf")


def find_checkpoint(name: str | os.PathLike[str]) -> Path:
    """The local place of a checkpoint: "mini", a folder, a file with weights in one, or a hub id, which is downloaded
    where it is not cached.

    Raises:
        CheckpointError: there is none, or it cannot be downloaded.
    """
    text = os.fspath(name)
    if text == MINI:
        if not MINI_FOLDER.is_dir():
            raise CheckpointError(f"the embedded model is missing from {MINI_FOLDER}: install the package anew.")
        return MINI_FOLDER
    place = Path(text).expanduser()
    if place.is_dir() or (place.is_file() and place.suffix in _WEIGHT_FILES):
        return place
    if isinstance(name, str) and re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", text):
        return download(text)
    raise CheckpointError(
        f"{text!r} is no checkpoint: give 'mini', a checkpoint folder, a file with weights in one "
        f"({', '.join(_WEIGHT_FILES)}), or a hub id such as 'owner/name'."
    )


def choose_device(device: str | torch.device) -> torch.device:
    """
    Raises:
        DeviceError: unknown, or not to be had here.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise DeviceError(f"device is {device!r}: it must be 'auto', 'cpu', 'cuda', 'cuda:0' or 'mps'.") from error
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (chosen.index or 0) >= count:
            raise DeviceError(f"device is {str(chosen)!r}, but PyTorch finds {count} CUDA devices here; try 'cpu'.")
    elif chosen.type == "mps":
        if not torch.backends.mps.is_available():
            raise DeviceError("device is 'mps', but this machine or build of PyTorch does not offer it; try 'cpu'.")
    elif chosen.type != "cpu":
        raise DeviceError(f"device is {str(chosen)!r}: it must be 'auto', 'cpu', 'cuda' or 'mps'.")
    return chosen


def choose_precision(precision: str | torch.dtype, device: torch.device, where: Path) -> Precision:
    """In what the parts of a model are kept. "auto" is as it is stored, if that is in few bits; else bfloat16 on
    accelerators and for large checkpoints, and float32.

    CUDA devices that only emulate bfloat16 (before compute capability 8) get float32, or float16 for large checkpoints:
    in float32 these would not fit. Activations beyond 65504 overflow in float16, so bfloat16 is the first choice.

    Raises:
        DeviceError: unknown, or the device cannot compute in it.
    """
    half = torch.float16 if device.type == "cuda" and not _has_bfloat16(device) else torch.bfloat16
    if precision == "auto" and (stored := stored_format(open_source(model_file(where)))) is not None:
        chosen = Precision(half, {"decoder": stored})
        check_hardware(chosen, device)
        return chosen
    if precision == "auto":
        large = weight_bytes(where) > _LARGE
        emulated = device.type == "cuda" and half == torch.float16
        if not large and (device.type == "cpu" or emulated):
            half = torch.float32
        return Precision(half)
    text = str(precision).removeprefix("torch.") if isinstance(precision, torch.dtype) else precision
    chosen = parse_precision(text, activations=half)
    check_hardware(chosen, device)
    return chosen


def _has_bfloat16(device: torch.device) -> bool:
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


@dataclass(frozen=True)
class Loaded:
    """A checkpoint ready to run.

    Attributes:
        checkpoint: with its weights in place.
        folder: where it comes from.
        plan: how it runs, where that was to be found out.
        alternatives: the other plans that would run on this machine, the best first, for advice when memory is short.
    """

    checkpoint: Checkpoint
    folder: Path
    plan: Plan | None
    alternatives: Sequence[Plan]


def load(
    name: str | os.PathLike[str],
    precision: str | torch.dtype,
    device: str | torch.device,
    tasks: Collection[str] = TASKS,
    *,
    offload: str = "auto",
    memory: int | str | None = None,
    pack: bool = True,
) -> Loaded:
    """Loads a checkpoint for inference. Arguments and errors as `Bagel.from_pretrained`.

    On the CPU the weights of the model are packed where that pays, unless `pack` is false: what is packed cannot be
    compiled.
    """
    _check_arguments(precision, device, memory)
    if offload not in OFFLOADS:
        raise SettingError(f"offload is {offload!r}: it must be {', '.join(map(repr, OFFLOADS))}.")
    needed(tasks)
    where = find_checkpoint(name)
    plan: Plan | None = None
    alternatives: Sequence[Plan] = ()
    if memory is not None or offload in ("cpu", "disk") or weight_bytes(where) > _LARGE:
        machine = _machine(device, memory)  # as it is before anything is loaded
        alternatives = _plans(where, "auto", tuple(tasks), "auto", machine)
        found = _plans(where, precision, tuple(tasks), offload, machine)
        # A precision that was asked for by name is not refused because the largest images would find no room.
        plan = choose(found, machine, every_workload=precision == "auto", others=alternatives)
        computes, chosen = plan.placement.device, plan.precision
    else:
        computes = choose_device(device)
        chosen = choose_precision(precision, computes, where)
    try:
        checkpoint = load_checkpoint(
            where,
            precision=chosen,
            device=computes if plan is None else plan.placement.device_of,
            tasks=tasks,
            pack=pack and computes.type == "cpu",
        )
        if plan is not None and (plan.offload != "none" or len(plan.devices) > 1):
            apply(checkpoint.model, plan.placement)
    except Exception as error:
        shortage = explained(error, computes, plan, alternatives)
        if shortage is error:
            raise
        traceback.clear_frames(error.__traceback__)  # which hold what has been loaded
        raise shortage from error
    return Loaded(checkpoint, folder_of(where), plan, alternatives)


def _check_arguments(precision: object, device: object, memory: object) -> None:
    """Before anything is fetched.

    Raises:
        SettingError: one of them is of a type that it cannot be, or the memory is no size.
        DeviceError: the precision or the device is unknown, or not to be had here.
    """
    if not isinstance(precision, str | torch.dtype):
        raise SettingError(f"precision is {precision!r}: it must be a name such as 'bfloat16', or a torch.dtype.")
    if not isinstance(device, str | torch.device):
        raise SettingError(f"device is {device!r}: it must be a name such as 'cpu', or a torch.device.")
    if isinstance(memory, bool) or not (memory is None or isinstance(memory, int | str)):
        raise SettingError(f"memory is {memory!r}: it must be a number of bytes, or a text such as '12GB'.")
    if isinstance(memory, str):
        parse_size(memory)
    if device != "auto":
        choose_device(device)
    if precision != "auto":
        parse_precision(str(precision).removeprefix("torch."))


def _machine(device: str | torch.device, memory: int | str | None) -> Machine:
    allowed = parse_size(memory) if isinstance(memory, str) else memory
    return this_machine(usable_devices() if device == "auto" else [choose_device(device)], allowed)


def _plans(
    where: Path, precision: str | torch.dtype, tasks: tuple[str, ...], offload: str, machine: Machine
) -> list[Plan]:
    """The ways of running a checkpoint on a machine, the best first."""
    source = open_source(model_file(where))
    stored = dtype_of_layers(source)
    if offload == "disk" and stored not in (None, *PLAIN.values()):
        kept = str(stored).removeprefix("torch.")
        raise DeviceError(
            f"offload is 'disk', which computes with weights as they are stored, but {where} has them in {kept}: "
            f"convert it (`bagel convert`) to one of {', '.join(PLAIN)}."
        )
    if precision == "auto" and offload == "disk" and stored is not None:
        precisions = [str(stored).removeprefix("torch.")]
    elif precision == "auto":
        precisions = automatic_precisions(where, [device for device, _ in machine.devices])
    else:
        precisions = [choose_precision(precision, machine.devices[0][0], where).name]
    # "cpu" takes as many layers as find no room; "disk" is what was asked for, room or not.
    offloads = {"auto": ("none", "cpu", "disk"), "cpu": ("none", "cpu")}.get(offload, (offload,))
    found = plans(
        read_config(where, source),
        machine,
        tasks,
        precisions=precisions,
        stored=stored,
        embedding=embedding_dtype(source),
        stored_as=stored_format(source),
        offloads=offloads,
    )
    if not found and offload == "disk":
        kept = "in several types or in few bits" if stored is None else f"in {str(stored).removeprefix('torch.')}"
        raise DeviceError(
            f"offload is 'disk', which uses plain safetensors weights as they are stored, but {where} has its weights "
            f"{kept}, and precision is {precision!r}."
        )
    return found


def dtype_of_layers(source: TensorSource) -> torch.dtype | None:
    """In what a checkpoint keeps its layers: what plain files have for all of them, else None."""
    if not isinstance(source, SafetensorsFiles):
        return None
    beginning = official_name("decoder.layers.0.und.q.weight").partition("0.")[0]
    kinds = {source.torch_dtype(name) for name in source.names() if name.startswith(beginning)}
    return kinds.pop() if len(kinds) == 1 else None


def usable_devices() -> list[torch.device]:
    """The accelerators here, and the CPU."""
    found = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append(torch.device("mps"))
    return [*found, torch.device("cpu")]


def automatic_precisions(where: Path, devices: Sequence[torch.device]) -> list[str]:
    """Those that come into question: as it is stored, if that is in few bits or small, and what is smaller than few
    bits; all for large checkpoints.
    """
    emulated = any(device.type == "cuda" and not _has_bfloat16(device) for device in devices)
    if (stored := stored_format(open_source(model_file(where)))) is not None:
        fewer = () if stored in _FOUR_BITS else _FOUR_BITS
        return [f"{name},activations=float16" if emulated else name for name in (stored, *fewer)]
    if weight_bytes(where) <= _LARGE:
        return [choose_precision("auto", devices[0], where).name]
    if emulated:
        return ["float16", *(f"{name},activations=float16" for name in AUTOMATIC[1:])]
    return list(AUTOMATIC)


def compile_experts(model: BagelModel) -> None:
    """Runs `torch.compile` on everything in a layer but the softmax; the number of tokens stays free."""
    for layer in model.decoder.layers:
        for expert in filter(None, (layer.und, layer.gen)):
            for method in ("project", "finish"):
                setattr(expert, method, torch.compile(getattr(expert, method), dynamic=True))
