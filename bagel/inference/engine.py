"""The engine: all active requests advance together, one packed forward pass a step.

A request is a generator. It yields a list of work and is sent the list of results; what it returns is its result:

    logits, = yield [Row(context, (segment,), Output.LOGITS)]        # a prefill, or one token
    hidden = yield [Row(c, (noised,), Output.HIDDEN, tail=t) for …]    # one denoising step, all guidance branches
    latents = yield [Encode(pixels) for pixels in pictures]

Each step gathers the work of all requests, whatever their kinds, sizes and settings; packs all rows into one sequence
and runs the model once; runs pictures of one size through the autoencoder together; and hands each request its results.
Requests join and leave between steps. A request that fails does so alone.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from enum import Enum
from itertools import groupby
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from bagel.memory import keep_freed_memory
from bagel.model.attention import CachedAttention, CachedSample
from bagel.model.bagel import BagelModel
from bagel.model.cache import Context, Tail
from bagel.model.vae import Autoencoder
from bagel.sequence import PackSpec, Sample, Segment, SpecialTokens, pack, segment_length

T = TypeVar("T")


class Output(Enum):
    """What a row of work results in."""

    NONE = "nothing"  # None: the context has grown
    LOGITS = "logits"  # (vocab,) of what follows the row's last token
    HIDDEN = "hidden"  # (N, hidden) of the last segment's latents, before the final norm


@dataclass(eq=False)
class Row:
    """Segments to be read behind a context.

    Attributes:
        context: what they follow. Within one step no context may stand in two rows that append.
        segments: what to read.
        output: what is wanted.
        tail: scratch to use; the context then stays as it is. None: the segments become part of the context.
        record: whether the context keeps an entry for each segment.
    """

    context: Context
    segments: tuple[Segment, ...]
    output: Output = Output.NONE
    tail: Tail | None = None
    record: bool = True

    @property
    def tokens(self) -> int:
        return sum(segment_length(segment) for segment in self.segments)


@dataclass(eq=False)
class Encode:
    """Pixels (3, H, W) in [-1, 1] -> scaled latent (z, h, w), float32 on the model's device."""

    pixels: Tensor


@dataclass(eq=False)
class Decode:
    """Scaled latent (z, h, w) -> pixels (3, H, W), float32 on the CPU."""

    latent: Tensor


Work = Row | Encode | Decode
Request = Generator[list[Work], list[Any], T]


@dataclass
class EngineStats:
    """What an engine has done since it was made."""

    steps: int = 0
    forwards: int = 0
    rows: int = 0
    prefill_tokens: int = 0  # read into contexts
    written_tokens: int = 0  # of texts being written, one a forward pass
    noised_tokens: int = 0  # of denoising steps, image markers included
    encoded: int = 0  # pictures
    decoded: int = 0


@dataclass(eq=False)
class _Item:
    """One piece of a request's work, and what became of it."""

    owner: Handle[Any]
    work: Work
    committing: bool = False  # its context is being extended
    settled: bool = False  # the result or the error stands
    result: Any = None
    error: Exception | None = None

    def settle(self, result: Any = None, error: Exception | None = None) -> None:
        self.result, self.error, self.settled = result, error, True


class Handle(Generic[T]):
    """A submitted request."""

    def __init__(self, request: Request[T], cost: int, lock: threading.RLock) -> None:
        self._request = request
        self._lock = lock
        self.cost = cost
        self._begun = False
        self._items: list[_Item] = []  # what it waits for
        self._running = False
        self._cancelled = False
        self._value: T | None = None
        self.error: BaseException | None = None
        self.done = False

    def result(self) -> T:
        """What the request returned.

        Raises:
            RuntimeError: it is not done yet.
            CancelledError: it was cancelled.
            Exception: what the request raised.
        """
        if not self.done:
            raise RuntimeError("the request is not done: run the engine first")
        if self.error is not None:
            raise self.error
        return self._value  # type: ignore[return-value]  # set when done without an error

    def cancel(self) -> None:
        """Ends the request at once, or, when called from inside it, as soon as it waits; its memory is free again."""
        with self._lock:
            self._cancelled = True
            if not self._running and not self.done:
                self._close()

    def _close(self) -> None:
        self._request.close()
        self._finish(error=CancelledError())

    def _finish(self, value: T | None = None, error: BaseException | None = None) -> None:
        self._items = []
        self._value, self.error, self.done = value, error, True

    def _advance(self) -> None:
        """Hands the request its results, the first time none, and runs it to its next work or its end.

        What it raises is kept in the handle.
        """
        begun, items = self._begun, self._items
        try:
            self._running = self._begun = True
            self._items = []  # whatever happens from here on, nothing is handed over twice
            error = next((item.error for item in items if item.error is not None), None)
            if error is not None:
                work = self._request.throw(error)
            elif begun:
                work = self._request.send([item.result for item in items])
            else:
                work = next(self._request)
            while not work:
                work = self._request.send([])
            self._items = [_Item(self, own) for own in work]
        except StopIteration as stop:
            self._finish(stop.value)
        except BaseException as raised:
            self._finish(error=raised)
            if not isinstance(raised, Exception):  # an interrupt ends this request, and everybody's step
                raise
        finally:
            self._running = False
        if self._cancelled and not self.done:
            self._close()


