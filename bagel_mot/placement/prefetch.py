"""A ring of buffers on the device that computes, through which the layers pass that are elsewhere.

    host or disk   layer 0  layer 1  layer 2  layer 3 …
                      │        │        │
    buffer A       ▓▓ 0 ▓▓     │     ▓▓ 2 ▓▓
    buffer B                ▓▓ 1 ▓▓          ▓▓ 3 ▓▓
                   time ──►

While one layer computes, the next is brought into the other buffer: by a side stream from pinned memory, or by a
thread from a mapped file. Only the experts that this forward uses are brought.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bagel_mot.placement.weights import Experts, carve


class Buffer:
    """Memory for one layer at a time.

    Attributes:
        places: a tensor inside this buffer for every weight, by layer and expert.
        layer: the index of the layer that it holds or waits for; None if its content is not to be used.
        arrivals: functions by expert that return when its weights are there, with a CUDA event or nothing.
        free: the event after which nothing computes with the buffer any more.
    """

    def __init__(self, layers: Sequence[Experts], device: torch.device, stream: torch.cuda.Stream | None) -> None:
        self.places: list[dict[str, list[Tensor]]] = [{} for _ in layers]
        for expert in layers[0]:
            size = max(sum(weight.room for weight in layer[expert]) for layer in layers)
            block = torch.empty(size, dtype=torch.uint8, device=device)
            if stream is not None:  # which may be writing still when the buffer is dropped
                block.record_stream(stream)
            for layer, places in zip(layers, self.places, strict=True):
                places[expert], start = [], 0
                for weight in layer[expert]:
                    places[expert].append(carve(block, start, weight.home))
                    start += weight.room
        self.layer: int | None = None
        self.arrivals: dict[str, Callable[[], Any]] = {}
        self.free = _event(device)


class LayerPrefetcher:
    """Copies layers to a device, one ahead of the layer that computes.

    Args:
        layers: the weights of the layers that pass through, in the order in which they compute.
        device: the device that computes.
        background: fetch in a thread. For weights whose reading takes its time; from pinned memory a stream is enough.
        after_fetch: is called with every weight's tensor once it has been copied.
    """

    def __init__(
        self,
        layers: Sequence[Experts],
        device: torch.device,
        *,
        background: bool = False,
        after_fetch: Callable[[Tensor], object] | None = None,
    ) -> None:
        self._layers, self._device, self._after_fetch = layers, device, after_fetch
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        # The longest unused first.
        self._buffers = [Buffer(layers, device, self._stream) for _ in range(min(2, len(layers)))]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bagel-layers") if background else None

    @contextmanager
    def ready(self, layer: int, experts: tuple[str, ...]) -> Iterator[None]:
        """Within it, a layer has the weights of `experts` on the device."""
        buffer = self._fetch(layer, experts)
        try:
            for expert in experts:
                event = buffer.arrivals[expert]()
                if event is not None:
                    torch.cuda.current_stream(self._device).wait_event(event)
            if len(self._buffers) > 1:
                self._fetch((layer + 1) % len(self._layers), experts)
            for expert in experts:
                for weight, place in zip(self._layers[layer][expert], buffer.places[layer][expert], strict=True):
                    weight.put(place)
            yield
        except BaseException:
            buffer.layer = None  # it may have been left half filled
            raise
        finally:
            for expert in experts:
                for weight in self._layers[layer][expert]:
                    weight.put(weight.home)
            buffer.free = _event(self._device)

    def _fetch(self, layer: int, experts: tuple[str, ...]) -> Buffer:
        """A buffer that holds a layer or will hold it soon. It then is the one that is taken last for another layer."""
        buffer = next((b for b in self._buffers if b.layer == layer), self._buffers[0])
        self._buffers.remove(buffer)
        self._buffers.append(buffer)
        if buffer.layer != layer:
            buffer.layer, buffer.arrivals = layer, {}
        for expert in experts:
            if expert not in buffer.arrivals:
                try:
                    buffer.arrivals[expert] = self._start(buffer, layer, expert)
                except BaseException:
                    buffer.layer = None
                    raise
        return buffer

    def _start(self, buffer: Buffer, layer: int, expert: str) -> Callable[[], Any]:
        free = buffer.free
        if self._thread is None:
            event = self._copy(buffer, layer, expert, free)
            return lambda: event
        future: Future[Any] = self._thread.submit(self._copy, buffer, layer, expert, free)
        return future.result

    def _copy(self, buffer: Buffer, layer: int, expert: str, free: torch.cuda.Event | None) -> torch.cuda.Event | None:
        with torch.cuda.stream(self._stream):  # without a stream it does nothing
            if self._stream is not None and free is not None:
                self._stream.wait_event(free)
            for weight, place in zip(self._layers[layer][expert], buffer.places[layer][expert], strict=True):
                place.copy_(weight.home, non_blocking=self._thread is None)
                if self._after_fetch is not None:
                    self._after_fetch(weight.home)
            return None if self._stream is None else self._stream.record_event()


def _event(device: torch.device) -> torch.cuda.Event | None:
    """After all that the device has been asked to compute so far."""
    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
