"""The scheduler: which requests are at work, and which of their ops run together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from bagel_mot.inference.engine.ops import ForwardOp
from bagel_mot.inference.engine.ticket import Ticket

T = TypeVar("T")
_CHUNK = 1024
"""Tokens of prompts that are read in a step beside what others generate, so that these need not wait long."""


class Scheduler:
    """Requests in order of their arrival. First come, first served: one that finds no room waits, and so do those
    behind it.
    """

    def __init__(self) -> None:
        self._tickets: list[Ticket[Any]] = []  # those at work, then those that wait for room
        self.arrivals: deque[Ticket[Any]] = deque()  # submitted since; taken in by whoever has the engine

    @property
    def tickets(self) -> list[Ticket[Any]]:
        """All requests that are not done."""
        return [ticket for ticket in [*self._tickets, *self.arrivals] if not ticket.done()]

    def take_arrivals(self) -> None:
        """Lets in what was submitted, and closes what was cancelled. For whoever holds the engine's lock."""
        while self.arrivals:
            self._tickets.append(self.arrivals.popleft())
        for ticket in self._tickets:
            if ticket.overdue:
                ticket.close()

    def forget_done(self) -> None:
        self._tickets = [ticket for ticket in self._tickets if not ticket.done()]

    def admit(self, max_cost: int) -> list[Ticket[Any]]:
        """Lets those begin for whom there is room: while others are at work, no more than `max_cost` tokens of cache in
        all, where equal prompts count once. Returns all that are at work.
        """
        self.take_arrivals()
        self.forget_done()
        begun = [ticket for ticket in self._tickets if ticket.begun]
        prompts = dict(ticket.prompt for ticket in begun)
        cost = sum(ticket.cost for ticket in begun) + sum(prompts.values())
        active: list[Ticket[Any]] = []
        for ticket in list(self._tickets):
            if ticket.done():  # cancelled by one that has just begun
                continue
            if not ticket.begun:
                key, tokens = ticket.prompt
                if active and cost + ticket.cost + (0 if key in prompts else tokens) > max_cost:
                    break
                ticket.advance()
                if not ticket.done():
                    cost += ticket.cost + (0 if key in prompts else tokens)
                    prompts[key] = tokens
            elif any(op.committing and not op.settled for op in ticket.ops):
                # A step was broken off just there: whether its context holds the segments or not nobody knows.
                ticket.close()
            if not ticket.done():
                active.append(ticket)
        return active


def forward_batches(ops: Sequence[ForwardOp], limit: int) -> Iterator[list[ForwardOp]]:
    """The forward passes of one step: as few as `limit` tokens per pass allow.

    Tokens and images that are being generated come first. Beside them no more than a chunk of the prompts is read, so
    that a long prompt does not hold them up; without them, prompts are cut where a pass would be too large.
    """
    generating = [op for op in ops if not op.appends]
    reading = [op for op in ops if op.appends]
    if generating and sum(op.tokens for op in reading) > _CHUNK:
        reading = list(_chunk(reading, min(_CHUNK, limit)))
    for op in reading:
        if op.tokens > limit:
            op.take(limit)
    together = set(map(id, generating)) | set(map(id, reading))
    yield from batches([op for op in ops if id(op) in together], lambda op: op.tokens, limit)


def _chunk(ops: Iterable[ForwardOp], room: int) -> Iterator[ForwardOp]:
    """The first of `ops`, cut so that they have no more than `room` tokens in all; or one piece of the first."""
    for i, op in enumerate(ops):
        op.take(room)
        if i and op.tokens > room:
            return
        room -= op.tokens
        yield op
        if room <= 0:
            return


def batches(items: Iterable[T], size: Callable[[T], int], limit: int) -> Iterator[list[T]]:
    """Neighbours together, as many as have no more than `limit` in all; at least one."""
    batch: list[T] = []
    total = 0
    for item in items:
        if batch and total + size(item) > limit:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size(item)
    if batch:
        yield batch
