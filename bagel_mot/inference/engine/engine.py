"""The engine: all active requests advance together, one packed forward pass a step.

A request is a generator. It yields ops and goes on when they have their results; what it returns is its result:

    op = ForwardOp(context, (segment,), Output.LOGITS); yield [op]                       # a prefill, or one token
    ops = [ForwardOp(c, (noised,), Output.VELOCITY, scratch=s) for …]; yield ops           # one denoising step
    ops = [EncodeOp(pixels) for pixels in images]; yield ops

Each step gathers the ops of all requests, whatever their kinds, sizes and settings; packs all forward ops into one
sequence and runs the model once; runs images of one size through the autoencoder together; and lets each request go on.
Requests join and leave between steps. A request that fails does so alone.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from bagel_mot.allocator import keep_freed_memory, return_freed_memory
from bagel_mot.checkpoint.shapes import weight_count
from bagel_mot.errors import BagelError
from bagel_mot.inference.engine.batches import BatchRunner
from bagel_mot.inference.engine.graphs import PassRecorder
from bagel_mot.inference.engine.ops import Steps
from bagel_mot.inference.engine.runner import EngineStats, Runner
from bagel_mot.inference.engine.scheduler import Scheduler
from bagel_mot.inference.engine.ticket import Ticket
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.cache import Context
from bagel_mot.model.vae import Autoencoder
from bagel_mot.placement.estimate import MAX_STEP_PIXELS, MAX_STEP_TOKENS
from bagel_mot.placement.oom import MemoryGuard
from bagel_mot.threads import Threads, choose_threads
from bagel_mot.tokenizer import SpecialTokens

T = TypeVar("T")

_FROM_WITHIN = "a request or its callback cannot run the engine that runs it"


@contextmanager
def _cancelling(tickets: Sequence[Ticket[Any]]) -> Iterator[None]:
    """Cancels tickets when an error or an interrupt passes."""
    try:
        yield
    except BaseException as error:
        for ticket in tickets:
            ticket.cancel(error if isinstance(error, Exception) else None)
        raise


class Engine:
    """Runs requests together. Safe to use from several threads: whoever waits for a result drives all requests.

    An interrupt (any `BaseException` that is no `Exception`) may break off a step anywhere. It ends the request whose
    code it hit; what was computed for the others stays with them, and the next step goes on from there.

    Args:
        model: the model, in evaluation mode.
        autoencoder: the autoencoder, in evaluation mode.
        special: ids of the special tokens.
        vocab_size: ids from here on are never chosen; by default all rows of the embedding can be.
        memory: says what fits into memory; by default everything does.
        max_step_tokens: tokens of one forward pass, at most; a step with more takes several. After memory ran out,
            passes are smaller for a while. All three limits may be changed later.
        max_active_cost: requests wait while those at work hold this many tokens of cache.
        max_step_pixels: pixels of one pass of the autoencoder, at most.
        threads: the number of threads that compute; by default chosen by the size of the model.
        recorder: records denoising steps and decoded tokens, which are replayed then; by default each operation of
            each pass is started by itself.

    Attributes:
        runner: runs batches.
        scheduler: lets requests begin.
        closed: whether `close` was called.
        weights_version: the number of times that the weights were changed; caches of another version are of no use.
    """

    def __init__(
        self,
        model: BagelModel,
        autoencoder: Autoencoder,
        special: SpecialTokens,
        *,
        vocab_size: int | None = None,
        memory: MemoryGuard | None = None,
        max_step_tokens: int = MAX_STEP_TOKENS,
        max_active_cost: int = 262144,
        max_step_pixels: int = MAX_STEP_PIXELS,
        threads: Threads | None = None,
        recorder: PassRecorder | None = None,
    ) -> None:
        if model.device.type == "cpu":
            keep_freed_memory()
        self.model, self.autoencoder = model, autoencoder
        vocab_size = vocab_size or model.config.decoder.vocab_size
        self.runner = Runner(model, autoencoder, special, vocab_size, recorder)
        self.scheduler = Scheduler()
        self.memory = memory or MemoryGuard()
        self._batches = BatchRunner(self.runner, self.memory)
        self.max_step_tokens, self.max_step_pixels = max_step_tokens, max_step_pixels
        self.max_active_cost = max_active_cost
        self._stats = self.runner.stats
        self.closed = False
        self.weights_version = 0
        self.threads = threads or choose_threads(weight_count(model.config))
        self._lock = threading.RLock()  # held by the thread that steps
        self._stepping = False
        # One of the threads that wait for results, the driver, makes steps; the others sleep.
        self._turn = threading.Condition()
        self._driver: int | None = None

    @property
    def stats(self) -> EngineStats:
        """Counts since the engine was made."""
        return self._stats

    def close(self) -> None:
        """Cancels all requests and lets go of the model. Whatever is asked of the engine afterwards is refused.

        Raises:
            RuntimeError: called by a request, or by one of its callbacks.
        """
        with self._lock:
            if self._stepping:
                raise RuntimeError(_FROM_WITHIN)
            if self.closed:
                return
            self.closed = True
            for ticket in self.scheduler.tickets:
                ticket.cancel()
            self.scheduler.take_arrivals()
            self.scheduler.forget_done()
            device = self.model.device
            del self.model, self.autoencoder, self.runner, self._batches
        if device.type == "cuda":
            torch.cuda.empty_cache()
        elif device.type == "cpu":
            return_freed_memory()

    def _check_open(self) -> None:
        if self.closed:
            raise BagelError("this model was closed: load it again with Bagel.from_pretrained.")

    @contextmanager
    def changing_weights(self) -> Iterator[None]:
        """Within it weights may be changed: no request is at work, and those that are submitted begin afterwards.

        Raises:
            BagelError: requests are at work or wait.
            RuntimeError: called by a request, or by one of its callbacks.
        """
        self._check_open()
        with self._lock:
            if self._stepping:
                raise RuntimeError(_FROM_WITHIN)
            self.scheduler.take_arrivals()
            self.scheduler.forget_done()
            if count := len(self.scheduler.tickets):
                raise BagelError(
                    f"adapters cannot be changed while requests are at work ({count} now): wait for their end."
                )
            try:
                yield
            finally:
                self.weights_version += 1
                self.runner.graphs.clear()

    def new_context(self, reserve: int = 0) -> Context:
        """An empty context; `reserve` tokens are expected in all."""
        self._check_open()
        return Context(self.model.decoder.cache_spec, reserve)

    def check_image(self, size: tuple[int, int] | None) -> None:
        """Checks memory before an image of this (width, height) is drawn: its last step is often the largest, and the
        rest of the work would be lost. Beside other work nothing can be said: what that takes now may be free then.

        Raises:
            MemoryShortageError: it does not fit.
        """
        self._check_open()
        if size is not None and self.active == 0:
            self.memory.check(self.runner.image_bytes(size[0] * size[1], decode=True))

    def submit(self, steps: Steps[T], cost: int = 0, prompt: tuple[Any, int] = (None, 0)) -> Ticket[T]:
        """Takes a request in; it begins with the next step that has room. Never waits, whoever is stepping.

        Args:
            steps: the request, not yet begun.
            cost: tokens of cache that it will hold at most, without its prompt.
            prompt: a key of its prompt, and the prompt's tokens: requests with equal keys hold it once.
        """
        self._check_open()
        ticket = Ticket(steps, cost, prompt, self.run_until, self._close_cancelled)
        self.scheduler.arrivals.append(ticket)
        return ticket

    @property
    def idle(self) -> bool:
        """Whether no request is left."""
        return not self.scheduler.tickets

    @property
    def active(self) -> int:
        """The number of requests at work."""
        return sum(ticket.begun for ticket in self.scheduler.tickets)

    @property
    def waiting(self) -> int:
        """The number of requests that wait for room."""
        return sum(not ticket.begun for ticket in self.scheduler.tickets)

    # --------------------------------------------------------------------------------------------------------- threads

    def run_until(self, tickets: Sequence[Ticket[Any]]) -> None:
        """Steps until all of `tickets` are done, however that ends. If interrupted, they are cancelled.

        Raises: what broke a step itself; it is also the error of the tickets.
        """
        with _cancelling(tickets):
            for ticket in tickets:
                while not ticket.done():
                    self._step_for(ticket)

    def run_until_one(self, tickets: Sequence[Ticket[Any]]) -> None:
        """Steps until one of `tickets`, or several, are done. Interrupts and errors as `run_until`."""
        with _cancelling(tickets):
            while not any(ticket.done() for ticket in tickets):
                self._step_for(tickets[0])

    def stream(self, start: Callable[[Callable[[str], None]], Ticket[T]]) -> Generator[str, None, T]:
        """Steps while a request writes, and yields the pieces. If abandoned, the request is cancelled.

        Args:
            start: submits the request, which is to call the function given with each piece.

        Returns: the result of the request.

        Raises: what the request raised.
        """
        pieces: deque[str] = deque()
        ticket = start(pieces.append)
        try:
            while not ticket.done():
                self._step_for(ticket)
                while pieces:
                    yield pieces.popleft()
            yield from pieces  # another thread may have made the last step
            return ticket.result()
        finally:
            ticket.cancel()

    def _step_for(self, ticket: Ticket[Any]) -> None:
        """One step for a request that is not done, taken by this thread or by another one that waits, too."""
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
                self.scheduler.take_arrivals()
                if ticket.done():  # by another thread, while this one waited
                    return
                if ticket not in self.scheduler.tickets:
                    raise RuntimeError("the request was not submitted to this engine")
                self.step()
        finally:
            self._close_cancelled()
            with self._turn:
                self._driver = None
                self._turn.notify_all()

    def _close_cancelled(self) -> None:
        """Ends what was cancelled while this thread had the lock, which the other one would not wait for."""
        while any(ticket.overdue for ticket in self.scheduler.tickets):
            if not self._lock.acquire(blocking=False):
                return  # whoever has it looks after itself
            try:
                self.scheduler.take_arrivals()
                self.scheduler.forget_done()
            finally:
                self._lock.release()

    # ----------------------------------------------------------------------------------------------------------- steps

    def step(self) -> None:
        """Advances every active request by its next ops.

        Raises:
            RuntimeError: called by a request, or by one of its callbacks.
        """
        try:
            with self._lock, self.threads.at_work(), torch.inference_mode():
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
        active = self.scheduler.admit(self.max_active_cost - self.memory.idle_tokens)
        ops = [op for ticket in active for op in ticket.ops if not op.settled]
        self._batches.run(ops, self.max_step_tokens, self.max_step_pixels)
        self._advance(active)
        # Extrapolated states need the velocity head alone: nobody waits for a forward pass of others.
        while heads := [op for ticket in active for op in ticket.heads]:
            self._batches.attempt(self.runner.velocities, heads)
            self._advance(active)
        self.scheduler.forget_done()

    def _advance(self, active: Sequence[Ticket[Any]]) -> None:
        for ticket in active:
            if not ticket.done() and ticket.ready:  # it may have been cancelled by another request's callback
                ticket.advance()
