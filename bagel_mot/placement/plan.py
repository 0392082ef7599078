"""Ways of running a checkpoint on a machine: which precision, where the layers are, what memory that takes.

Memory is estimated from the configuration alone (`bagel_mot.placement.estimate`), and so is time
(`bagel_mot.placement.speed`): from nominal rates to put the ways in order, from measured ones in seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from bagel_mot.checkpoint.opening import LARGE_EMBEDDING, UNKNOWN, StoredWeights
from bagel_mot.checkpoint.precision import LOSSY, NAMES, Precision, check_hardware, parse_precision
from bagel_mot.config import BagelConfig
from bagel_mot.errors import DeviceError, SettingError
from bagel_mot.files import size_text
from bagel_mot.placement.estimate import (
    DEVICE_BYTES,
    MARGIN,
    PROCESS_BYTES,
    graph_bytes,
    memory_estimate,
    reference_workloads,
    weight_bytes,
)
from bagel_mot.placement.offload import Place, Placement, spread
from bagel_mot.placement.rates import NOMINAL, DeviceRates
from bagel_mot.placement.speed import predictable, times
from bagel_mot.placement.system_memory import free_memory

_BUS, _DISK = 2e10, 5e8  # bytes per second, nominal
PREFERENCES = ("quality", "speed", "memory")
"""The orders that plans can have."""


@dataclass(frozen=True)
class Machine:
    """The memory that there is to run on.

    Attributes:
        devices: each device with its free bytes; the CPU's are `host`.
        host: free bytes of main memory.
    """

    devices: tuple[tuple[torch.device, int], ...]
    host: int


def this_machine(devices: Sequence[torch.device], memory: int | None = None) -> Machine:
    """The free memory here.

    Args:
        devices: the devices that may compute.
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
        precision: the precision of its parts.
        placement: the places of the decoder's layers.
        devices: the devices that compute, all of them of one kind.
        device_bytes: predicted peak of each workload on the first device, by its name; empty on the CPU.
        host_bytes: predicted peak of each workload in main memory, by its name.
        seconds: rough estimate of an image and an answer, for the order.
        predicted: seconds by workload and for a token, from measured rates; None where the device was not measured, the
            model is small, or layers are brought, whose rate was not measured either.
        fits: whether there is memory for every workload.
        fits_some: whether there is memory for the smallest.
        graphs: whether there is memory for recorded passes as well, which is part of the peaks then.
    """

    precision: Precision
    placement: Placement
    devices: tuple[torch.device, ...]
    device_bytes: dict[str, int]
    host_bytes: dict[str, int]
    seconds: float
    predicted: Mapping[str, float] | None
    fits: bool
    fits_some: bool
    graphs: bool = False

    @property
    def lossy(self) -> bool:
        """Whether the precision loses accuracy (docs/precision.md)."""
        return bool(set(self.precision.parts.values()) & LOSSY)

    @property
    def offload(self) -> str:
        """The place of layers that are brought to the device: "cpu", "disk", or "none" without such."""
        kinds = {place for place in self.placement.layers if isinstance(place, str)}
        return "disk" if "disk" in kinds else "cpu" if kinds else "none"

    @property
    def where(self) -> str:
        """The devices and the place of layers in words."""
        layers = self.placement.layers
        brought = sum(isinstance(place, str) for place in layers)
        on = " and ".join(map(str, self.devices))
        if not brought:
            return on
        return f"{on}, {brought} of {len(layers)} layers {'on disk' if self.offload == 'disk' else 'in main memory'}"

    @property
    def peak_device(self) -> int:
        """The most bytes of device memory; 0 on the CPU."""
        return max(self.device_bytes.values(), default=0)

    @property
    def peak_host(self) -> int:
        """The most bytes of main memory."""
        return max(self.host_bytes.values())

    def advice(self) -> str:
        """The arguments that ask for it, and what it takes."""
        place = "" if self.offload == "none" else f" and offload={self.offload!r}"
        peak = size_text(self.peak_device or self.peak_host)
        return f"precision={self.precision.name!r}{place}, which takes at most {peak}"

    def sentence(self) -> str:
        """The plan in words."""
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
    stored: StoredWeights = UNKNOWN,
    offloads: Sequence[str] = ("none", "cpu", "disk"),
    prefer: str = "quality",
    measured: Mapping[str, DeviceRates] | None = None,
    adapter_parameters: int = 0,
) -> list[Plan]:
    """All ways, the best first: what fits before what does not. By quality, what is stored so comes before what is
    rounded again, accurate before lossy, fast before slow; by speed, fast before slow; by memory, what takes the least.

    Args:
        config: the checkpoint's configuration.
        machine: the machine to run on.
        tasks: the tasks that the model is for.
        precisions: the precisions to choose from.
        stored: the types in which the checkpoint stores its weights.
        offloads: the places that layers may have which find no room on the device.
        prefer: "quality", "speed" or "memory".
        measured: rates of devices by their kind, to predict seconds from; the order is the same with and without them.
        adapter_parameters: the number of parameters of adapters, which stay on the device that computes.

    Raises:
        SettingError: there is no such preference.
    """
    check_preference(prefer)
    found: list[Plan] = []
    for precision in map(parse_precision, precisions):
        for kind in dict.fromkeys(device.type for device, _ in machine.devices):
            devices = sorted((d for d in machine.devices if d[0].type == kind), key=lambda device: -device[1])
            try:
                setup = _Setup(config, machine, tasks, precision, devices, stored, measured or {}, adapter_parameters)
            except DeviceError:  # these devices cannot compute in it
                continue
            found += setup.plans(offloads)

    def order(plan: Plan) -> tuple[bool, float, bool, float]:
        if prefer == "quality":
            again = stored.format not in (None, plan.precision.parts.get("decoder"))
            return not plan.fits, again, plan.lossy, plan.seconds
        first = plan.seconds if prefer == "speed" else plan.peak_device or plan.peak_host
        return not plan.fits, first, plan.lossy, plan.seconds

    return sorted(found, key=order)


def check_preference(prefer: object) -> None:
    """Refuses what is no order of plans.

    Raises:
        SettingError: there is no such order.
    """
    if prefer not in PREFERENCES:
        raise SettingError(f"prefer is {prefer!r}: it must be {', '.join(map(repr, PREFERENCES))}.")


def choose(
    found: Sequence[Plan], machine: Machine, *, every_workload: bool = True, others: Sequence[Plan] = ()
) -> Plan:
    """The best plan that fits.

    Args:
        found: the plans, the best first.
        machine: the machine that they are for.
        every_workload: whether there must be memory for every workload, or for one of them at the least.
        others: further plans, the best first, to advise if none of these fits.

    Raises:
        DeviceError: none fits.
    """
    if found and found[0].fits:
        return found[0]
    if not every_workload and (some := next((plan for plan in found if plan.fits_some), None)) is not None:
        return some
    have = [f"{size_text(free)} on {device}" for device, free in machine.devices if device.type != "cpu"]
    have.append(f"{size_text(machine.host)} of main memory")
    if not found:
        raise DeviceError("no way of running this checkpoint was asked for that this machine has.")
    least = min(found, key=lambda plan: plan.peak_host + plan.peak_device)
    takes = f"{size_text(least.peak_device)} of device memory and " if least.device_bytes else ""
    takes += f"{size_text(least.peak_host)} of main memory"
    fewer = "free memory, or load it for fewer tasks" if len(least.host_bytes) > 1 else "free memory"
    if (fitting := next((plan for plan in others if plan.fits), None)) is not None:
        fewer = f"it fits with {fitting.advice()}"
    raise DeviceError(
        f"this checkpoint does not fit: there are {' and '.join(have)} free, {MARGIN:.0%} of which are left alone, and "
        f"the smallest way of running it that was asked for takes {takes} ({least.precision.name} on {least.where}); "
        f"{fewer}."
    )


class _Setup:
    """A precision on the devices of one kind, given with their free bytes, most first."""

    def __init__(
        self,
        config: BagelConfig,
        machine: Machine,
        tasks: tuple[str, ...],
        precision: Precision,
        devices: list[tuple[torch.device, int]],
        stored: StoredWeights,
        measured: Mapping[str, DeviceRates],
        adapter_parameters: int,
    ) -> None:
        check_hardware(precision, devices[0][0])
        self.config, self.tasks, self.precision, self.devices = config, tasks, precision, devices
        self.host = machine.host * (1 - MARGIN)
        self.weights = weight_bytes(config, precision, tasks, adapter_parameters, device=devices[0][0])
        on_cpu = devices[0][0].type == "cpu"
        types = precision.activations, precision.autoencoder_on(devices[0][0], config.vae)
        self.work = {
            workload.name: memory_estimate(config, workload, *types, on_cpu=on_cpu).peak
            for workload in reference_workloads(config)
            if workload.task in tasks
        }
        self.recorded = {
            workload.name: graph_bytes(config, workload, precision.activations)
            for workload in reference_workloads(config)
            if workload.task in tasks
        }
        self.plain = not precision.parts and precision.activations == stored.layers
        self.embedding_in_file = precision.activations == stored.embedding and "embedding" not in precision.parts
        rates = measured.get(devices[0][0].type) if predictable(self.weights) else None
        self.rates = rates if rates is not None and precision.activations in rates.matmul else None

    def plans(self, offloads: Sequence[str]) -> Iterator[Plan]:
        """The ways of running in this precision on these devices."""
        device = self.devices[0][0]
        if device.type == "cpu":
            for offload in ("none", "disk"):
                if offload in offloads and (offload == "none" or self.plain):
                    yield self._on_cpu(device, offload)
        else:
            yield from self._on_devices(device, offloads)

    def _on_cpu(self, device: torch.device, offload: str) -> Plan:
        weights = self.weights
        # A text takes a few rows of an embedding that stays in its file.
        stays = self.embedding_in_file and weights.embedding >= LARGE_EMBEDDING
        outside = weights.outside - (weights.embedding if stays else 0)
        held = PROCESS_BYTES + outside + weights.layer * (weights.layers if offload == "none" else 2)
        host = {name: held + peak for name, peak in self.work.items()}
        place: Place = device if offload == "none" else "disk"
        brought = 0.0 if offload == "none" else weights.layer * weights.layers / _DISK
        every, some = (most(host.values()) <= self.host for most in (max, min))
        placement = Placement(device, (place,) * weights.layers)
        return Plan(self.precision, placement, (device,), {}, host, *self._seconds("cpu", brought), every, some)

    def _on_devices(self, device: torch.device, offloads: Sequence[str]) -> Iterator[Plan]:
        """On the device with most room alone, on several, and with layers brought to the first."""
        weights, cuda = self.weights, device.type == "cuda"
        everything = Placement(device, (device,) * weights.layers), (device,), weights.total
        alone = self._on_device(*everything, graphs=cuda)
        if cuda and not alone.fits:
            alone = self._on_device(*everything)
        if "none" in offloads:
            yield alone
        if len(self.devices) > 1 and cuda and not alone.fits:
            yield from self._by_layers()
        if not cuda or (alone.fits and "none" in offloads):
            return
        # The two layers that come and go take room as well.
        resident = max(0, min(weights.layers - 1, self._layers_in(self.devices[0][1], weights.outside, passing=2)))
        brought = weights.layer * (weights.layers - resident)
        held = weights.outside + weights.layer * (resident + 2)
        if "cpu" in offloads:
            placement = spread(weights.layers, resident, "host", device)
            yield self._on_device(placement, (device,), held, host=brought, brought=brought / _BUS)
        if "disk" in offloads and self.plain:
            placement = spread(weights.layers, resident, "disk", device)
            yield self._on_device(placement, (device,), held, brought=brought / _DISK)

    def _on_device(
        self,
        placement: Placement,
        devices: tuple[torch.device, ...],
        held: int,
        *,
        host: int = 0,
        brought: float = 0.0,
        graphs: bool = False,
    ) -> Plan:
        """The plan with `held` bytes of weights on the first device, `host` bytes of them in main memory, and `brought`
        seconds of every pass spent on bringing layers; with or without recorded passes.
        """
        base = DEVICE_BYTES if placement.device.type == "cuda" else 0
        more = self.recorded if graphs else {}
        on_device = {name: base + held + peak + more.get(name, 0) for name, peak in self.work.items()}
        on_host = dict.fromkeys(self.work, 2 * PROCESS_BYTES + host)
        seconds = self._seconds(placement.device.type, brought)
        for_host, free = max(on_host.values()) <= self.host, self.devices[0][1] * (1 - MARGIN)
        every, some = (for_host and most(on_device.values()) <= free for most in (max, min))
        return Plan(self.precision, placement, devices, on_device, on_host, *seconds, every, some, graphs)

    def _by_layers(self) -> Iterator[Plan]:
        """Layers in order, on each device as many as find room; the first device also has everything else."""
        weights, first = self.weights, self.devices[0][0]
        places: list[torch.device] = []
        for device, free in self.devices:
            count = self._layers_in(free, weights.outside if device == first else 0)
            places += [device] * max(0, min(weights.layers - len(places), count))
        on_first = places.count(first)
        if len(places) == weights.layers and on_first < weights.layers:
            used = tuple(dict.fromkeys((first, *places)))
            yield self._on_device(Placement(first, tuple(places)), used, weights.outside + on_first * weights.layer)

    def _layers_in(self, free: int, outside: int, passing: int = 0) -> int:
        """The number of layers that find room beside the work, other weights and `passing` layers."""
        base = DEVICE_BYTES if self.devices[0][0].type == "cuda" else 0
        left = free * (1 - MARGIN) - base - outside - max(self.work.values()) - passing * self.weights.layer
        return int(left // self.weights.layer)

    def _seconds(self, kind: str, brought: float) -> tuple[float, Mapping[str, float] | None]:
        """Rough seconds for the order, and predicted ones where there are measured rates."""
        what = self.config, self.tasks, self.weights, self.precision, kind
        rough = times(*what, NOMINAL[kind], brought).usual
        return rough, None if self.rates is None or brought else times(*what, self.rates).seconds
