"""Adapters with random numbers, for tests."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from bagel_mot.checkpoint.adapters import linear_shapes
from bagel_mot.config import BagelConfig
from bagel_mot.model.adapters import EXPERT_MATRICES, Adapter, MatrixAdapter


def random_adapter(
    config: BagelConfig,
    *,
    seed: int = 0,
    experts: Iterable[str] = ("und", "gen"),
    matrices: Iterable[str] = EXPERT_MATRICES,
    rank: int = 4,
    gen_rank: int | None = None,
    rslora: bool = False,
    dora: bool = False,
    deviation: float = 0.1,
) -> Adapter:
    """An adapter that changes what a model does, with float32 numbers that bfloat16 holds exactly."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(*shape: int, scale: float) -> torch.Tensor:
        return (scale * torch.randn(shape, generator=generator)).bfloat16().float()

    adapters = {}
    for place, (out, inner) in linear_shapes(config).items():
        parts = place.split(".")
        if not place.startswith("decoder.layers.") or parts[3] not in set(experts) or parts[4] not in set(matrices):
            continue
        r = gen_rank if gen_rank is not None and parts[3] == "gen" else rank
        magnitude = 1 + numbers(out, scale=deviation).abs() if dora else None
        adapters[place] = MatrixAdapter(
            numbers(r, inner, scale=inner**-0.5), numbers(out, r, scale=deviation), 2.0 * r, magnitude
        )
    return Adapter(adapters, rslora)
