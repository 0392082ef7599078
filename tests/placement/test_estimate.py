"""What a pass takes at the least is most of what going through it counts, and never more."""

from __future__ import annotations

import pytest
import torch

from bagel_mot.checkpoint.official import read_config
from bagel_mot.config import NAMED_CONFIGS, BagelConfig
from bagel_mot.inference.loading import MINI_FOLDER
from bagel_mot.placement.estimate import cache_bytes, decode_bytes, encode_bytes, forward_bytes
from bagel_mot.placement.trace import Exact
from bagel_mot.placement.workload import Job, _forward, _images, _noised, _segments, taken
from bagel_mot.sequence import TextSegment

CONFIGS = {"mini": read_config(MINI_FOLDER), **{name: NAMED_CONFIGS[name] for name in ("0.5b", "7b-mot")}}


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> BagelConfig:
    return CONFIGS[request.param]


def side(config: BagelConfig) -> int:
    return min(256, config.max_latent_size * config.latent_stride)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_denoising_step(config: BagelConfig, dtype: torch.dtype, rows: int) -> None:
    job, memory = Job("generate", drawn=(side(config), side(config)), branches=rows), Exact()
    _forward(config, dtype, (_noised(config, job),), rows, 100, memory)
    latents = rows * (side(config) // config.latent_stride) ** 2
    assert 0.75 < forward_bytes(config.decoder, 2 * rows, latents, dtype) / memory.peak <= 1


def test_images_that_both_experts_read(config: BagelConfig) -> None:
    segments, memory = _segments(config, Job("edit", ((side(config), side(config)),) * 2)), Exact()
    _forward(config, torch.bfloat16, segments, 1, 0, memory)
    und, gen = sum(segment.und_len for segment in segments), sum(segment.gen_len for segment in segments)
    assert 0.6 < forward_bytes(config.decoder, und, gen, torch.bfloat16) / memory.peak <= 1


def test_a_text(config: BagelConfig) -> None:
    memory = Exact()
    _forward(config, torch.bfloat16, (TextSegment((5,) * 1000),), 1, 0, memory)
    assert 0.75 < forward_bytes(config.decoder, 1000, 0, torch.bfloat16) / memory.peak <= 1.001


@pytest.mark.parametrize("decode", [True, False])
def test_images(config: BagelConfig, decode: bool) -> None:
    width, height = side(config), side(config) // 2
    memory = Exact()
    _images(config, torch.float32, 2, (width, height), memory, decode=decode)
    needed = (decode_bytes if decode else encode_bytes)(config.vae, 2 * width * height, torch.float32)
    assert 0.75 < needed / memory.peak <= 1


def test_the_cache(config: BagelConfig) -> None:
    job = Job("understand", ((64, 64),))
    kept = taken(config, job, torch.bfloat16, torch.float32).cache
    each = cache_bytes(config.decoder, 1, torch.bfloat16)
    assert kept % each == 0
    assert kept > 64 * each
