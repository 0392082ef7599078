"""Passes of fixed shape as graphs: recorded once, then started by one launch instead of one for each operation.

A denoising step or a decoded token is a function of a few tensors: the noised latents and their times, or the last
tokens and the places of what they see. Everything else (weights, caches, where tokens stand) lies in the same memory
from step to step. Such a pass is computed operation by operation when it first comes, recorded when it comes again, and
replayed from then on: its inputs are copied into the memory that the recorded pass reads, its outputs are copied out.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol
from weakref import ref

import torch
from torch import Tensor

from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.decoder import DecoderLayer
from bagel_mot.model.transfer import pinned, to_device
from bagel_mot.placement.estimate import MAX_GRAPHS

Outputs = tuple[Tensor, ...]
_TOLERANCE = 1e-2  # relative; a replayed pass runs the same kernels, so it mostly has the same bits
_log = logging.getLogger(__name__)


class PassRecorder(Protocol):
    """Records what runs on a device."""

    def record(self, run: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        """Records a pass, which it need not compute.

        Args:
            run: the pass. All tensors that it reads stay where they are.

        Returns: a function that computes the pass again, and its outputs, which are overwritten each time.
        """
        ...


class CudaRecorder:
    """Records passes on a CUDA device as CUDA graphs, which share the memory of their intermediate results: they are
    replayed one at a time.

    Args:
        device: the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._first: torch.cuda.CUDAGraph | None = None  # keeps the shared memory known while there is no other graph

    def record(self, run: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        """See `PassRecorder`. Nothing is waited for, and nothing computed.

        Raises:
            RuntimeError: the pass has an operation that cannot be recorded, such as one that waits for the device.
        """
        with torch.cuda.device(self._device):
            if self._stream is None or self._first is None:
                self._stream = torch.cuda.Stream()
                self._first, _ = self._capture(lambda: (torch.zeros(1, device=self._device),))
            graph, outputs = self._capture(run)
            return graph.replay, outputs

    def _capture(self, run: Callable[[], Outputs]) -> tuple[torch.cuda.CUDAGraph, Outputs]:
        # `torch.cuda.graph` would wait for the device, and give the allocator's memory back, each time.
        graph, pool = torch.cuda.CUDAGraph(), None if self._first is None else self._first.pool()
        assert self._stream is not None
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                outputs = run()
            except BaseException:
                with suppress(RuntimeError):  # the recording is broken, and says so
                    graph.capture_end()
                raise
            graph.capture_end()
        torch.cuda.current_stream().wait_stream(self._stream)
        return graph, outputs


def recorder_for(model: BagelModel) -> PassRecorder | None:
    """The recorder of a model's passes; None where they cannot be recorded: not on a CUDA device, on several, or where
    weights are brought while a pass runs.
    """
    layers, devices = list(model.decoder.layers), set(model.decoder.devices)
    if model.device.type != "cuda" or devices != {model.device} or {type(layer) for layer in layers} != {DecoderLayer}:
        return None
    return CudaRecorder(model.device)


@dataclass(frozen=True)
class StaticPass:
    """A pass that is the same from step to step but for the numbers in its inputs.

    Attributes:
        kind: its name in messages.
        key: everything that decides its shapes and operations.
        owners: the objects that own the memory that it reads or writes beside its inputs. Once one of them is gone the
            pass cannot be replayed.
        inputs: the numbers that change from step to step, on the device or on the CPU.
        compute: the pass: inputs on the device in, outputs out. It waits for nothing.
        kept: other memory that it reads on the device, which is kept as long as it may be replayed.
    """

    kind: str
    key: Hashable
    owners: tuple[object, ...]
    inputs: tuple[Tensor, ...]
    compute: Callable[..., Outputs]
    kept: object = None


@dataclass(frozen=True)
class _Graph:
    """A recorded pass, with the memory of its inputs and outputs."""

    inputs: Outputs
    outputs: Outputs
    replay: Callable[[], None]
    owners: tuple[ref[object], ...]
    kept: object


class Graphs:
    """The recorded passes of an engine.

    Args:
        recorder: records passes; without one, or after it failed, every pass is computed operation by operation.
        device: the device that passes run on.

    Attributes:
        recorded: the number of passes that were recorded.
        replayed: the number of times that one was replayed.
    """

    def __init__(self, recorder: PassRecorder | None, device: torch.device) -> None:
        self._recorder, self._device = recorder, device
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._checked: set[str] = set()
        self.recorded = self.replayed = 0

    @property
    def on(self) -> bool:
        """Whether passes are recorded."""
        return self._recorder is not None

    def __len__(self) -> int:
        """The number of passes that can be replayed."""
        self._forget_dead()
        return len(self._graphs)

    def clear(self) -> None:
        """Forgets what was recorded: weights were changed, or memory is short."""
        self._graphs.clear()
        self._seen.clear()

    def run(self, wanted: StaticPass) -> Outputs:
        """The outputs of a pass, which stay as they are."""
        if self._recorder is None:
            return wanted.compute(*self._moved(wanted.inputs))
        self._forget_dead()
        key = wanted.kind, wanted.key, *map(id, wanted.owners)
        if (graph := self._graphs.get(key)) is not None:
            self._graphs.move_to_end(key)
            for mine, given in zip(graph.inputs, wanted.inputs, strict=True):
                mine.copy_(pinned(given, self._device), non_blocking=True)
            graph.replay()
            self.replayed += 1
            return tuple(output.clone() for output in graph.outputs)
        inputs = self._moved(wanted.inputs)
        outputs = wanted.compute(*inputs)
        if key in self._seen:
            del self._seen[key]
            self._record(self._recorder, key, wanted, inputs, outputs)
        else:
            self._seen[key] = None
            _bound(self._seen)
        return outputs

    def _record(
        self, recorder: PassRecorder, key: Hashable, wanted: StaticPass, inputs: Outputs, outputs: Outputs
    ) -> None:
        """Records a pass that has just been computed. The first one of a kind is replayed and compared with that. If
        anything fails nothing is recorded any more.
        """
        try:
            static = tuple(given.clone() for given in inputs)
            replay, found = recorder.record(lambda: wanted.compute(*static))
            if wanted.kind not in self._checked:
                replay()
                if not all(_agree(*pair) for pair in zip(found, outputs, strict=True)):
                    raise RuntimeError("a replayed pass gave other numbers than the pass itself")
                self._checked.add(wanted.kind)
        except Exception as error:  # drivers, libraries and the allocator have errors of their own
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            _log.warning("graphs are off: a %s cannot be recorded (%s)", wanted.kind, reason)
            self._recorder = None
            self.clear()
            return
        self._graphs[key] = _Graph(static, found, replay, tuple(map(ref, wanted.owners)), wanted.kept)
        _bound(self._graphs)
        self.recorded += 1

    def _forget_dead(self) -> None:
        for key in [key for key, graph in self._graphs.items() if any(owner() is None for owner in graph.owners)]:
            del self._graphs[key]

    def _moved(self, inputs: Sequence[Tensor]) -> Outputs:
        return tuple(to_device(given, self._device) for given in inputs)


def _agree(found: Tensor, expected: Tensor) -> bool:
    """Whether two results are the same but for rounding. Waits for the device."""
    difference, size = (found.float() - expected.float()).norm(), expected.float().norm()
    return bool(difference <= _TOLERANCE * size) or bool(torch.equal(found, expected))


def _bound(
    entries: OrderedDict[Hashable, object] | OrderedDict[Hashable, _Graph] | OrderedDict[Hashable, None],
) -> None:
    while len(entries) > MAX_GRAPHS:
        entries.popitem(last=False)
