"""The plain side's autoencoder: the same convolutions one by one, in PyTorch's usual layout, in the weights' precision.

It walks through the modules of `bagel_mot.model.vae` for their weights alone, so that whatever makes those faster
leaves the comparison as it is.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from bagel_mot.model.vae import Autoencoder


def plain_encode(autoencoder: Autoencoder, pixels: Tensor) -> Tensor:
    """The scaled latent (z, h, w) of one image (3, H, W) in [-1, 1]."""
    encoder: Any = autoencoder.encoder
    x = _conv(encoder.conv_in, pixels[None].to(encoder.conv_in.weight.dtype), padding=1)
    for level in encoder.down:
        for block in level.block:
            x = _resnet(block, x)
        if level.downsample is not None:
            x = _conv(level.downsample.conv, F.pad(x, (0, 1, 0, 1)), stride=2)
    x = _middle(encoder.mid, x)
    moments = _conv(encoder.conv_out, F.silu(_norm(encoder.norm_out, x)), padding=1)
    mean: Tensor = moments.chunk(2, dim=1)[0]
    return autoencoder.scale(mean)[0]


def plain_decode(autoencoder: Autoencoder, latent: Tensor) -> Tensor:
    """The pixels (3, H, W), about in [-1, 1], of one scaled latent (z, h, w)."""
    decoder: Any = autoencoder.decoder
    z = autoencoder.unscale(latent[None].to(decoder.conv_in.weight.dtype))
    x = _middle(decoder.mid, _conv(decoder.conv_in, z, padding=1))
    for level in reversed(decoder.up):
        for block in level.block:
            x = _resnet(block, x)
        if level.upsample is not None:
            x = _conv(level.upsample.conv, F.interpolate(x, scale_factor=2.0, mode="nearest"), padding=1)
    return _conv(decoder.conv_out, F.silu(_norm(decoder.norm_out, x)), padding=1)[0]


def _conv(conv: Any, x: Tensor, *, stride: int = 1, padding: int = 0) -> Tensor:
    return F.conv2d(x, conv.weight, conv.bias, stride=stride, padding=padding)


def _norm(norm: Any, x: Tensor) -> Tensor:
    return F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)


def _resnet(block: Any, x: Tensor) -> Tensor:
    h = _conv(block.conv1, F.silu(_norm(block.norm1, x)), padding=1)
    h = _conv(block.conv2, F.silu(_norm(block.norm2, h)), padding=1)
    return h + (x if block.nin_shortcut is None else _conv(block.nin_shortcut, x))


def _middle(middle: Any, x: Tensor) -> Tensor:
    return _resnet(middle.block_2, _attention(middle.attn_1, _resnet(middle.block_1, x)))


def _attention(block: Any, x: Tensor) -> Tensor:
    h = _norm(block.norm, x)
    q, k, v = (_conv(project, h).flatten(2).transpose(1, 2)[:, None] for project in (block.q, block.k, block.v))
    attended = F.scaled_dot_product_attention(q, k, v)[:, 0]
    return x + _conv(block.proj_out, attended.transpose(1, 2).unflatten(2, x.shape[2:]))
