"""What a checkpoint is: configuration, sizes, parameters by part, memory. Nothing is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from bagel_mot.checkpoint.official import folder_of, read_config
from bagel_mot.config import NAMED_CONFIGS, BagelConfig
from bagel_mot.inference.defaults import official_defaults, read_defaults
from bagel_mot.inference.loading import find_checkpoint
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.vae import Autoencoder


def describe(name: str) -> dict[str, Any]:
    """Facts about a checkpoint ("mini", a folder, a hub id) or a named configuration, ready for JSON.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    folder: Path | None = None
    if name in NAMED_CONFIGS and not Path(name).is_dir():
        config = NAMED_CONFIGS[name]
        defaults = official_defaults(config)
    else:
        folder = find_checkpoint(name)
        config = read_config(folder)
        defaults = read_defaults(folder_of(folder), config)
    decoder, vit, vae = config.decoder, config.vit, config.vae
    size = defaults.of("generate").get("size")
    return {
        "name": name,
        "folder": None if folder is None else str(folder),
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
        "cache_bytes": cache_bytes(config, size),
    }


def parameters(config: BagelConfig) -> dict[str, int]:
    """Numbers of parameters by part, and in all."""
    with torch.device("meta"):
        model, autoencoder = BagelModel(config), Autoencoder(config.vae)

    def count(*modules: nn.Module) -> int:
        return sum(p.numel() for module in modules for p in module.parameters())

    decoder = model.decoder
    layers = list(decoder.layers)
    parts = {
        "und expert": count(*(layer.get_submodule("und") for layer in layers), decoder.norm),
        "gen expert": count(*(layer.get_submodule("gen") for layer in layers), decoder.norm_gen),
        "embedding and head": count(decoder.embed_tokens, decoder.lm_head),
        "vision transformer": count(model.vit),
        "connector": count(model.connector),
        "latent in and out": count(model.latent_in, model.latent_out, model.time_embedding),
        "autoencoder": count(autoencoder),
    }
    return {**parts, "total": sum(parts.values())}


def cache_bytes(config: BagelConfig, size: tuple[int, int] | None) -> dict[str, int]:
    """Bytes of keys and values in bfloat16."""
    d = config.decoder
    token = 2 * 2 * d.num_layers * d.num_kv_heads * d.head_dim
    facts = {"a token": token, "1000 text tokens": 1000 * token}
    if size is not None:
        tokens = (size[0] // config.latent_stride) * (size[1] // config.latent_stride) + 2
        facts[f"the latents of a {size[0]}×{size[1]} picture ({tokens} tokens)"] = tokens * token
    return facts
