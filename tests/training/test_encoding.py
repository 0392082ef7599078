"""Images of a pack as latent tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bagel_mot.config import VaeConfig
from bagel_mot.images import patchify, scale_levels
from bagel_mot.model.vae import Autoencoder
from bagel_mot.training import sizes
from bagel_mot.training.encoding import ImageEncoder

CPU = torch.device("cpu")


@pytest.fixture
def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(VaeConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=4)).eval().requires_grad_(False)


def _images(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 16, 24, 3), dtype=torch.uint8)


@pytest.mark.parametrize("count", [1, 4, 5])
def test_tokens_are_those_of_each_image(autoencoder: Autoencoder, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(sizes, "_ENCODED_IMAGES", 2)
    images = _images(count)
    found = ImageEncoder(autoencoder, 2, torch.float32, CPU, compiled=False)(images)
    expected = [
        patchify(autoencoder.encode(scale_levels(image.permute(2, 0, 1)[None]))[0], 2).float() for image in images
    ]
    assert torch.equal(found, torch.cat(expected))
    assert found.shape == (count * 4 * 6, autoencoder.config.z_channels * 4)


def test_it_computes_in_the_precision_of_the_run_and_the_original_keeps_its_own(autoencoder: Autoencoder) -> None:
    images = _images(2)
    exact = ImageEncoder(autoencoder, 2, torch.float32, CPU, compiled=False)(images)
    rounded = ImageEncoder(autoencoder, 2, torch.bfloat16, CPU, compiled=False)(images)
    assert autoencoder.dtype == torch.float32
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.1 * exact.abs().max()


def test_a_compiled_one_always_has_batches_of_one_size(
    autoencoder: Autoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "_ENCODED_IMAGES", 2)
    shapes: list[torch.Size] = []

    def compiled(function: Callable[[Tensor], Tensor], **settings: Any) -> Callable[[Tensor], Tensor]:
        assert settings == {"dynamic": False}
        return lambda pixels: shapes.append(pixels.shape) or function(pixels)

    monkeypatch.setattr(torch, "compile", compiled)
    images = _images(5)
    found = ImageEncoder(autoencoder, 2, torch.float32, CPU, compiled=True)(images)
    assert shapes == [(2, 3, 16, 24)] * 3
    alone = ImageEncoder(autoencoder, 2, torch.float32, CPU, compiled=False)(images)
    assert torch.equal(found, alone)
