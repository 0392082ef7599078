"""From a name to a loaded checkpoint: the embedded model, a folder, or the hub; device and precision."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from bagel_mot.checkpoint.adapters import WEIGHTS_FILE, read_adapter
from bagel_mot.checkpoint.hub.download import download, download_adapter
from bagel_mot.checkpoint.official import TASKS, Checkpoint, load_checkpoint, needed, read_config
from bagel_mot.checkpoint.opening import StoredWeights, open_checkpoint, stored_weights
from bagel_mot.checkpoint.precision import PLAIN, Precision, check_hardware, dtype_name, parse_precision
from bagel_mot.checkpoint.shapes import weight_count
from bagel_mot.checkpoint.side_files import ADAPTER_FILE
from bagel_mot.checkpoint.write import ByteProgress
from bagel_mot.config import BagelConfig
from bagel_mot.errors import CheckpointError, DeviceError, SettingError
from bagel_mot.files import parse_size, user_path
from bagel_mot.model import kernels
from bagel_mot.model.adapters import Adapter
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.decoder import Expert
from bagel_mot.model.passes import LEAST_WIDTH, compiled, to_be_compiled
from bagel_mot.model.quant.compiling import prepare_compiling
from bagel_mot.placement.offload import apply
from bagel_mot.placement.oom import MemoryGuard
from bagel_mot.placement.plan import Machine, Plan, check_preference, choose, plans, this_machine
from bagel_mot.threads import Threads, choose_threads

MINI = "mini"
MINI_FOLDER = Path(__file__).parent.parent / "worlds" / "mini" / "weights"
AUTOMATIC = ("bfloat16", "int8", "fp8", "int4", "nf4")
"""Precisions to choose from for large checkpoints: what they cost is known (docs/precision.md)."""
_FOUR_BITS = ("int4", "nf4")
OFFLOADS = ("auto", "none", "cpu", "disk")
_LARGE = 10**9  # bytes
_MOST_SHAPES = 256  # numbers of slots are rounded up to no more than 48 sizes, but experts may differ in other ways
_WEIGHT_FILES = (".safetensors", ".json", ".gguf")
_FILE_ENDINGS = {*_WEIGHT_FILES, ".bin", ".pt", ".pth", ".ckpt", ".zip", ".txt", ".yaml", ".yml", ".png", ".jpg"}


OnLoad = Callable[[str, int, int], None]
"""Called with what is done ("downloading", "compiling" or "loading"), the bytes done and the bytes in all. Compiling is
told where it is to be done, with 0 and 1 of 1. What it raises ends the loading: nothing is kept but what has been
downloaded, which is continued the next time."""


def find_checkpoint(name: str | os.PathLike[str], progress: ByteProgress | None = None) -> Path:
    """The local place of a checkpoint: "mini", a folder, a file with weights in one, or a hub id, which is downloaded
    where it is not cached.

    Args:
        name: the checkpoint.
        progress: told bytes received and bytes in all, if something is downloaded.

    Raises:
        CheckpointError: there is none, or it cannot be downloaded.
    """
    found = locate(name)
    return download(found, progress=progress) if isinstance(found, str) else found


def find_adapter(place: str | os.PathLike[str]) -> Path:
    """The folder of an adapter: that folder, the newest of a training run's folder, or a hub id, which is downloaded
    where it is not cached.

    Raises:
        CheckpointError: there is none, or it cannot be downloaded.
    """
    text = os.fspath(place)
    folder = user_path(text, CheckpointError)
    if not folder.exists() and isinstance(place, str) and is_hub_id(text.strip()):
        return download_adapter(text.strip(), (ADAPTER_FILE, WEIGHTS_FILE))
    if (folder / ADAPTER_FILE).is_file():
        return folder
    if steps := sorted(folder.glob(f"step-*/{ADAPTER_FILE}")):
        return steps[-1].parent
    found = "there is no such folder" if not folder.exists() else f"it has no {ADAPTER_FILE}"
    raise CheckpointError(
        f"{text!r} is not an adapter: {found}; give the folder of an adapter, that of a run that trains one, or a hub "
        "id such as 'owner/name'"
    )


def locate(name: str | os.PathLike[str]) -> Path | str:
    """The local place of a checkpoint, or its hub id where it is not on this machine.

    Raises:
        CheckpointError: it is neither.
    """
    text = os.fspath(name)
    if isinstance(name, str) and not os.path.lexists(text):
        text = text.strip()
    if text == MINI:
        if not MINI_FOLDER.is_dir():
            raise CheckpointError(f"the embedded model is missing from {MINI_FOLDER}: install the package anew.")
        return MINI_FOLDER
    place = user_path(text, CheckpointError) if text else None
    if place is not None and (place.is_dir() or (place.is_file() and place.suffix in _WEIGHT_FILES)):
        return place
    if isinstance(name, str) and is_hub_id(text):
        return text
    reason = ""
    if place is not None and place.exists():
        reason = " but a file of another kind"
    elif "/" in text or os.sep in text:
        reason = ": there is no such file or folder"
    raise CheckpointError(
        f"{text!r} is not a checkpoint{reason}: give 'mini', a checkpoint folder, a file with weights in one "
        f"({', '.join(_WEIGHT_FILES)}), or a hub id such as 'owner/name'."
    )


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a hub id, 'owner/name', and not that of a path: it begins with no folder that is
    here, and ends as no file does.
    """
    if re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", text) is None:
        return False
    return not os.path.lexists(text.partition("/")[0]) and Path(text).suffix.lower() not in _FILE_ENDINGS


