"""The places of a decoder's layers, and the ways in which layers that are elsewhere come to compute.

A decoder goes through its layers knowing nothing of it: each layer here is a `DecoderLayer` that first sees to it that
it can compute, be it by moving its input to its own device or by having its weights brought.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn

from bagel_mot.model.attention import Attend
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.decoder import DecoderLayer, Rope
from bagel_mot.placement.mapped import Mapped, drop
from bagel_mot.placement.prefetch import LayerPrefetcher
from bagel_mot.placement.weights import Experts, experts_of, pin

Place = torch.device | Literal["host", "disk"]
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Placement:
    """The places of a model's weights.

    Attributes:
        device: the device of everything but the decoder layers, on which layers compute that are in no device's memory.
        layers: the place of each decoder layer: the device that holds it and computes; or "host", main memory from
            which it is copied; or "disk", the mapped file.
    """

    device: torch.device
    layers: tuple[Place, ...]

    def device_of(self, name: str) -> torch.device | None:
        """The device that a tensor (our name) is loaded to; None where it stays in its file."""
        layer = _LAYER.match(name)
        place = self.layers[int(layer[1])] if layer else self.device
        return torch.device("cpu") if place == "host" else None if place == "disk" else place


class Feeder(Protocol):
    """Brings the weights of layers."""

    def ready(self, layer: int, experts: tuple[str, ...]) -> AbstractContextManager[None]:
        """Within it, a layer can compute with these experts."""
        ...


class BroughtLayer(DecoderLayer):
    """A layer whose weights are brought when it computes."""

    def __init__(self, layer: DecoderLayer, feeder: Feeder, index: int, device: torch.device) -> None:
        nn.Module.__init__(self)  # it takes over the experts of the other, and makes none
        self.und, self.gen = layer.und, layer.gen
        self._feeder, self._index, self._device = feeder, index, device

    @property
    def device(self) -> torch.device:
        return self._device

    def forward(
        self, und: Tensor, gen: Tensor, und_rope: Rope, gen_rope: Rope, attend: Attend
    ) -> tuple[Tensor, Tensor]:
        with self._feeder.ready(self._index, ("und", "gen") if gen.shape[0] else ("und",)):
            return super().forward(und, gen, und_rope, gen_rope, attend)


class PlacedLayer(DecoderLayer):
    """A layer on a device of its own, to which its input is moved."""

    def __init__(self, layer: DecoderLayer, ropes: Ropes, back: torch.device | None) -> None:
        """Takes over the experts of a layer.

        Args:
            layer: the layer, on the device on which it is to compute.
            ropes: the rotary positions, shared by all layers.
            back: a device to which the result is moved.
        """
        nn.Module.__init__(self)
        self.und, self.gen = layer.und, layer.gen
        self._ropes, self._back = ropes, back

    def forward(
        self, und: Tensor, gen: Tensor, und_rope: Rope, gen_rope: Rope, attend: Attend
    ) -> tuple[Tensor, Tensor]:
        device = self.device
        ropes = self._ropes.on(device, "und", und_rope), self._ropes.on(device, "gen", gen_rope)
        und, gen = super().forward(und.to(device), gen.to(device), *ropes, attend)
        return (und, gen) if self._back is None else (und.to(self._back), gen.to(self._back))


class Ropes:
    """The rotary positions of a forward on every device that needs them, moved to each of them once."""

    def __init__(self) -> None:
        self._moved: dict[tuple[str, torch.device], tuple[Rope, Rope]] = {}  # as they came, and as they were moved

    def on(self, device: torch.device, expert: str, rope: Rope) -> Rope:
        known = self._moved.get((expert, device))
        if known is None or known[0] is not rope:
            known = self._moved[expert, device] = rope, (rope[0].to(device), rope[1].to(device))
        return known[1]


def apply(model: BagelModel, placement: Placement) -> None:
    """Lets a model compute as its weights were loaded: by `placement.device_of`.

    Raises:
        ValueError: the placement is of another number of layers, or both brings layers and has several devices.
    """
    layers = cast("Sequence[DecoderLayer]", model.decoder.layers)
    if len(placement.layers) != len(layers):
        raise ValueError(f"the placement is of {len(placement.layers)} layers, the model has {len(layers)}")
    devices = {place for place in placement.layers if isinstance(place, torch.device)}
    brought = [index for index, place in enumerate(placement.layers) if isinstance(place, str)]
    if brought and devices - {placement.device}:
        raise ValueError("layers are brought to one device only")
    if devices - {placement.device}:
        ropes = Ropes()
        for index, layer in enumerate(layers):
            back = placement.device if index == len(layers) - 1 else None
            model.decoder.layers[index] = PlacedLayer(layer, ropes, back)
        return
    for kind in ("host", "disk"):
        chosen = [index for index in brought if placement.layers[index] == kind]
        if chosen:
            feeder = _feeder(kind, [experts_of(layers[index]) for index in chosen], placement.device)
            for order, index in enumerate(chosen):
                model.decoder.layers[index] = BroughtLayer(layers[index], feeder, order, placement.device)


def _feeder(kind: str, layers: list[Experts], device: torch.device) -> Feeder:
    if kind == "host":
        if device.type == "cuda":
            pin(weight for layer in layers for expert in layer.values() for weight in expert)
        return LayerPrefetcher(layers, device)
    if device.type == "cpu":
        return Mapped(layers)
    return LayerPrefetcher(layers, device, background=True, after_fetch=drop)


def spread(layers: int, resident: int, elsewhere: Literal["host", "disk"], device: torch.device) -> Placement:
    """A placement of `resident` layers on a device and the others elsewhere, evenly mixed: while a resident layer
    computes, the next one that is not has more time to come.
    """
    stays = {index * layers // resident for index in range(resident)} if resident else set()
    return Placement(device, tuple(device if index in stays else elsewhere for index in range(layers)))
