"""The engine: all active requests advance together, one packed forward pass a step.

A request is a generator. It yields a list of work and is sent the list of results; what it returns is its result:

    logits, = yield [Row(context, (segment,), Output.LOGITS)]        # a prefill, or one token
    hidden = yield [Row(c, (noised,), Output.HIDDEN, tail=t) for …]    # one denoising step, all guidance branches
    latents = yield [Encode(pixels) for pixels in images]

Each step gathers the work of all requests, whatever their kinds, sizes and settings; packs all rows into one sequence
and runs the model once; runs images of one size through the autoencoder together; and hands each request its results.
Requests join and leave between steps. A request that fails does so alone.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

import torch

from bagel_mot.allocator import keep_freed_memory
from bagel_mot.errors import MemoryShortageError
from bagel_mot.inference.engine.backoff import BatchBackoff
from bagel_mot.inference.engine.ops import Decode, Encode, Handle, Output, Piece, Request, Row
from bagel_mot.model.attention import CachedAttention, CachedSample
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.cache import Context
from bagel_mot.model.vae import Autoencoder
from bagel_mot.placement.estimate import (
    MAX_STEP_PIXELS,
    MAX_STEP_TOKENS,
    cache_bytes,
    decode_bytes,
    encode_bytes,
    forward_bytes,
)
from bagel_mot.sequence import PackSpec, Sample, Values, pack_cached
from bagel_mot.tokenizer import SpecialTokens

T = TypeVar("T")

_FEW_TOKENS = 1024
_FROM_WITHIN = "a request or its callback cannot run the engine that runs it"


@dataclass
class EngineStats:
    """What an engine has done since it was made."""

    steps: int = 0
    forwards: int = 0
    rows: int = 0
    prefill_tokens: int = 0  # read into contexts
    written_tokens: int = 0  # of texts being written, one a forward pass
    noised_tokens: int = 0  # of denoising steps, image markers included
    encoded: int = 0  # images
    decoded: int = 0


class Engine:
    """Runs requests together. Safe to use from several threads: whoever waits for a result drives all requests.

    An interrupt (any `BaseException` that is no `Exception`) may break off a step anywhere. It ends the request whose
    code it hit; what was computed for the others stays with them, and the next step goes on from there.

    Args:
        model, autoencoder: loaded, in evaluation mode, on one device.
        special: ids of the special tokens.
        max_step_tokens: the most tokens of one forward pass; a step with more takes several. After a pass for which
            memory was short they are fewer for a while; so it is with `max_step_pixels`.
        max_active_cost: requests wait while those running have this much cost (in tokens) in all.
        max_step_pixels: the most pixels of one autoencoder pass.
    """

    def __init__(
        self,
        model: BagelModel,
        autoencoder: Autoencoder,
        special: SpecialTokens,
        *,
        max_step_tokens: int = MAX_STEP_TOKENS,
        max_active_cost: int = 262144,
        max_step_pixels: int = MAX_STEP_PIXELS,
    ) -> None:
        if model.device.type == "cpu":
            keep_freed_memory()
        self.model, self.autoencoder = model, autoencoder
        self.spec = PackSpec.of(model.config, special)
        self.max_step_tokens, self.max_active_cost = max_step_tokens, max_active_cost
        self.max_step_pixels = max_step_pixels
        self._tokens, self._pixels_bound = BatchBackoff(_FEW_TOKENS), BatchBackoff(1)
        self.idle_cost: Callable[[], int] = lambda: 0  # of what is kept between requests, such as by sessions
        self.check_memory: Callable[[int], None] = lambda needed: None  # raises where a pass of so many bytes cannot be
        self.explain: Callable[[Exception], Exception] = lambda error: error  # of what went wrong in a pass
        self.stats = EngineStats()
        self._lock = threading.RLock()  # held by the thread that steps
        self._handles: list[Handle[Any]] = []  # in order of arrival: those at work, then those that wait for room
        self._arrivals: deque[Handle[Any]] = deque()  # submitted since; taken in by whoever steps
        self._stepping = False
        # Of threads that wait for results: one of them, the driver, makes steps, and the others sleep.
        self._turn = threading.Condition()
        self._driver: int | None = None

    def new_context(self, reserve: int = 0) -> Context:
        """An empty context; `reserve` tokens are expected in all."""
        return Context(self.model.decoder.cache_spec, reserve)

    def check_image(self, size: tuple[int, int] | None) -> None:
        """Before an image of this width and height is drawn: its last step is often the largest, and the rest of the
        work would be lost. Beside other work nothing can be said: what that takes now may be free then.

        Raises: what `check_memory` raises.
        """
        if size is not None and self.active == 0:
            self.check_memory(decode_bytes(self.model.config.vae, size[0] * size[1], self._image_dtype))

    def submit(self, request: Request[T], cost: int = 0) -> Handle[T]:
        """Takes a request in; it begins with the next step that has room. Never waits, whoever is stepping.

        Args:
            request: a generator, not yet begun.
            cost: tokens of cache that it will hold.
        """
        handle = Handle(request, cost, self._close_cancelled)
        self._arrivals.append(handle)
        return handle

    @property
    def idle(self) -> bool:
        """Whether no request is left."""
        return all(handle.done for handle in [*self._handles, *self._arrivals])

    @property
    def active(self) -> int:
        """How many requests are at work."""
        return sum(handle.begun and not handle.done for handle in list(self._handles))

    @property
    def waiting(self) -> int:
        """How many requests wait for room."""
        return sum(not handle.begun and not handle.done for handle in [*self._handles, *self._arrivals])

    def step(self) -> None:
        """Advances every active request by one piece of work.

        Raises:
            RuntimeError: called by a request, or by one of its callbacks.
        """
        try:
            with self._lock, torch.inference_mode():
                if self._stepping:
                    raise RuntimeError(_FROM_WITHIN)
                self._stepping = True
                try:
                    self._step()
                finally:
                    self._stepping = False
        finally:
            self._close_cancelled()

    def _step(self) -> None:
        active = self._admit()
        items = [item for handle in active for item in handle.pieces if not item.settled]
        if items:
            self.stats.steps += 1
        rows = [item for item in items if isinstance(item.work, Row)]
        for batch in _batches(rows, lambda item: item.work.tokens, self._tokens.of(self.max_step_tokens)):
            self._attempt(self._forward, batch)
        for kind, run in ((Encode, self._encode), (Decode, self._decode)):
            images = [item for item in items if isinstance(item.work, kind)]
            images.sort(key=_shape)
            for _, group in groupby(images, key=_shape):
                for batch in _batches(list(group), self._pixels, self._pixels_bound.of(self.max_step_pixels)):
                    self._attempt(run, batch)
        for handle in active:
            if not handle.done:  # cancelled by another request's callback
                handle.advance()
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
        """One step for a request that is not done, taken by this thread or by another that waits, too."""
        me = threading.get_ident()
        with self._turn:
            if self._driver not in (None, me):
                self._turn.wait()  # until the other one has made its step
                return
            if self._driver == me:
                raise RuntimeError(_FROM_WITHIN)
            self._driver = me
        try:
            with self._lock:
                self._take_arrivals()
                if handle.done:  # by another thread, while this one waited
                    return
                if handle not in self._handles:
                    raise RuntimeError("the request was not submitted to this engine")
                self.step()
        finally:
            self._close_cancelled()
            with self._turn:
                self._driver = None
                self._turn.notify_all()

    def _take_arrivals(self) -> None:
        while self._arrivals:
            self._handles.append(self._arrivals.popleft())
        for handle in self._handles:
            handle.close_if_cancelled()

    def _close_cancelled(self) -> None:
        """Ends what was cancelled while this thread had the lock, which the other one would not wait for."""
        while any(handle.overdue for handle in [*self._handles, *self._arrivals]):
            if not self._lock.acquire(blocking=False):
                return  # whoever has it looks after itself
            try:
                self._take_arrivals()
                self._forget_done()
            finally:
                self._lock.release()

    def _admit(self) -> list[Handle[Any]]:
        """Lets those begin for whom there is room; returns all that are at work."""
        self._take_arrivals()
        self._forget_done()
        cost = sum(handle.cost for handle in self._handles if handle.begun)
        active: list[Handle[Any]] = []
        for handle in list(self._handles):
            if handle.done:  # cancelled by one that has just begun
                continue
            if not handle.begun:
                if active and cost + handle.cost + self.idle_cost() > self.max_active_cost:
                    break
                cost += handle.cost
                handle.advance()
                if handle.done:
                    cost -= handle.cost
            elif any(item.committing and not item.settled for item in handle.pieces):
                # A step was broken off just there: whether its context holds the row or not nobody knows.
                handle.close()
            if not handle.done:
                active.append(handle)
        return active

    def _forget_done(self) -> None:
        self._handles = [handle for handle in self._handles if not handle.done]

    def _attempt(self, run: Callable[[list[Piece]], None], batch: list[Piece]) -> None:
        """Runs a batch; if it fails, each request's part on its own, so that only the culprits fail. If memory is
        short, each piece on its own.
        """
        try:
            self.check_memory(self._demand(batch))
            run(batch)
            self._bound_of(batch).passed()
            return
        except Exception as error:
            left = [item for item in batch if not item.settled]
            parts = [list(group) for _, group in groupby(left, key=lambda item: item.owner)]
            short = isinstance(self.explain(error), MemoryShortageError)
            if len(parts) == 1 and (len(left) == 1 or not short):
                for item in left:
                    item.settle(error=self.explain(error))
                return
            if short and len(parts) == 1:
                parts = [[item] for item in left]
        # Only here, where the error and with it the failed attempt's tensors are gone: they may be why it failed.
        for part in parts:
            self._attempt(run, part)
        if short and any(item.error is None for item in left):
            sizes = [item.work.tokens if isinstance(item.work, Row) else self._pixels(item) for item in left]
            self._bound_of(left).shorten(sum(sizes), max(sizes))

    def _forward(self, batch: list[Piece]) -> None:
        rows: list[Row] = [item.work for item in batch if isinstance(item.work, Row)]
        samples = [Sample(row.segments, row.context.position) for row in rows]
        layout, values = pack_cached(samples, self.spec), Values.of(samples, self.spec)
        tails = [row.tail or row.context.allocate(row.tokens) for row in rows]
        attend = CachedAttention([CachedSample(s, t) for s, t in zip(layout.spans, tails, strict=True)])
        und, gen = self.model(layout.to(self.model.device), values.to(self.model.device), attend)
        last = [
            spans[-1].und[1] - 1 for row, spans in zip(rows, layout.spans, strict=True) if row.output is Output.LOGITS
        ]
        logits = iter(self.model.logits(und[last]).float() if last else ())
        self.stats.forwards += 1
        for item, row, spans, tail in zip(batch, rows, layout.spans, tails, strict=True):
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

    def _encode(self, batch: list[Piece]) -> None:
        pixels = torch.stack([item.work.pixels for item in batch if isinstance(item.work, Encode)])
        latents = self.autoencoder.encode(pixels.to(self.model.device, self._image_dtype)).float()
        for item, latent in zip(batch, latents, strict=True):
            item.settle(latent)
        self.stats.encoded += len(batch)

    def _decode(self, batch: list[Piece]) -> None:
        latents = torch.stack([item.work.latent for item in batch if isinstance(item.work, Decode)])
        pixels = self.autoencoder.decode(latents.to(self.model.device, self._image_dtype)).float().cpu()
        for item, image in zip(batch, pixels, strict=True):
            item.settle(image)
        self.stats.decoded += len(batch)

    def _bound_of(self, batch: list[Piece]) -> BatchBackoff:
        return self._tokens if isinstance(batch[0].work, Row) else self._pixels_bound

    def _demand(self, batch: list[Piece]) -> int:
        """Bytes that a pass takes at the least."""
        config, dtype = self.model.config, self.model.dtype
        if isinstance(batch[0].work, Row):
            rows = [item.work for item in batch if isinstance(item.work, Row)]
            new = sum(row.tokens for row in rows if row.tail is None)
            segments = [segment for row in rows for segment in row.segments]
            und, gen = sum(segment.und_len for segment in segments), sum(segment.gen_len for segment in segments)
            passing = forward_bytes(config.decoder, und, gen, dtype)
            return passing + cache_bytes(config.decoder, new, dtype)
        needs = decode_bytes if isinstance(batch[0].work, Decode) else encode_bytes
        return needs(config.vae, sum(map(self._pixels, batch)), self._image_dtype)

    @property
    def _image_dtype(self) -> torch.dtype:
        return self.autoencoder.encoder.conv_in.weight.dtype

    def _pixels(self, item: Piece) -> int:
        *_, height, width = _shape(item)
        scale = self.model.config.vae.downsample if isinstance(item.work, Decode) else 1
        return height * width * scale**2


def _shape(item: Piece) -> tuple[int, ...]:
    work = item.work
    return tuple(
        work.pixels.shape if isinstance(work, Encode) else work.latent.shape if isinstance(work, Decode) else ()
    )


def _batches(items: list[Piece], size: Callable[[Any], int], limit: int) -> Iterator[list[Piece]]:
    """Neighbours together, as many as have no more than `limit` in all; at least one."""
    batch: list[Piece] = []
    total = 0
    for item in items:
        if batch and total + size(item) > limit:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size(item)
    if batch:
        yield batch
