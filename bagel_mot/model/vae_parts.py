"""The two halves of the FLUX autoencoder and what they are made of: residual blocks, attention, changes of size.

Modules are named as the tensors of the official `ae.safetensors` are: `down.0` and `up.0` are the finest level. What is
unusual: down-sampling pads only right and bottom, and the decoder has one residual block more in each level than the
encoder. Each module computes a feature map as a whole; `bagel_mot.model.vae_strips` goes through the same modules strip
by strip.

Source: Rombach et al. 2022 (latent diffusion), with the sizes of black-forest-labs/FLUX.1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bagel_mot.config import VaeConfig

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
        return x + self.attend(self.norm(x))

    def attend(self, h: Tensor) -> Tensor:
        """The attention of normalised values, (B, channels, H, W) -> the same shape, to be added to the feature map."""
        batch, channels, height, width = h.shape
        q, k, v = (
            project(h).flatten(2).transpose(1, 2).unsqueeze(1)  # (B, 1, H·W, C)
            for project in (self.q, self.k, self.v)
        )
        h = F.scaled_dot_product_attention(q, k, v)
        h = h.squeeze(1).transpose(1, 2).reshape(batch, channels, height, width)
        return self.proj_out(h)


class Downsample(nn.Module):
    """Halves both sides: a stride-2 convolution after padding right and bottom by one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, channels, H/2, W/2)"""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles both sides: nearest neighbour, then a convolution.

    Attributes:
        doubling: the weight of both in one, where `bagel_mot.model.prepacked_conv` has made it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.doubling: Tensor | None = None

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
