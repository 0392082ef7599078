"""Ways of running a checkpoint on a machine: which precision, where the layers stand, what memory that takes.

Memory is predicted from the configuration alone: weights by part, and what each piece of work holds besides, found by
going through the model without values. Speed is estimated roughly, to put the ways in order.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from bagel_mot.checkpoint.official import LARGE_EMBEDDING
from bagel_mot.checkpoint.precision import LOSSY, NAMES, Precision, check_hardware, parse_precision
from bagel_mot.config import BagelConfig
from bagel_mot.errors import DeviceError
from bagel_mot.files import size_text
from bagel_mot.placement.offload import Place, Placement, spread
from bagel_mot.placement.sizes import Sizes, sizes
from bagel_mot.placement.system_memory import free_memory
from bagel_mot.placement.workload import Job, Taken, taken, usual_jobs

MARGIN = 0.05
"""Share of a device's free memory that is left alone."""
HOST_MARGIN = 0.08
_LIBRARIES = 330 << 20
"""Bytes that the process takes with its libraries, before any weight."""
_VOCABULARY_ENTRY = 768
"""Bytes of each entry of a vocabulary while it is read; afterwards half."""
_AT_WORK = 120 << 20
"""Bytes more once it computes: threads, compiled kernels, oneDNN's scratchpads."""
_DEVICE_BASELINE = 600 << 20  # of a CUDA context with its libraries' workspaces
_FRAGMENTED = 1.05  # what a caching allocator holds beyond what is alive

# Roughly, for putting plans in order: operations and bytes per second.
_GPU_FLOPS, _GPU_MEMORY, _BUS, _DISK = 3e14, 2e12, 2e10, 5e8
_CPU_FLOPS, _CPU_MEMORY, _MPS_FLOPS, _MPS_MEMORY = 1e12, 2.5e10, 1e13, 2e11
# How much of that a precision reaches: multiplying many rows, and reading weights for one.
_MANY = {"float32": 0.3, "fp8-dynamic": 1.7, "int8-dynamic": 1.2, "int8": 0.8, "fp8": 0.6, "int4": 0.55, "nf4": 0.5}
_ONE_ON_CPU = {"fp8": 0.2, "nf4": 0.05, "int8-dynamic": 0.5}
_EVALUATIONS, _IMAGE_TOKENS, _TOKENS = 80, 4096, 100  # of a usual image and answer


@dataclass(frozen=True)
class Machine:
    """What there is to run on.

    Attributes:
        devices: with their free bytes; the CPU's are `host`.
        host: free bytes of main memory.
    """

    devices: tuple[tuple[torch.device, int], ...]
    host: int


def this_machine(devices: Sequence[torch.device], memory: int | None = None) -> Machine:
    """What is free here.

    Args:
        devices: that may compute.
        memory: bytes that may be taken of each accelerator; of main memory, if the CPU alone computes.
    """
    host = free_memory(torch.device("cpu"))
    if memory is not None and all(device.type == "cpu" for device in devices):
        host = min(host, memory)
    free = [(d, host if d.type == "cpu" else min(free_memory(d), memory or sys.maxsize)) for d in devices]
    return Machine(tuple(free), host)


