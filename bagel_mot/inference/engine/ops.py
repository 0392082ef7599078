"""The ops that requests hand to the engine. Each holds its own result.

A request is a generator of `Steps`: it yields the ops that it needs next, goes on when all of them have their results,
and returns the result of the whole.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Hashable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

import torch
from torch import Tensor

from bagel_mot.inference.settings import GenerationSettings
from bagel_mot.model.cache import Context, KVReservation
from bagel_mot.sequence import Segment, TextSegment, segment_length

T = TypeVar("T")


@dataclass(eq=False, kw_only=True)
class Op:
    """One piece of engine work.

    Attributes:
        owner: the ticket of the request that waits for it.
        committing: whether its context is being extended just now.
        settled: whether there is a result or an error.
        result: its result.
        error: the error, where there is no result.
    """

    owner: object = field(default=None, init=False)
    committing: bool = field(default=False, init=False)
    settled: bool = field(default=False, init=False)
    result: Any = field(default=None, init=False)
    error: Exception | None = field(default=None, init=False)

    def begin(self, owner: object) -> None:
        """Hands the op in, for the first time or again."""
        self.owner, self.settled, self.committing = owner, False, False
        self.result = self.error = None

    def settle(self, result: Any = None, error: Exception | None = None) -> None:
        self.result, self.error, self.settled = result, error, True


Steps = Generator[Sequence[Op], None, T]


class Output(Enum):
    """The kinds of result that a forward op can have."""

    NONE = "none"  # the context has grown; a scalar on the device says whether what was read is finite
    LOGITS = "logits"  # (vocab,) float32 after the last token
    TOKEN = "token"  # the id of the next token, chosen as `choice` says
    VELOCITY = "velocity"  # (N, latent_dim) float32 of the last segment, a noised image


@dataclass(eq=False)
class TokenChoice:
    """The choice of the next token of a text.

    Attributes:
        settings: sampling, penalty and their like.
        generator: the request's own source of randomness, on the model's device.
        tokens: the tokens that the text has so far.
        record: whether the logits are kept, too.
        logits: (vocab,) float32 on the CPU, where they are kept.
    """

    settings: GenerationSettings
    generator: torch.Generator
    tokens: list[int] = field(default_factory=list)
    record: bool = False
    logits: Tensor | None = None


@dataclass(eq=False)
class ForwardOp(Op):
    """Segments to be read behind a context.

    Attributes:
        context: the context that they follow. Within one step no context may be in two ops that append to it.
        segments: the segments.
        output: the kind of its result.
        scratch: a reservation to write keys and values to; the context then stays as it is. Without one, the segments
            become part of the context.
        record: whether the context keeps an entry for each segment.
        choice: the choice of a token.
        hidden: (N, hidden) of a noised image before the final norm, where the output is its velocity.
        part: the segments that the next forward pass reads: all, or where they are too many a part of them.
        names: the one of `segments` that is complete with each segment of `part`; None where a cut follows.
    """

    context: Context
    segments: tuple[Segment, ...]
    output: Output = Output.NONE
    scratch: KVReservation | None = None
    record: bool = True
    choice: TokenChoice | None = None
    hidden: Tensor | None = field(default=None, init=False)
    part: tuple[Segment, ...] = field(default=(), init=False)
    names: tuple[Segment | None, ...] = field(default=(), init=False)
    _left: tuple[Segment, ...] = field(default=(), init=False)

    def begin(self, owner: object) -> None:
        super().begin(owner)
        self._left = self.segments
        self._take_all()

    @property
    def tokens(self) -> int:
        """Tokens that are read in the next forward pass."""
        return sum(map(segment_length, self.part))

    @property
    def appends(self) -> bool:
        """Whether it reads a prompt or a part of one, which can wait and be cut."""
        return self.scratch is None and self.record

    @property
    def ends(self) -> bool:
        """Whether nothing is left after the next forward pass."""
        return len(self.part) == len(self._left) and None not in self.names

    def take(self, limit: int) -> None:
        """Lets the next forward pass read the next `limit` tokens at most, but at least one piece. Texts can be cut
        anywhere, images not at all.
        """
        part: list[Segment] = []
        whole = self.segments[len(self.segments) - len(self._left) :]
        names: list[Segment | None] = []
        for segment, name in zip(self._left, whole, strict=True):
            room = limit - sum(map(segment_length, part))
            if segment_length(segment) <= room or (not part and not isinstance(segment, TextSegment)):
                part.append(segment)
                names.append(name)
                continue
            if isinstance(segment, TextSegment) and (room > 0 or not part):
                part.append(TextSegment(segment.ids[: max(room, 1)]))
                names.append(None)
            break
        self.part, self.names = tuple(part), tuple(names)

    def advance(self) -> bool:
        """Notes that `part` has been read; returns whether that was all."""
        complete = len(self.part) - (None in self.names)
        left = list(self._left[complete:])
        if complete < len(self.part):
            cut = left[0]
            assert isinstance(cut, TextSegment), "only texts are cut"
            left[0] = TextSegment(cut.ids[segment_length(self.part[-1]) :])
        self._left = tuple(left)
        self._take_all()
        return not left

    def _take_all(self) -> None:
        self.part, self.names = self._left, self.segments[len(self.segments) - len(self._left) :]


@dataclass(eq=False)
class VelocityOp(Op):
    """Hidden states (N, hidden) that were extrapolated instead of computed -> velocity (N, latent_dim) float32."""

    hidden: Tensor


@dataclass(eq=False)
class EncodeOp(Op):
    """Pixels (3, H, W) in [-1, 1] -> scaled latent (z, h, w), float32 on the model's device."""

    pixels: Tensor


@dataclass(eq=False)
class DecodeOp(Op):
    """Scaled latent (z, h, w) -> pixels (3, H, W) in [-1, 1], float32 on the CPU."""

    latent: Tensor


@dataclass(eq=False)
class WaitOp(Op):
    """Nothing to compute: it only waits until the read of another request, `key`, is no longer `under_way`."""

    under_way: Collection[Hashable]
    key: Hashable