def choose_device(device: str | torch.device) -> torch.device:
    """The device of a name; "auto" is the best that there is.

    Raises:
        DeviceError: it is unknown, or not to be had here.
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


def choose_precision(precision: str | torch.dtype, device: torch.device, stored: StoredWeights) -> Precision:
    """The precision of a model's parts. "auto" is as the weights are stored, if that is quantised; else bfloat16 on
    accelerators and for large checkpoints, and float32.

    Devices without bfloat16 of their own (CUDA before compute capability 8, MPS before macOS 14) get float32, or
    float16 for large checkpoints: in float32 these would not fit. Activations beyond 65504 overflow in float16, so
    bfloat16 is the first choice.

    Args:
        precision: "auto", a name as `parse_precision` takes, or a type.
        device: the device that computes.
        stored: the types in which the checkpoint stores its weights.

    Raises:
        DeviceError: the precision is unknown, or the device cannot compute in it.
    """
    emulated = not _has_bfloat16(device)
    half = torch.float16 if emulated else torch.bfloat16
    if precision != "auto":
        text = dtype_name(precision) if isinstance(precision, torch.dtype) else precision
        chosen = parse_precision(text, activations=half)
    elif stored.format is not None:
        chosen = Precision(half, {"decoder": stored.format})
    else:
        small = stored.nbytes <= _LARGE and (device.type == "cpu" or emulated)
        chosen = Precision(torch.float32 if small else half)
    check_hardware(chosen, device)
    return chosen


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "mps" and torch.backends.mps.is_available():
        return torch.backends.mps.is_macos_or_newer(14, 0)
    return True


@dataclass(frozen=True)
class Loaded:
    """A checkpoint ready to run.

    Attributes:
        checkpoint: the checkpoint with its weights in place.
        folder: the folder that it comes from.
        plan: the way in which it runs, where that was chosen from several.
        memory: guards its memory, with advice of the other ways in which it would run here.
        threads: the threads that compute.
        adapters: adapters that were read with it, by name; they are not in the model yet.
    """

    checkpoint: Checkpoint
    folder: Path
    plan: Plan | None
    memory: MemoryGuard
    threads: Threads
    adapters: Mapping[str, Adapter]


def load(
    name: str | os.PathLike[str],
    precision: str | torch.dtype,
    device: str | torch.device,
    tasks: Collection[str] = TASKS,
    *,
    offload: str = "auto",
    memory: int | str | None = None,
    prefer: str = "quality",
    threads: int | None = None,
    prepack: bool = True,
    progress: OnLoad | None = None,
    adapters: Mapping[str, str | os.PathLike[str]] = MappingProxyType({}),
) -> Loaded:
    """Loads a checkpoint for inference. Arguments and errors as `Bagel.from_pretrained`.

    On the CPU the weights of the model are prepacked where that pays, unless `prepack` is false, as for a model that is
    to be compiled.
    """
    _check_arguments(precision, device, memory)
    if offload not in OFFLOADS:
        raise SettingError(f"offload is {offload!r}: it must be {', '.join(map(repr, OFFLOADS))}.")
    check_preference(prefer)
    needed(tasks)
    choose_threads(asked=threads)
    source = open_checkpoint(find_checkpoint(name, _telling(progress, "downloading")))
    stored = stored_weights(source)
    config = read_config(source)
    found_adapters = {own: read_adapter(find_adapter(place), config) for own, place in adapters.items()}
    beside = sum(adapter.parameters for adapter in found_adapters.values())
    plan: Plan | None = None
    alternatives: Sequence[Plan] = ()
    if memory is not None or offload in ("cpu", "disk") or stored.nbytes > _LARGE or prefer != "quality":
        machine = _machine(device, memory)  # as it is before anything is loaded
        alternatives = _plans(config, stored, "auto", tuple(tasks), "auto", machine, prefer, beside)
        found = _plans(config, stored, precision, tuple(tasks), offload, machine, prefer, beside)
        # A precision that was asked for by name is not refused because the largest images would find no room.
        plan = choose(found, machine, every_workload=precision == "auto", others=alternatives)
        computes, chosen = plan.placement.device, plan.precision
    else:
        computes = choose_device(device)
        chosen = choose_precision(precision, computes, stored)
    if progress is not None and config.decoder.hidden_size >= LEAST_WIDTH and to_be_compiled():
        # Once for this machine. It takes seconds, in which nothing would be seen to move.
        progress("compiling", 0, 1)
        compiled()
        progress("compiling", 1, 1)
    guard = MemoryGuard(computes, plan, alternatives)
    working = choose_threads(weight_count(config), threads)
    try:
        with working.at_work():
            checkpoint = load_checkpoint(
                source,
                precision=chosen,
                device=computes if plan is None else plan.placement.device_of,
                tasks=tasks,
                prepack=prepack and computes.type == "cpu",
                progress=_telling(progress, "loading"),
            )
        if plan is not None and (plan.offload != "none" or len(plan.devices) > 1):
            apply(checkpoint.model, plan.placement)
        if plan is None or plan.offload == "none":  # all weights stay where they are
            checkpoint.model.decoder.prepare(prepack=prepack and computes.type == "cpu")
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # which hold what has been loaded
        shortage = guard.explain(error) if isinstance(error, Exception) else error
        if shortage is error:
            raise
        raise shortage from error
    return Loaded(checkpoint, source.where.parent, plan, guard, working, found_adapters)


def _telling(progress: OnLoad | None, what: str) -> ByteProgress | None:
    return None if progress is None else lambda done, total: progress(what, done, total)


def _check_arguments(precision: object, device: object, memory: object) -> None:
    """Refuses wrong arguments before anything is fetched.

    Raises:
        SettingError: one of them is of a wrong type, or the memory is not a size.
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
        parse_precision(dtype_name(precision) if isinstance(precision, torch.dtype) else precision)


