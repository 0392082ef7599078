"""The SigLIP vision transformer at native resolution, and the connector into the decoder.

Images of any grid run together: attention is full within each image. The learned positions are a square
table, indexed by row and column.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bagel_mot.config import VitConfig
from bagel_mot.model.decoder import for_matmuls
from bagel_mot.model.embedding import new_embedding
from bagel_mot.model.widened import product_dtype


class VitLayer(nn.Module):
    """Pre-norm block: attention, then a GELU-tanh MLP; biases everywhere."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.heads = config.num_heads
        self.norm1 = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.q = nn.Linear(size, size)
        self.k = nn.Linear(size, size)
        self.v = nn.Linear(size, size)
        self.out = nn.Linear(size, size)
        self.norm2 = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, size)

    def forward(self, x: Tensor, lengths: list[int]) -> Tensor:
        """Patches (P, hidden) of images with `lengths` patches each -> (P, hidden)"""
        normed = for_matmuls(self.norm1(x))
        q, k, v = (proj(normed).unflatten(-1, (self.heads, -1)) for proj in (self.q, self.k, self.v))
        x = x + self.out(_within_images(q, k, v, lengths).flatten(-2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x)), approximate="tanh"))


def _within_images(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """Full attention within each image, (P, heads, head_dim); neighbours of one length run as a batch."""
    outs = []
    start, dtype = 0, q.dtype
    wide = product_dtype(dtype, q.device.type)
    for length, group in groupby(lengths):
        count = len(list(group))
        stop = start + length * count
        parts = (t[start:stop].to(wide).unflatten(0, (count, length)).transpose(1, 2) for t in (q, k, v))
        outs.append(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(0, 1).to(dtype))
        start = stop
    return torch.cat(outs) if outs else torch.zeros_like(q)


class VisionTransformer(nn.Module):
    """Patches (P, patch_dim) -> features (P, hidden)."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Linear(config.patch_dim, config.hidden_size)
        self.position_embedding = new_embedding(config.side**2, config.hidden_size)
        self.layers = nn.ModuleList(VitLayer(config) for _ in range(config.num_layers))
        self.post_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, patches: Tensor, index: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Features of the patches of all images.

        Args:
            patches: (P, patch_dim) in [-1, 1], ordered (row, column, channel) within a patch.
            index: (P,) places in the position table (`bagel_mot.sequence.table_index`).
            grids: (rows, columns) of each image.

        Returns: (P, hidden)
        """
        x = self.patch_embedding(patches) + self.position_embedding(index)
        lengths = [rows * columns for rows, columns in grids]
        for layer in self.layers:
            x = layer(x, lengths)
        return self.post_norm(x)


class Connector(nn.Module):
    """Linear, GELU-tanh, Linear into the decoder's width."""

    def __init__(self, vit_size: int, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vit_size, hidden_size)
        self.fc2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(P, vit_hidden) -> (P, hidden)"""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
