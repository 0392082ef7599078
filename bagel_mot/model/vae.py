"""The FLUX autoencoder: images to latents an eighth of their side, and back.

    pixels (B, 3, H, W) ──VaeEncoder──► mean, logvar (B, z, H/8, W/8) ──(mean − shift)·scale──► latent
    latent ──latent/scale + shift──► VaeDecoder ──► pixels (B, 3, H, W)

Both halves are convolutional residual networks with one single-head attention at the coarsest level. Modules are named
as the tensors of the official `ae.safetensors` are: `down.0` and `up.0` are the finest level. What is unusual:
down-sampling pads only right and bottom, and the decoder has one residual block more in each level than the encoder.

Source: Rombach et al. 2022 (latent diffusion), with the sizes of black-forest-labs/FLUX.1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bagel_mot.config import VaeConfig
from bagel_mot.errors import SettingError, SizeError

GROUPS = 32


class GroupNorm(nn.GroupNorm):
    """Normalisation in 32 groups of channels, ε 1e-6.

    PyTorch's kernels take the statistics of bfloat16 and float16 inputs in float32, so no cast is needed. But its CPU
    kernel for channels_last computes the variance as E[x²] − E[x]² and loses up to four digits: harmless below
    float32's precision, so only float32 pays for a contiguous copy (the next convolution, if its weights are
    channels_last, goes back to that layout by itself).
    """

    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> the same shape."""
        return super().forward(x.contiguous() if x.dtype == torch.float32 else x)


class ResnetBlock(nn.Module):
    """Norm, swish, convolution, twice, around a shortcut (a 1×1 convolution where the channels change)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)"""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttentionBlock(nn.Module):
    """Single-head self-attention over all places of the feature map, with a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> the same shape."""
        batch, channels, height, width = x.shape
        h = self.norm(x)
        q, k, v = (
            project(h).flatten(2).transpose(1, 2).unsqueeze(1)  # (B, 1, H·W, C)
            for project in (self.q, self.k, self.v)
        )
        h = F.scaled_dot_product_attention(q, k, v)
        h = h.squeeze(1).transpose(1, 2).reshape(batch, channels, height, width)
        return x + self.proj_out(h)


class Downsample(nn.Module):
    """Halves both sides: a stride-2 convolution after padding right and bottom by one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, channels, H/2, W/2)"""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles both sides: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, channels, 2·H, 2·W)"""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Middle(nn.Module):
    """The coarsest level: residual block, attention, residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttentionBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> the same shape."""
        return self.block_2(self.attn_1(self.block_1(x)))


class DownLevel(nn.Module):
    """An encoder level: residual blocks, then down-sampling (not in the coarsest level)."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, downsample: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(in_channels if i == 0 else out_channels, out_channels) for i in range(blocks)
        )
        self.downsample = Downsample(out_channels) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H/2, W/2), or of full size in the coarsest level."""
        for block in self.block:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class UpLevel(nn.Module):
    """A decoder level: residual blocks, then up-sampling (not in the finest level)."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, upsample: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(in_channels if i == 0 else out_channels, out_channels) for i in range(blocks)
        )
        self.upsample = Upsample(out_channels) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, 2·H, 2·W), or of the same size in the finest level."""
        for block in self.block:
            x = block(x)
        return x if self.upsample is None else self.upsample(x)


class VaeEncoder(nn.Module):
    """Pixels (B, in_channels, H, W) to the posterior's moments (B, 2·z_channels, H/downsample, W/downsample)."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = [config.ch * multiplier for multiplier in config.ch_mult]  # finest level first
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        self.down = nn.ModuleList(
            DownLevel(width_in, width_out, config.num_res_blocks, downsample=level < len(widths) - 1)
            for level, (width_in, width_out) in enumerate(zip([config.ch, *widths[:-1]], widths, strict=True))
        )
        self.mid = Middle(widths[-1])
        self.norm_out = GroupNorm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.z_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, 2·z_channels, H/downsample, W/downsample)"""
        h = self.conv_in(pixels)
        for level in self.down:
            h = level(h)
        h = self.mid(h)
        return self.conv_out(F.silu(self.norm_out(h)))


def _full_precision(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Runs a convolution outside autocast: bfloat16 has 8 significant bits, fewer than an image needs."""
    if not torch.is_autocast_enabled(x.device.type):
        return conv(x)
    with torch.autocast(x.device.type, enabled=False):
        return conv(x.float())


class VaeDecoder(nn.Module):
    """Posterior sample or mean (B, z_channels, h, w) to pixels (B, out_ch, h·downsample, w·downsample)."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = [config.ch * multiplier for multiplier in config.ch_mult]  # finest level first
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            UpLevel(width_in, width_out, config.num_res_blocks + 1, upsample=level > 0)
            for level, (width_in, width_out) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True))
        )
        self.norm_out = GroupNorm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], config.out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, z_channels, h, w) -> (B, out_ch, h·downsample, w·downsample)"""
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return _full_precision(self.conv_out, F.silu(self.norm_out(h)))


class Autoencoder(nn.Module):
    """The frozen image codec of BAGEL.

    Runs in float32, bfloat16 or float16, in the dtype of its weights (cast the input to the same), and keeps
    channels_last inputs channels_last. Images of one batch never influence one another.

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
        mean, logvar = self.encoder(pixels).chunk(2, dim=1)
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
        return self.decoder(self.unscale(latent))

    def scale(self, z: Tensor) -> Tensor:
        """Maps a posterior mean or sample (B, z_channels, h, w) to the latent the model works on: (z − shift)·scale."""
        return (z - self.config.shift_factor) * self.config.scale_factor

    def unscale(self, latent: Tensor) -> Tensor:
        """The inverse of `scale`, the input of `decoder`: latent/scale + shift, (B, z_channels, h, w)."""
        return latent / self.config.scale_factor + self.config.shift_factor

    def forward(self, pixels: Tensor) -> Tensor:
        """Reconstructs pixels (B, 3, H, W) -> (B, 3, H, W)"""
        return self.decode(self.encode(pixels))