class Engine:
    """Runs requests together. Safe to use from several threads: whoever waits for a result drives all requests.

    An interrupt (any `BaseException` that is no `Exception`) may break off a step anywhere. It ends the request whose
    code it hit; what was computed for the others stays with them, and the next step goes on from there.

    Args:
        model, autoencoder: loaded, in evaluation mode, on one device.
        special: ids of the special tokens.
        max_step_tokens: the most tokens of one forward pass; a step with more takes several.
        max_active_cost: requests wait while those running have this much cost (in tokens) in all.
        max_step_pixels: the most pixels of one autoencoder pass.
    """

    def __init__(
        self,
        model: BagelModel,
        autoencoder: Autoencoder,
        special: SpecialTokens,
        *,
        max_step_tokens: int = 32768,
        max_active_cost: int = 262144,
        max_step_pixels: int = 4 * 1024 * 1024,
    ) -> None:
        if model.device.type == "cpu":
            keep_freed_memory()
        self.model, self.autoencoder = model, autoencoder
        self.spec = PackSpec.of(model.config, special)
        self.max_step_tokens, self.max_active_cost = max_step_tokens, max_active_cost
        self.max_step_pixels = max_step_pixels
        self.stats = EngineStats()
        self._lock = threading.RLock()
        self._handles: list[Handle[Any]] = []  # in order of arrival: those at work, then those that wait for room
        self._stepping = False

    def new_context(self, reserve: int = 0) -> Context:
        """An empty context; `reserve` tokens are expected in all."""
        return Context(self.model.config.decoder, self.model.dtype, self.model.device, reserve)

    def submit(self, request: Request[T], cost: int = 0) -> Handle[T]:
        """Takes a request in; it begins with the next step that has room.

        Args:
            request: a generator, not yet begun.
            cost: tokens of cache that it will hold.
        """
        handle = Handle(request, cost, self._lock)
        with self._lock:
            self._handles.append(handle)
        return handle

    @property
    def idle(self) -> bool:
        """Whether no request is left."""
        return all(handle.done for handle in self._handles)

    def step(self) -> None:
        """Advances every active request by one piece of work.

        Raises:
            RuntimeError: called by a request, or by one of its callbacks.
        """
        with self._lock, torch.inference_mode():
            if self._stepping:
                raise RuntimeError("a request or its callback cannot run the engine that runs it")
            self._stepping = True
            try:
                self._step()
            finally:
                self._stepping = False

    def _step(self) -> None:
        active = self._admit()
        items = [item for handle in active for item in handle._items if not item.settled]
        if items:
            self.stats.steps += 1
        rows = [item for item in items if isinstance(item.work, Row)]
        for batch in _batches(rows, lambda item: item.work.tokens, self.max_step_tokens):
            self._attempt(self._forward, batch)
        for kind, run in ((Encode, self._encode), (Decode, self._decode)):
            pictures = [item for item in items if isinstance(item.work, kind)]
            pictures.sort(key=_shape)
            for _, group in groupby(pictures, key=_shape):
                for batch in _batches(list(group), self._pixels, self.max_step_pixels):
                    self._attempt(run, batch)
        for handle in active:
            if not handle.done:  # cancelled by another request's callback
                handle._advance()
        self._forget_done()

    def run_until(self, handles: Iterable[Handle[Any]]) -> None:
        """Steps until all of `handles` are done, however that ends. If interrupted, they are cancelled."""
        handles = list(handles)
        try:
            for handle in handles:
                while not handle.done:
                    self._step_for(handle)
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise

    def stream(self, handle: Handle[Any], pieces: deque[str]) -> Iterator[str]:
        """Steps while a request writes into `pieces`, and gives them out. If abandoned, the request is cancelled.

        Raises: what the request raised.
        """
        try:
            while not handle.done:
                self._step_for(handle)
                while pieces:
                    yield pieces.popleft()
            yield from pieces  # of a last step that another thread took
            handle.result()
        finally:
            handle.cancel()

    def _step_for(self, handle: Handle[Any]) -> None:
        with self._lock:
            if handle.done:  # by another thread, while this one waited
                return
            if handle not in self._handles:
                raise RuntimeError("the request was not submitted to this engine")
            self.step()

    def _admit(self) -> list[Handle[Any]]:
        """Lets those begin for whom there is room; returns all that are at work."""
        self._forget_done()
        cost = sum(handle.cost for handle in self._handles if handle._begun)
        active: list[Handle[Any]] = []
        for handle in list(self._handles):
            if handle.done:  # cancelled by one that has just begun
                continue
            if not handle._begun:
                if active and cost + handle.cost > self.max_active_cost:
                    break
                cost += handle.cost
                handle._advance()
                if handle.done:
                    cost -= handle.cost
            elif any(item.committing and not item.settled for item in handle._items):
                # A step was broken off just there: whether its context holds the row or not nobody knows.
                handle._close()
            if not handle.done:
                active.append(handle)
        return active

    def _forget_done(self) -> None:
        self._handles = [handle for handle in self._handles if not handle.done]

    def _attempt(self, run: Callable[[list[_Item]], None], batch: list[_Item]) -> None:
        """Runs a batch; if it fails, each request's part on its own, so that only the culprits fail."""
        try:
            run(batch)
            return
        except Exception as error:
            left = [item for item in batch if not item.settled]
            owners = [list(group) for _, group in groupby(left, key=lambda item: item.owner)]
            if len(owners) == 1:
                for item in left:
                    item.settle(error=error)
                return
        # Only here, where the error and with it the failed attempt's tensors are gone: they may be why it failed.
        for own in owners:
            self._attempt(run, own)

    def _forward(self, batch: list[_Item]) -> None:
        rows: list[Row] = [item.work for item in batch if isinstance(item.work, Row)]
        packed = pack([[Sample(row.segments, row.context.position) for row in rows]], self.spec)
        tails = [row.tail or row.context.allocate(row.tokens) for row in rows]
        attend = CachedAttention([CachedSample(s, t) for s, t in zip(packed.spans, tails, strict=True)])
        und, gen = self.model(packed.to(self.model.device), attend)
        last = [
            spans[-1].und[1] - 1 for row, spans in zip(rows, packed.spans, strict=True) if row.output is Output.LOGITS
        ]
        logits = iter(self.model.logits(und[last]).float() if last else ())
        self.stats.forwards += 1
        for item, row, spans, tail in zip(batch, rows, packed.spans, tails, strict=True):
            result = None
            if row.output is Output.LOGITS:
                result = next(logits)
            elif row.output is Output.HIDDEN:
                result = gen[slice(*spans[-1].gen)]
            if row.tail is None:
                item.committing = True
                row.context.commit(tail, row.segments, record=row.record)
                if row.record:
                    self.stats.prefill_tokens += row.tokens
                else:
                    self.stats.written_tokens += row.tokens
            else:
                self.stats.noised_tokens += row.tokens
            item.settle(result)
            self.stats.rows += 1

    def _encode(self, batch: list[_Item]) -> None:
        pixels = torch.stack([item.work.pixels for item in batch if isinstance(item.work, Encode)])
        latents = self.autoencoder.encode(pixels.to(self.model.device, self._picture_dtype)).float()
        for item, latent in zip(batch, latents, strict=True):
            item.settle(latent)
        self.stats.encoded += len(batch)

    def _decode(self, batch: list[_Item]) -> None:
        latents = torch.stack([item.work.latent for item in batch if isinstance(item.work, Decode)])
        pixels = self.autoencoder.decode(latents.to(self.model.device, self._picture_dtype)).float().cpu()
        for item, picture in zip(batch, pixels, strict=True):
            item.settle(picture)
        self.stats.decoded += len(batch)

    @property
    def _picture_dtype(self) -> torch.dtype:
        return self.autoencoder.encoder.conv_in.weight.dtype

    def _pixels(self, item: _Item) -> int:
        *_, height, width = _shape(item)
        scale = self.model.config.vae.downsample if isinstance(item.work, Decode) else 1
        return height * width * scale**2


def _shape(item: _Item) -> tuple[int, ...]:
    work = item.work
    return tuple(
        work.pixels.shape if isinstance(work, Encode) else work.latent.shape if isinstance(work, Decode) else ()
    )


def _batches(items: list[_Item], size: Callable[[Any], int], limit: int) -> Iterator[list[_Item]]:
    """Neighbours together, as many as have no more than `limit` in all; at least one."""
    batch: list[_Item] = []
    total = 0
    for item in items:
        if batch and total + size(item) > limit:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size(item)
    if batch:
        yield batch
