"""Embeddings whose making costs nothing where only their shapes are wanted."""

from __future__ import annotations

import torch
from torch import nn


def new_embedding(count: int, width: int) -> nn.Embedding:
    """An embedding with normal weights; on the meta device without: PyTorch would import its whole compiler to draw
    numbers there, which takes longer than loading a small model.
    """
    weight = torch.empty(count, width)
    return nn.Embedding.from_pretrained(weight if weight.is_meta else nn.init.normal_(weight), freeze=False)
