"""The autoencoder against recorded numbers, float64, and its own properties."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from bagel_mot.config import VaeConfig, load_config
from bagel_mot.errors import SettingError, SizeError
from bagel_mot.model.vae import Autoencoder
from bagel_mot.model.vae_parts import GroupNorm

TINY = VaeConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, z_channels=3, scale_factor=0.7, shift_factor=-0.2)


@pytest.fixture(scope="module")
def recorded(golden: Any) -> Autoencoder:
    autoencoder = Autoencoder(load_config(golden.checkpoint).vae)
    autoencoder.load_state_dict(load_file(golden.checkpoint / "ae.safetensors"), strict=True)
    return autoencoder.eval().requires_grad_(False)


@pytest.mark.parametrize("case", ["vae_square", "vae_wide"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_recorded_numbers(golden: Any, recorded: Autoencoder, case: str, layout: torch.memory_format) -> None:
    autoencoder = recorded.to(memory_format=layout)
    pixels = golden.expected[f"{case}/pixels"].to(memory_format=layout)
    latent = golden.expected[f"{case}/latent"]
    assert golden.error(autoencoder.encode(pixels), latent) <= 1e-5
    assert golden.error(autoencoder.decode(latent.to(memory_format=layout)), golden.expected[f"{case}/decoded"]) <= 1e-5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.06), (torch.float16, 0.01)])
def test_half_precision_stays_close(golden: Any, dtype: torch.dtype, tolerance: float) -> None:
    autoencoder = Autoencoder(load_config(golden.checkpoint).vae)
    autoencoder.load_state_dict(load_file(golden.checkpoint / "ae.safetensors"))
    autoencoder = autoencoder.to(dtype).requires_grad_(False)
    latent = golden.expected["vae_square/latent"]
    decoded = autoencoder.decode(latent.to(dtype))
    assert decoded.dtype == dtype
    assert golden.error(decoded, golden.expected["vae_square/decoded"]) <= tolerance
    encoded = autoencoder.encode(golden.expected["vae_square/pixels"].to(dtype))
    assert encoded.dtype == dtype
    assert golden.error(encoded, latent) <= tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_group_norm_statistics_are_float32(dtype: torch.dtype, layout: torch.memory_format) -> None:
    """With a mean of 30 deviations, statistics in half precision would be wrong in the first digit."""
    x = (torch.randn(2, 64, 32, 32) + 30).to(dtype).to(memory_format=layout)
    expected = F.group_norm(x.double(), 32, eps=1e-6)
    got = GroupNorm(64).to(dtype)(x).double()
    assert (got - expected).norm() / expected.norm() < torch.finfo(dtype).eps


def test_group_norm_of_channels_last_is_exact() -> None:
    x = (torch.randn(1, 64, 32, 32) + 30).to(memory_format=torch.channels_last)
    expected = F.group_norm(x.double(), 32, eps=1e-6)
    assert (GroupNorm(64)(x).double() - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("levels", [(1,), (1, 2), (2, 1, 1, 1, 3)])
def test_sizes_follow_the_config(levels: tuple[int, ...]) -> None:
    config = replace(TINY, ch_mult=levels)
    autoencoder = Autoencoder(config)
    factor = 2 ** (len(levels) - 1)
    assert config.downsample == factor
    pixels = torch.randn(2, 3, 2 * factor, 3 * factor)
    latent = autoencoder.encode(pixels)
    assert latent.shape == (2, 3, 2, 3)
    assert autoencoder.decode(latent).shape == pixels.shape
    assert autoencoder(pixels).shape == pixels.shape


def test_encode_is_the_scaled_mean() -> None:
    autoencoder = Autoencoder(TINY)
    pixels = torch.randn(1, 3, 8, 8)
    mean, _ = autoencoder.posterior(pixels)
    latent = autoencoder.encode(pixels)
    torch.testing.assert_close(latent, (mean + 0.2) * 0.7)
    torch.testing.assert_close(autoencoder.unscale(latent), mean)
    torch.testing.assert_close(autoencoder.decode(latent), autoencoder.decoder(mean))


def test_log_variance_is_clamped() -> None:
    autoencoder = Autoencoder(TINY).requires_grad_(False)
    autoencoder.encoder.conv_out.weight.mul_(1e6)
    mean, logvar = autoencoder.posterior(torch.randn(1, 3, 16, 16))
    assert logvar.min() == -30
    assert logvar.max() == 20
    assert mean.abs().max() > 30


def test_images_of_a_batch_are_independent() -> None:
    autoencoder = Autoencoder(TINY).requires_grad_(False)
    pixels = torch.randn(3, 3, 16, 24)
    together = autoencoder(pixels)
    alone = torch.cat([autoencoder(image[None]) for image in pixels])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    with torch.inference_mode():
        assert torch.equal(autoencoder(pixels), torch.cat([autoencoder(image[None]) for image in pixels]))


def test_every_parameter_gets_a_gradient() -> None:
    autoencoder = Autoencoder(TINY)
    mean, logvar = autoencoder.posterior(torch.randn(2, 3, 8, 8))
    loss = autoencoder.decoder(mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)).square().mean()
    loss.backward()
    without = [name for name, parameter in autoencoder.named_parameters() if parameter.grad is None]
    assert without == []


@pytest.mark.parametrize("shape", [(1, 3, 15, 16), (1, 3, 16, 17), (1, 3, 0, 16), (1, 4, 16, 16), (3, 16, 16)])
def test_unfit_pixels_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(SizeError, match=r"multiples of 2|\(B, 3, H, W\)"):
        Autoencoder(TINY).encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (3, 8, 8)])
def test_unfit_latents_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(SizeError, match=r"\(B, 3, h, w\)"):
        Autoencoder(TINY).decode(torch.zeros(shape))


def test_widths_that_the_groups_do_not_divide_are_refused() -> None:
    with pytest.raises(SettingError, match="48 channels"):
        Autoencoder(replace(TINY, ch=48))
