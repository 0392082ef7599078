"""What a pass of the engine takes in memory while it runs, at the least: beside weights, and beside what is cached."""

from __future__ import annotations

import torch

from bagel_mot.config import DecoderConfig, VaeConfig


def forward_bytes(config: DecoderConfig, und_tokens: int, gen_tokens: int, dtype: torch.dtype) -> int:
    """Of one forward pass: most is alive in the feed-forward network, gate and up, the activated gate and the product,
    of one expert after the other, beside the tokens themselves.

    Args:
        config: of the decoder.
        und_tokens, gen_tokens: of all rows together, by the expert that works on them.
        dtype: of activations.
    """
    widest = 4 * config.intermediate_size * max(und_tokens, gen_tokens)
    return (widest + config.hidden_size * (und_tokens + gen_tokens)) * dtype.itemsize


def cache_bytes(config: DecoderConfig, tokens: int, dtype: torch.dtype) -> int:
    """Of keys and values of so many tokens in all layers."""
    return tokens * 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize


def encode_bytes(config: VaeConfig, pixels: int, dtype: torch.dtype) -> int:
    """Of images with so many pixels in all on their way into the autoencoder, whose first blocks are the largest."""
    return pixels * 4 * config.ch * dtype.itemsize


def decode_bytes(config: VaeConfig, pixels: int, dtype: torch.dtype) -> int:
    """Of images with so many pixels in all on their way out of the autoencoder, whose last blocks are the largest."""
    return pixels * 5 * config.ch * dtype.itemsize