@dataclass(frozen=True)
class Plan:
    """One way of running a checkpoint.

    Attributes:
        precision: of the parts.
        placement: where the decoder's layers stand.
        devices: those that compute, all of them of one kind.
        device_bytes: predicted peak of each job on the first device; empty on the CPU.
        host_bytes: predicted peak of each job in main memory.
        seconds: rough estimate of an image and an answer, for the order.
        fits: whether there is memory for every job.
        fits_some: whether there is for the smallest.
        lossy: whether the precision loses accuracy (docs/precision.md).
    """

    precision: Precision
    placement: Placement
    devices: tuple[torch.device, ...]
    device_bytes: dict[str, int]
    host_bytes: dict[str, int]
    seconds: float
    fits: bool
    fits_some: bool
    lossy: bool = False

    @property
    def offload(self) -> str:
        """Where the layers stand that are brought: "cpu", "disk", or "none"."""
        kinds = {place for place in self.placement.layers if isinstance(place, str)}
        return "disk" if "disk" in kinds else "cpu" if kinds else "none"

    @property
    def where(self) -> str:
        """In words."""
        layers = self.placement.layers
        brought = sum(isinstance(place, str) for place in layers)
        on = " and ".join(map(str, self.devices))
        if not brought:
            return on
        return f"{on}, {brought} of {len(layers)} layers {'on disk' if self.offload == 'disk' else 'in main memory'}"

    @property
    def peak_device(self) -> int:
        return max(self.device_bytes.values(), default=0)

    @property
    def peak_host(self) -> int:
        return max(self.host_bytes.values())

    def advice(self) -> str:
        """How it is asked for, and what it takes."""
        place = "" if self.offload == "none" else f" and offload={self.offload!r}"
        peak = size_text(self.peak_device or self.peak_host)
        return f"precision={self.precision.name!r}{place}, which takes at most {peak}"

    def sentence(self) -> str:
        """What was chosen."""
        device = f"{size_text(self.peak_device)} of device memory and " if self.device_bytes else ""
        more = "" if self.fits else "; more than there is, so keep pictures small"
        return (
            f"{self.precision.name} on {self.where}: at most {device}{size_text(self.peak_host)} of main memory{more}"
        )


def plans(
    config: BagelConfig,
    machine: Machine,
    tasks: tuple[str, ...],
    *,
    precisions: Sequence[str] = NAMES,
    stored: torch.dtype | None = None,
    embedding: torch.dtype | None = None,
    stored_as: str | None = None,
    offloads: Sequence[str] = ("none", "cpu", "disk"),
) -> list[Plan]:
    """All ways, the best first: what fits before what does not, as it is stored before what is rounded again, accurate
    before lossy, fast before slow.

    Args:
        config: of the checkpoint.
        machine: to run on.
        tasks: that the model is for.
        precisions: that come into question.
        stored: type of the weights where they can be used from the disk as they are.
        embedding: type of the token embedding where it can be used from the disk as it is.
        stored_as: format of the weights where they are stored in few bits.
        offloads: where layers may stand that find no room on the device.
    """
    jobs = [job for job in usual_jobs(config) if job.task in tasks]
    found = [
        plan
        for text in precisions
        for plan in _of_precision(config, machine, tasks, jobs, text, stored, embedding, offloads)
    ]

    def order(plan: Plan) -> tuple[bool, bool, bool, float]:
        again = stored_as is not None and plan.precision.parts.get("decoder") != stored_as
        return not plan.fits, again, plan.lossy, plan.seconds

    return sorted(found, key=order)


def choose(
    found: Sequence[Plan], machine: Machine, *, every_job: bool = True, others: Callable[[], Sequence[Plan]] = tuple
) -> Plan:
    """The best that fits.

    Args:
        found: the plans, the best first.
        machine: they are for.
        others: further ones, the best first, to advise if none of these fits.
        every_job: whether there must be memory for every job, or for one of them at the least: for smaller ones too,
            then.

    Raises:
        DeviceError: none does.
    """
    if found and found[0].fits:
        return found[0]
    if not every_job and (some := next((plan for plan in found if plan.fits_some), None)) is not None:
        return some
    have = [f"{size_text(free)} on {device}" for device, free in machine.devices if device.type != "cpu"]
    have.append(f"{size_text(machine.host)} of main memory")
    if not found:
        raise DeviceError("no way of running this checkpoint was asked for that this machine has.")
    least = min(found, key=lambda plan: plan.peak_host + plan.peak_device)
    takes = f"{size_text(least.peak_device)} of device memory and " if least.device_bytes else ""
    takes += f"{size_text(least.peak_host)} of main memory"
    margin = f"{HOST_MARGIN:.0%} of main memory" + (f" and {MARGIN:.0%} of a device's" if least.device_bytes else "")
    fewer = "free memory, or load it for fewer tasks" if len(least.host_bytes) > 1 else "free memory"
    if (fitting := next((plan for plan in thought_of(others) if plan.fits), None)) is not None:
        fewer = f"it fits with {fitting.advice()}"
    raise DeviceError(
        f"this checkpoint does not fit: there are {' and '.join(have)} free, {margin} are left alone, and "
        f"the smallest way of running it that was asked for takes {takes} ({least.precision.name} on {least.where}); "
        f"{fewer}."
    )


