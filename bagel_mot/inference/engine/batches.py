"""A step's ops in batches: what fails is found, and what does not fit into memory is done in parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from bagel_mot.errors import MemoryShortageError
from bagel_mot.inference.engine.backoff import BatchBackoff
from bagel_mot.inference.engine.ops import DecodeOp, EncodeOp, ForwardOp, Op, VelocityOp
from bagel_mot.inference.engine.runner import Runner, shape_of
from bagel_mot.inference.engine.scheduler import batches, forward_batches
from bagel_mot.placement.oom import MemoryGuard

_FEW_TOKENS = 1024


class BatchRunner:
    """Runs batches of ops so that an error reaches its culprit alone, and a shortage of memory nobody if it can be
    helped. After a shortage, batches are smaller for a while.

    Args:
        runner: runs a batch.
        memory: says what fits into memory.
    """

    def __init__(self, runner: Runner, memory: MemoryGuard) -> None:
        self._runner, self._memory = runner, memory
        self._token_backoff, self._pixel_backoff = BatchBackoff(_FEW_TOKENS), BatchBackoff(1)

    def run(self, ops: Sequence[Op], max_tokens: int, max_pixels: int) -> None:
        """Runs the ops of one step, in as few passes as the limits allow.

        Args:
            ops: ops that are not settled.
            max_tokens: tokens of one forward pass, at most; a step with more takes several.
            max_pixels: pixels of one pass of the autoencoder, at most.
        """
        forwards = [op for op in ops if isinstance(op, ForwardOp)]
        heads = [op for op in ops if isinstance(op, VelocityOp)]
        images: list[EncodeOp | DecodeOp] = [op for op in ops if isinstance(op, EncodeOp | DecodeOp)]
        self._runner.stats.steps += bool(forwards or heads or images)
        for batch in forward_batches(forwards, self._token_backoff.bounded(max_tokens)):
            self.attempt(self._runner.forward, batch)
        if heads:
            self.attempt(self._runner.velocities, heads)
        max_pixels = self._pixel_backoff.bounded(max_pixels)
        for kind, run in ((EncodeOp, self._runner.encode), (DecodeOp, self._runner.decode)):
            alike = sorted((op for op in images if isinstance(op, kind)), key=shape_of)
            for _, group in groupby(alike, key=shape_of):
                for images_together in batches(group, self._runner.pixels, max_pixels):
                    self.attempt(run, images_together)

    def attempt(self, run: Callable[[Any], None], batch: Sequence[Op]) -> None:
        """Runs a batch; if it fails, each request's part on its own, so that only the culprits fail. If memory ran out,
        each op on its own.
        """
        try:
            self._memory.check(self._bytes(batch))
            run(batch)
            self._backoff(batch).succeeded()
            return
        except Exception as error:
            left = [op for op in batch if not op.settled]
            parts = [list(group) for _, group in groupby(left, key=lambda op: op.owner)]
            explained = self._memory.explain(error)
            short = isinstance(explained, MemoryShortageError)
            if len(parts) == 1 and (len(left) == 1 or not short):
                for op in left:
                    op.settle(error=explained)
                return
            if short and len(parts) == 1:
                parts = [[op] for op in left]
            del explained
        if short:  # recorded passes hold memory of their own
            self._runner.graphs.clear()
        # Only here, where the error and with it the failed attempt's tensors are gone: they may be why it failed.
        for part in parts:
            self.attempt(run, part)
        if short and any(op.error is None for op in left):
            sizes = list(map(self._size, left))
            self._backoff(left).reduce(sum(sizes), max(sizes))

    def _backoff(self, batch: Sequence[Op]) -> BatchBackoff:
        return self._pixel_backoff if isinstance(batch[0], EncodeOp | DecodeOp) else self._token_backoff

    def _size(self, op: Op) -> int:
        """The size of an op, in pixels or tokens."""
        if isinstance(op, EncodeOp | DecodeOp):
            return self._runner.pixels(op)
        return op.tokens if isinstance(op, ForwardOp) else 0

    def _bytes(self, batch: Sequence[Op]) -> int:
        """Bytes that a batch takes at the least."""
        if isinstance(batch[0], EncodeOp | DecodeOp):
            pixels, decode = sum(map(self._size, batch)), isinstance(batch[0], DecodeOp)
            return self._runner.image_bytes(pixels, decode=decode, images=len(batch))
        return self._runner.forward_bytes([op for op in batch if isinstance(op, ForwardOp)])