def _machine(device: str | torch.device, memory: int | str | None) -> Machine:
    allowed = parse_size(memory) if isinstance(memory, str) else memory
    return this_machine(usable_devices() if device == "auto" else [choose_device(device)], allowed)


def _plans(
    config: BagelConfig,
    stored: StoredWeights,
    precision: str | torch.dtype,
    tasks: tuple[str, ...],
    offload: str,
    machine: Machine,
    prefer: str,
    adapter_parameters: int,
) -> list[Plan]:
    """The ways of running a checkpoint on a machine, the best first."""
    kept = "in several types or in few bits" if stored.layers is None else f"in {dtype_name(stored.layers)}"
    if offload == "disk" and stored.layers not in (None, *PLAIN.values()):
        raise DeviceError(
            f"offload is 'disk', which computes with weights as they are stored, but this checkpoint has them {kept}: "
            f"convert it (`bagel convert`) to one of {', '.join(PLAIN)}."
        )
    if precision != "auto":
        precisions = [choose_precision(precision, machine.devices[0][0], stored).name]
    elif offload == "disk" and stored.layers is not None:
        precisions = [dtype_name(stored.layers)]
    else:
        precisions = automatic_precisions(stored, [device for device, _ in machine.devices], prefer)
    # "cpu" takes as many layers as find no room; "disk" is what was asked for, room or not.
    offloads = {"auto": ("none", "cpu", "disk"), "cpu": ("none", "cpu")}.get(offload, (offload,))
    found = plans(
        config,
        machine,
        tasks,
        precisions=precisions,
        stored=stored,
        offloads=offloads,
        prefer=prefer,
        adapter_parameters=adapter_parameters,
    )
    if not found and offload == "disk":
        raise DeviceError(
            f"offload is 'disk', which uses plain safetensors weights as they are stored, but this checkpoint has its "
            f"weights {kept}, and precision is {precision!r}."
        )
    return found


def usable_devices() -> list[torch.device]:
    """The accelerators here, and the CPU."""
    found = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append(torch.device("mps"))
    return [*found, torch.device("cpu")]


def automatic_precisions(stored: StoredWeights, devices: Sequence[torch.device], prefer: str = "quality") -> list[str]:
    """The precisions to choose from: as the weights are stored, if that is quantised, and what is smaller than that;
    all for large checkpoints. For small ones there is nothing to choose by quality; by speed bfloat16 is there too,
    since quantising makes them no faster, and by memory all.
    """
    emulated = any(not _has_bfloat16(device) for device in devices)
    if stored.format is None and stored.nbytes <= _LARGE and prefer != "memory":
        usual = choose_precision("auto", devices[0], stored).name
        return list(dict.fromkeys((usual, *(("bfloat16",) if prefer == "speed" and not emulated else ()))))
    if stored.format is not None:
        fewer = () if stored.format in _FOUR_BITS else _FOUR_BITS
        names = [stored.format, *fewer]
    else:
        names = list(AUTOMATIC)
    if not emulated:
        return names
    return ["float16" if name in PLAIN else f"{name},activations=float16" for name in names]


def compile_experts(model: BagelModel) -> None:
    """Runs `torch.compile` on everything in a layer but the softmax, for each number of slots anew: layouts round them
    up, so that there are few (`bagel_mot.model.buckets`).
    """
    prepare_compiling()
    kernels.allow_shapes(_MOST_SHAPES)
    model.decoder.compiled = True
    for expert in [part for part in model.decoder.layers.modules() if isinstance(part, Expert)]:
        expert.passes = None  # PyTorch's compiler makes its own, and cannot look into others
        for method in ("project", "finish"):
            setattr(expert, method, torch.compile(getattr(expert, method), dynamic=False))