def thought_of(others: Callable[[], Sequence[Plan]]) -> Sequence[Plan]:
    """Further plans for an advice, if they can be found out: the checkpoint may be gone, or memory too short for it."""
    try:
        return others()
    except Exception:  # of any kind: it must not stand in the place of what is to be said
        return ()


def _of_precision(
    config: BagelConfig,
    machine: Machine,
    tasks: tuple[str, ...],
    jobs: list[Job],
    text: str,
    stored: torch.dtype | None,
    embedding: torch.dtype | None,
    offloads: Sequence[str],
) -> Iterator[Plan]:
    kinds = {device.type: device for device, _ in reversed(machine.devices)}
    base = before_weights(config.decoder.vocab_size)
    for device in kinds.values():
        precision = parse_precision(text)
        try:
            check_hardware(precision, device)
        except DeviceError:
            continue
        parts = sizes(config, precision, tasks)
        works = {
            job.name: taken(config, job, precision.activations, precision.autoencoder, on_cpu=device.type == "cpu")
            for job in jobs
        }
        plain = not precision.parts and precision.activations == stored
        draws = any(job.drawn is not None for job in jobs)
        if device.type == "cpu":
            yield from _on_cpu(device, machine, precision, parts, base, works, plain, embedding, offloads, draws)
        else:
            rooms = sorted(((d, f) for d, f in machine.devices if d.type == device.type), key=lambda room: -room[1])
            yield from _on_devices(rooms, machine, precision, parts, base, works, plain, offloads, draws)


def before_weights(vocabulary: int) -> int:
    """Bytes that the process takes with its libraries and a vocabulary of so many entries, before any weight."""
    return _LIBRARIES + _VOCABULARY_ENTRY * vocabulary


def _on_cpu(
    device: torch.device,
    machine: Machine,
    precision: Precision,
    parts: Sizes,
    base: int,
    works: dict[str, Taken],
    plain: bool,
    embedding: torch.dtype | None,
    offloads: Sequence[str],
    draws: bool,
) -> Iterator[Plan]:
    room = machine.host * (1 - HOST_MARGIN)
    # A large embedding stays in its file where it is stored as it is wanted: a text takes a few rows of it.
    in_file = precision.activations == embedding and "embedding" not in precision.parts
    outside = parts.outside - (parts.embedding if in_file and parts.embedding >= LARGE_EMBEDDING else 0)
    for offload in ("none", "disk"):
        if offload not in offloads or (offload == "disk" and not plain):
            continue
        held = outside + parts.layer * (parts.layers if offload == "none" else 2)
        host = {name: base + _AT_WORK + held + work.peak for name, work in works.items()}
        # What is being read stands beside what is loaded already.
        host = {name: max(peak, base + held + (256 << 20)) for name, peak in host.items()}
        place: Place = device if offload == "none" else "disk"
        layers = (place,) * parts.layers
        brought = 0 if offload == "none" else parts.layer * parts.layers
        seconds = _seconds(precision, parts, _CPU_FLOPS, _CPU_MEMORY, brought / _DISK, on_cpu=True, draws=draws)
        yield Plan(
            precision,
            Placement(device, layers),
            (device,),
            {},
            host,
            seconds,
            max(host.values()) <= room,
            min(host.values()) <= room,
            _is_lossy(precision),
        )


