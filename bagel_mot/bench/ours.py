"""The measured side of the comparison: requests to the engine, as users' requests are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from bagel_mot.inference.engine.engine import Engine
from bagel_mot.inference.engine.ops import ForwardOp, Output, Steps
from bagel_mot.model.cache import Context
from bagel_mot.sequence import TextSegment, VaeSegment


def run(engine: Engine, ops: Sequence[ForwardOp]) -> list[Any]:
    """Runs ops in one step of the engine and returns their results."""

    def steps() -> Steps[list[Any]]:
        yield ops
        return [op.result for op in ops]

    return engine.submit(steps()).result()


def read_text(engine: Engine, ids: Sequence[int], context: Context, *, record: bool = True) -> Tensor:
    """Reads text tokens into a context; returns the logits (vocab,) of what follows."""
    (logits,) = run(engine, [ForwardOp(context, (TextSegment(tuple(ids)),), Output.LOGITS, record=record)])
    return logits


class Denoising:
    """All guidance branches of one image: one step evaluates them together, each behind its own context."""

    def __init__(self, engine: Engine, contexts: Sequence[Context], grid: tuple[int, int]) -> None:
        self.engine, self.contexts, self.grid = engine, contexts, grid
        self.scratches = [context.allocate(grid[0] * grid[1] + 2, scratch=True) for context in contexts]

    def velocities(self, latents: Tensor, t: float) -> list[Tensor]:
        """The velocity (N, latent_dim) of each branch, for latents (N, latent_dim) at timestep t."""
        segment = VaeSegment(latents, self.grid, noised=True, timestep=t)
        ops = [
            ForwardOp(context, (segment,), Output.VELOCITY, scratch=scratch)
            for context, scratch in zip(self.contexts, self.scratches, strict=True)
        ]
        return run(self.engine, ops)
