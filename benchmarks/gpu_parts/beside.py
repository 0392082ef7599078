"""What ours is compared with: the matmuls of a drawing step alone, and a plain loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bagel_mot.bench.plain import PlainCache, plain_text, plain_velocity
from bagel_mot.bench.roofline import ForwardTokens, matmul_flops, roofline
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.full_attention import kernels_by_name
from gpu_parts.common import Scale, attempt, seconds_of


def matmul(model: BagelModel, scale: Scale, device: torch.device) -> dict[str, Any]:
    """The matmuls of one branch of a drawing step alone, in bfloat16."""
    tokens = (scale.side // scale.config.latent_stride) ** 2
    work = ForwardTokens(und=2, gen=tokens, latents=tokens)
    run = roofline(model, work)
    run()
    least = min(seconds_of(run, device) for _ in range(5))
    flops = matmul_flops(model, work)
    return {"tokens": tokens, "flops_per_branch": flops, "seconds": least, "flops_per_second": flops / least}


def attention(model: BagelModel, scale: Scale, device: torch.device) -> dict[str, Any]:
    """Seconds of an image's attention in one layer by each kernel, at the whole side and at half of it; why it is not
    there, where it is not.
    """
    config, found = scale.config.decoder, {}
    group = config.num_heads // config.num_kv_heads
    for side in (scale.side, scale.side // 2):
        tokens = (side // scale.config.latent_stride) ** 2 + 2
        shapes = (group * tokens, tokens + 20, tokens + 20)
        inputs = [
            torch.randn(1, config.num_kv_heads, n, config.head_dim, device=device, dtype=model.dtype) for n in shapes
        ]
        for name, way in kernels_by_name().items():
            run = partial(way, *inputs)

            def least(run: Callable[[], object] = run) -> dict[str, Any]:
                run()
                return {"seconds": min(seconds_of(run, device) for _ in range(5))}

            found[f"{name}, {side}×{side}"] = attempt(least, device)
    return found


def plain(model: BagelModel, scale: Scale, device: torch.device) -> dict[str, Any]:
    """A text-to-image step as the published code makes it: three branches, one after another; and a token."""
    rows = scale.side // scale.config.latent_stride
    tokens = rows * rows
    with torch.inference_mode():
        caches = [PlainCache.empty(len(model.decoder.layers)) for _ in range(3)]
        ids = torch.arange(5, 25, device=device)
        plain_text(model, ids, 0, caches[0])
        plain_text(model, ids, 0, caches[2])
        plain_text(model, ids[:2], 0, caches[1])
        latents = torch.randn(tokens, scale.config.latent_dim, device=device, dtype=model.dtype)
        index = (torch.arange(rows, device=device)[:, None] * scale.config.max_latent_size).add(
            torch.arange(rows, device=device)
        )
        markers = torch.tensor([3, 4], device=device)

        def step() -> None:
            for cache in caches:
                plain_velocity(model, markers, latents, index.flatten(), 0.5, cache.length, cache)

        step()
        least = min(seconds_of(step, device) for _ in range(3))
        cache = caches[0]
        one = torch.tensor([7], device=device)

        def decode() -> None:
            model.logits(plain_text(model, one, cache.length, cache))

        decode()
        token = min(seconds_of(decode, device) for _ in range(5))
    return {"branches": 3, "seconds_per_step": least, "seconds_per_token": token}