def _on_devices(
    rooms: list[tuple[torch.device, int]],
    machine: Machine,
    precision: Precision,
    parts: Sizes,
    base: int,
    works: dict[str, Taken],
    plain: bool,
    offloads: Sequence[str],
    draws: bool,
) -> Iterator[Plan]:
    """On the device with most room alone, by several, and with layers brought to the first.

    Args:
        rooms: devices with their free bytes, most first.
    """
    device, free = rooms[0]
    flops, memory = (_GPU_FLOPS, _GPU_MEMORY) if device.type == "cuda" else (_MPS_FLOPS, _MPS_MEMORY)
    device_base = _DEVICE_BASELINE if device.type == "cuda" else 0
    work = {name: int(work.peak * _FRAGMENTED) for name, work in works.items()}
    largest = max(work.values())
    room = free * (1 - MARGIN)
    lossy = _is_lossy(precision)

    def plan(placement: Placement, devices: tuple[torch.device, ...], held: int, host: int, brought: float) -> Plan:
        on_device = {name: device_base + held + bytes_ for name, bytes_ in work.items()}
        on_host = dict.fromkeys(work, 2 * base + host + (256 << 20))
        seconds = _seconds(precision, parts, flops, memory, brought, on_cpu=False, draws=draws)
        for_host = max(on_host.values()) <= machine.host * (1 - HOST_MARGIN)
        every, some = (for_host and most(on_device.values()) <= room for most in (max, min))
        return Plan(precision, placement, devices, on_device, on_host, seconds, every, some, lossy)

    alone = plan(Placement(device, (device,) * parts.layers), (device,), parts.total, 0, 0.0)
    if "none" in offloads:
        yield alone
    if len(rooms) > 1 and device.type == "cuda" and not alone.fits:
        yield from _by_layers(rooms, parts, largest, device_base, plan)
    if device.type != "cuda" or (alone.fits and "none" in offloads):
        return
    # The two layers that come and go take room as well.
    left = room - device_base - parts.outside - largest - 2 * parts.layer
    resident = max(0, min(parts.layers - 1, int(left // parts.layer)))
    brought_bytes = parts.layer * (parts.layers - resident)
    held = parts.outside + parts.layer * (resident + 2)
    if "cpu" in offloads:
        yield plan(spread(parts.layers, resident, "host", device), (device,), held, brought_bytes, brought_bytes / _BUS)
    if "disk" in offloads and plain:
        yield plan(spread(parts.layers, resident, "disk", device), (device,), held, 0, brought_bytes / _DISK)


def _by_layers(
    rooms: list[tuple[torch.device, int]], parts: Sizes, most: int, device_base: int, plan: Callable[..., Plan]
) -> Iterator[Plan]:
    """As many layers on each device as find room, in order; the first also has everything else."""
    places: list[torch.device] = []
    first = 0
    for index, (device, free) in enumerate(rooms):
        left = free * (1 - MARGIN) - device_base - most - (parts.outside if index == 0 else 0)
        count = max(0, min(parts.layers - len(places), int(left // parts.layer)))
        first = count if index == 0 else first
        places += [device] * count
    if len(places) == parts.layers and first < parts.layers:
        used = tuple(dict.fromkeys(places)) if first else (rooms[0][0], *dict.fromkeys(places))
        yield plan(Placement(rooms[0][0], tuple(places)), used, parts.outside + first * parts.layer, 0, 0.0)


def _seconds(
    precision: Precision, parts: Sizes, flops: float, memory: float, brought: float, *, on_cpu: bool, draws: bool
) -> float:
    """Of an image and an answer, or of an answer about an image, roughly: multiplications, weights read for each
    token, weights brought. A token takes one expert's weights; without drawing there is no other.
    """
    stored = precision.parts.get("decoder", str(precision.activations).removeprefix("torch."))
    weights = parts.layer * parts.layers
    share = 0.5 if draws else 1.0
    many = (_EVALUATIONS if draws else 1) * max(
        2 * _IMAGE_TOKENS * parts.parameters / (flops * _MANY.get(stored, 1.0)), brought
    )
    one = _TOKENS * max(share * weights / (memory * (_ONE_ON_CPU.get(stored, 0.6) if on_cpu else 0.6)), share * brought)
    return many + one


def _is_lossy(precision: Precision) -> bool:
    return bool(set(precision.parts.values()) & LOSSY)
