"""Facts about a checkpoint, without loading its weights: configuration, sizes, parameters by part, memory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from bagel_mot.checkpoint.official import folder_of
from bagel_mot.checkpoint.opening import StoredWeights
from bagel_mot.checkpoint.shapes import autoencoder_shapes, model_shapes
from bagel_mot.config import NAMED_CONFIGS, BagelConfig
from bagel_mot.inference.defaults import official_defaults, read_defaults
from bagel_mot.inference.describe import described
from bagel_mot.placement.estimate import cache_bytes
from bagel_mot.task import Task

_PARTS = {
    r"decoder\.(layers\.\d+\.und|norm)\.": "und expert",
    r"decoder\.(layers\.\d+\.gen|norm_gen)\.": "gen expert",
    r"decoder\.(embed_tokens|lm_head)\.": "embedding and head",
    r"vit\.": "vision transformer",
    r"connector\.": "connector",
    r"(latent_in|latent_out|time_embedding)\.": "latent in and out",
}
"""Parts of a model by the beginnings of their tensors' names."""


def describe(name: str) -> dict[str, Any]:
    """Facts about a checkpoint ("mini", a folder, a hub id) or a named configuration, ready for JSON.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    folder: Path | None = None
    stored: StoredWeights | None = None
    if name in NAMED_CONFIGS and not Path(name).is_dir():
        config = NAMED_CONFIGS[name]
        defaults = official_defaults(config)
    else:
        config, stored, folder = described(name)
        defaults = read_defaults(folder_of(folder), config)
    decoder, vit, vae = config.decoder, config.vit, config.vae
    size = defaults.of(Task.GENERATE).get("size")
    return {
        "name": name,
        "folder": None if folder is None else str(folder),
        "stored_bytes": None if stored is None else stored.nbytes,
        "knows": None if defaults.scope is None else defaults.scope.about,
        "decoder": {
            "layers": decoder.num_layers,
            "hidden": decoder.hidden_size,
            "heads": f"{decoder.num_heads} of {decoder.head_dim}, {decoder.num_kv_heads} for keys and values",
            "mlp": decoder.intermediate_size,
            "vocabulary": decoder.vocab_size,
            "positions": decoder.max_position_embeddings,
        },
        "vision transformer": {
            "layers": vit.num_layers,
            "hidden": vit.hidden_size,
            "heads": vit.num_heads,
            "mlp": vit.intermediate_size,
            "patch": f"{vit.patch_size}×{vit.patch_size} pixels",
            "largest_grid": f"{vit.side}×{vit.side} patches",
        },
        "autoencoder": {
            "channels": vae.z_channels,
            "pixels_a_latent": f"{vae.downsample}×{vae.downsample}",
            "widths": ", ".join(str(vae.ch * m) for m in vae.ch_mult),
        },
        "pictures": {
            "pixels_a_token": f"{config.latent_stride}×{config.latent_stride}",
            "numbers_a_token": config.latent_dim,
            "largest": f"{config.max_latent_size * config.latent_stride} pixels a side",
            "drawn_by_default": None if size is None else f"{size[0]}×{size[1]}",
            "position_tables": "stretched over the picture" if config.interpolate_pos else "row and column",
        },
        "parameters": parameters(config),
        "cache_bytes": _cache(config, size),
    }


def parameters(config: BagelConfig) -> dict[str, int]:
    """Numbers of parameters by part, and in all."""
    parts = dict.fromkeys((*_PARTS.values(), "autoencoder"), 0)
    for name, shape in model_shapes(config).items():
        part = next((part for pattern, part in _PARTS.items() if re.match(pattern, name)), None)
        if part is not None:  # fixed tables are no parameters
            parts[part] += shape.numel()
    parts["autoencoder"] = sum(shape.numel() for shape in autoencoder_shapes(config.vae).values())
    return {**parts, "total": sum(parts.values())}


def _cache(config: BagelConfig, size: tuple[int, int] | None) -> dict[str, int]:
    """Bytes of keys and values in bfloat16."""
    token = cache_bytes(config.decoder, 1, torch.bfloat16)
    facts = {"a token": token, "1000 text tokens": 1000 * token}
    if size is not None:
        tokens = (size[0] // config.latent_stride) * (size[1] // config.latent_stride) + 2
        facts[f"the latents of a {size[0]}×{size[1]} picture ({tokens} tokens)"] = tokens * token
    return facts
