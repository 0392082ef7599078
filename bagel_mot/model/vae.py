"""The FLUX autoencoder: images to latents an eighth of their side, and back.

    pixels (B, 3, H, W) ──VaeEncoder──► mean, logvar (B, z, H/8, W/8) ──(mean − shift)·scale──► latent
    latent ──latent/scale + shift──► VaeDecoder ──► pixels (B, 3, H, W)

Both halves are convolutional residual networks with one single-head attention at the coarsest level
(`bagel_mot.model.vae_parts`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from bagel_mot.config import VaeConfig
from bagel_mot.errors import SettingError, SizeError
from bagel_mot.model.vae_parts import GROUPS, VaeDecoder, VaeEncoder
from bagel_mot.model.vae_strips import decode_in_strips, encode_in_strips, works_alone, works_in_strips

N = TypeVar("N", VaeEncoder, VaeDecoder)


class Autoencoder(nn.Module):
    """The frozen image codec of BAGEL.

    Runs in float32, bfloat16 or float16, in the dtype of its weights (cast the input to the same). Images of one batch
    never influence one another: the CPU works on them one by one, and on large ones strip by strip
    (`bagel_mot.model.vae_strips`).

    Raises:
        SettingError: if a level's number of channels is not a multiple of the 32 groups of the normalisation.
    """

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        for multiplier in (1, *config.ch_mult):
            if config.ch * multiplier % GROUPS:
                raise SettingError(
                    f"vae_config has a level of {config.ch * multiplier} channels (ch {config.ch} × {multiplier}): "
                    f"it must be a multiple of {GROUPS}, the number of normalisation groups."
                )
        self.config = config
        self.encoder = VaeEncoder(config)
        self.decoder = VaeDecoder(config)

    def encode(self, pixels: Tensor) -> Tensor:
        """The scaled latent (B, z_channels, H/downsample, W/downsample) of pixels (B, 3, H, W) in [-1, 1].

        It is the posterior's mean, not a sample, shifted and scaled to about unit variance: (mean − shift)·scale.

        Raises:
            SizeError: if the shape is not (B, in_channels, H, W) with both sides divisible by `downsample`.
        """
        return self.scale(self.posterior(pixels)[0])

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The posterior's mean and log-variance, each (B, z_channels, H/downsample, W/downsample), unscaled.

        The log-variance is clamped to [-30, 20]. For training; `encode` serves everything else.

        Raises:
            SizeError: if the shape is not (B, in_channels, H, W) with both sides divisible by `downsample`.
        """
        step, channels = self.config.downsample, self.config.in_channels
        if pixels.ndim != 4 or pixels.shape[1] != channels:
            raise SizeError(f"pixels have shape {tuple(pixels.shape)}: the autoencoder takes (B, {channels}, H, W).")
        height, width = pixels.shape[2:]
        if height == 0 or width == 0 or height % step or width % step:
            raise SizeError(f"the picture is {width}×{height} pixels: both sides must be positive multiples of {step}.")
        mean, logvar = self._by_image(self.encoder, encode_in_strips, pixels, 1).chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def decode(self, latent: Tensor) -> Tensor:
        """The pixels (B, 3, h·downsample, w·downsample) of a scaled latent (B, z_channels, h, w).

        They are about [-1, 1], but not clamped.

        Raises:
            SizeError: if the shape is not (B, z_channels, h, w).
        """
        channels = self.config.z_channels
        if latent.ndim != 4 or latent.shape[1] != channels:
            raise SizeError(f"the latent has shape {tuple(latent.shape)}: the decoder takes (B, {channels}, h, w).")
        return self._by_image(self.decoder, decode_in_strips, self.unscale(latent), self.config.downsample)

    def _by_image(self, network: N, in_strips: Callable[[N, Tensor], Tensor], x: Tensor, scale: int) -> Tensor:
        """A network's work on x (B, C, H, W), which has `scale` × `scale` pixels in one place."""
        if works_in_strips(x, x.shape[2] * x.shape[3] * scale**2 * self.config.ch):
            return in_strips(network, x)
        parts = x.split(1) if works_alone(x) else (x,)
        return torch.cat([network(part) for part in parts]) if len(parts) > 1 else network(x)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights, in which it computes."""
        return self.encoder.norm_out.weight.dtype

    def scale(self, z: Tensor) -> Tensor:
        """Maps a posterior mean or sample (B, z_channels, h, w) to the latent the model works on: (z − shift)·scale."""
        return (z - self.config.shift_factor) * self.config.scale_factor

    def unscale(self, latent: Tensor) -> Tensor:
        """The inverse of `scale`, the input of `decoder`: latent/scale + shift, (B, z_channels, h, w)."""
        return latent / self.config.scale_factor + self.config.shift_factor

    def forward(self, pixels: Tensor) -> Tensor:
        """Reconstructs pixels (B, 3, H, W) -> (B, 3, H, W)"""
        return self.decode(self.encode(pixels))
