"""Pieces of the plain implementation that need no model: shapes, weights, pictures, guidance, extrapolation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

D = torch.float64


@dataclass(frozen=True)
class Shape:
    """What may differ from folder to folder."""

    hidden: int = 48
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 80
    rope_theta: float = 1e6
    vit_hidden: int = 32
    vit_layers: int = 2  # that run; the file says one more
    vit_heads: int = 2
    vit_mlp: int = 56
    vit_patch: int = 14
    vit_side: int = 10
    z: int = 4
    ch: int = 32
    ch_mult: tuple[int, ...] = (1, 2)
    res_blocks: int = 1
    scale: float = 0.3611
    shift: float = 0.1159
    latent_side: int = 8
    interpolate: bool = False
    timestep_shift: float = 1.0
    vocab: int = 424
    tokens: int = 405  # of the tokenizer: the embedding has more rows, which are never produced
    eos_gain: float = 1.0  # of the end token's logits, so that texts end

    @property
    def down(self) -> int:
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def stride(self) -> int:
        return 2 * self.down


def sincos(side: int, width: int) -> Tensor:
    table = torch.zeros(side * side, width, dtype=D)
    quarter = width // 4
    for row in range(side):
        for column in range(side):
            for i in range(quarter):
                frequency = 10000 ** (-i / quarter)
                for offset, value in ((0, column), (2 * quarter, row)):
                    table[row * side + column, offset + i] = math.sin(value * frequency)
                    table[row * side + column, offset + quarter + i] = math.cos(value * frequency)
    return table


def random_weights(s: Shape, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Model and autoencoder under the official names, float32."""
    g = torch.Generator().manual_seed(seed)
    model: dict[str, Tensor] = {}
    auto: dict[str, Tensor] = {}

    def put(into: dict[str, Tensor], name: str, *shape: int, bias: bool = True) -> None:
        fan_in = math.prod(shape[1:])
        into[f"{name}.weight"] = torch.randn(shape, generator=g) / fan_in**0.5
        if bias:
            into[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=g)

    def norm(into: dict[str, Tensor], name: str, size: int, bias: bool = False) -> None:
        into[f"{name}.weight"] = 1 + 0.1 * torch.randn(size, generator=g)
        if bias:
            into[f"{name}.bias"] = 0.1 * torch.randn(size, generator=g)

    dim = s.hidden // s.heads
    lm = "language_model.model"
    model[f"{lm}.embed_tokens.weight"] = torch.randn(s.vocab, s.hidden, generator=g)
    put(model, "language_model.lm_head", s.vocab, s.hidden, bias=False)
    model["language_model.lm_head.weight"][s.tokens :] = 0
    model["language_model.lm_head.weight"][402] *= s.eos_gain
    for tail in ("", "_moe_gen"):
        norm(model, f"{lm}.norm{tail}", s.hidden)
        for i in range(s.layers):
            at = f"{lm}.layers.{i}"
            norm(model, f"{at}.input_layernorm{tail}", s.hidden)
            norm(model, f"{at}.post_attention_layernorm{tail}", s.hidden)
            put(model, f"{at}.self_attn.q_proj{tail}", s.heads * dim, s.hidden)
            put(model, f"{at}.self_attn.k_proj{tail}", s.kv_heads * dim, s.hidden)
            put(model, f"{at}.self_attn.v_proj{tail}", s.kv_heads * dim, s.hidden)
            put(model, f"{at}.self_attn.o_proj{tail}", s.hidden, s.heads * dim, bias=False)
            norm(model, f"{at}.self_attn.q_norm{tail}", dim)
            norm(model, f"{at}.self_attn.k_norm{tail}", dim)
            put(model, f"{at}.mlp{tail}.gate_proj", s.mlp, s.hidden, bias=False)
            put(model, f"{at}.mlp{tail}.up_proj", s.mlp, s.hidden, bias=False)
            put(model, f"{at}.mlp{tail}.down_proj", s.hidden, s.mlp, bias=False)
    vit = "vit_model.vision_model"
    put(model, f"{vit}.embeddings.patch_embedding", s.vit_hidden, 3 * s.vit_patch**2)
    model[f"{vit}.embeddings.position_embedding.weight"] = 0.5 * torch.randn(s.vit_side**2, s.vit_hidden, generator=g)
    norm(model, f"{vit}.post_layernorm", s.vit_hidden, bias=True)
    for i in range(s.vit_layers):
        at = f"{vit}.encoder.layers.{i}"
        norm(model, f"{at}.layer_norm1", s.vit_hidden, bias=True)
        norm(model, f"{at}.layer_norm2", s.vit_hidden, bias=True)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            put(model, f"{at}.self_attn.{part}", s.vit_hidden, s.vit_hidden)
        put(model, f"{at}.mlp.fc1", s.vit_mlp, s.vit_hidden)
        put(model, f"{at}.mlp.fc2", s.vit_hidden, s.vit_mlp)
    put(model, "connector.fc1", s.hidden, s.vit_hidden)
    put(model, "connector.fc2", s.hidden, s.hidden)
    put(model, "time_embedder.mlp.0", s.hidden, 256)
    put(model, "time_embedder.mlp.2", s.hidden, s.hidden)
    put(model, "vae2llm", s.hidden, 4 * s.z)
    put(model, "llm2vae", 4 * s.z, s.hidden)
    model["latent_pos_embed.pos_embed"] = sincos(s.latent_side, s.hidden).float()
    model["vit_pos_embed.pos_embed"] = sincos(s.vit_side, s.hidden).float()

    def block(at: str, a: int, b: int) -> None:
        norm(auto, f"{at}.norm1", a, bias=True)
        put(auto, f"{at}.conv1", b, a, 3, 3)
        norm(auto, f"{at}.norm2", b, bias=True)
        put(auto, f"{at}.conv2", b, b, 3, 3)
        if a != b:
            put(auto, f"{at}.nin_shortcut", b, a, 1, 1)

    widths = [s.ch * m for m in s.ch_mult]
    for half, first, last in (("encoder", 3, 2 * s.z), ("decoder", s.z, 3)):
        outer = s.ch if half == "encoder" else widths[-1]
        put(auto, f"{half}.conv_in", outer, first, 3, 3)
        put(auto, f"{half}.conv_out", last, widths[-1] if half == "encoder" else widths[0], 3, 3)
        norm(auto, f"{half}.norm_out", widths[-1] if half == "encoder" else widths[0], bias=True)
        for number in (1, 2):
            block(f"{half}.mid.block_{number}", widths[-1], widths[-1])
        norm(auto, f"{half}.mid.attn_1.norm", widths[-1], bias=True)
        for part in ("q", "k", "v", "proj_out"):
            put(auto, f"{half}.mid.attn_1.{part}", widths[-1], widths[-1], 1, 1)
        order = range(len(widths)) if half == "encoder" else reversed(range(len(widths)))
        for level in order:
            for b in range(s.res_blocks + (half == "decoder")):
                block(f"{half}.{'down' if half == 'encoder' else 'up'}.{level}.block.{b}", outer, widths[level])
                outer = widths[level]
            if half == "encoder" and level < len(widths) - 1:
                put(auto, f"encoder.down.{level}.downsample.conv", outer, outer, 3, 3)
            if half == "decoder" and level > 0:
                put(auto, f"decoder.up.{level}.upsample.conv", outer, outer, 3, 3)
    return model, auto


def resize_rule(w: int, h: int, limits: dict[str, int], images: int = 1) -> tuple[int, int]:
    stride = limits["image_stride"]

    def apply(scale: float) -> tuple[int, int]:
        sides = [round(round(side * scale) / stride) * stride for side in (w, h)]
        return max(sides[0], stride), max(sides[1], stride)

    scale = min(limits["max_image_size"] / max(w, h), 1.0)
    w, h = apply(max(scale, limits["min_image_size"] / min(w, h)))
    if w * h > limits.get("max_pixels", 14 * 14 * 9 * 1024) / images:
        w, h = apply(limits.get("max_pixels", 14 * 14 * 9 * 1024) / images / (w * h))
    if max(w, h) > limits["max_image_size"]:
        w, h = apply(limits["max_image_size"] / max(w, h))
    return w, h


def fit(image: Image.Image, limits: dict[str, int]) -> Image.Image:
    width, height = resize_rule(*image.size, limits)
    # As Pillow 13 does in one call; earlier ones always begin with the width.
    if image.height - height > max(0, 2 * (image.width - width)):
        return image.resize((image.width, height), Image.Resampling.BICUBIC).resize(
            (width, height), Image.Resampling.BICUBIC
        )
    return image.resize((width, image.height), Image.Resampling.BICUBIC).resize(
        (width, height), Image.Resampling.BICUBIC
    )


def pixels_of(image: Image.Image) -> Tensor:
    flat = torch.tensor(list(image.tobytes()), dtype=D).view(image.height, image.width, 3)
    return ((flat / 255 - 0.5) / 0.5).permute(2, 0, 1)


def cut(x: Tensor, p: int) -> Tensor:
    """(C, H, W) -> (patches, p·p·C), inside a patch (row, column, channel)."""
    rows, columns = x.shape[1] // p, x.shape[2] // p
    tiles = [
        x[:, r * p : r * p + p, c * p : c * p + p].permute(1, 2, 0).flatten()
        for r in range(rows)
        for c in range(columns)
    ]
    return torch.stack(tiles)


def glue(tokens: Tensor, rows: int, columns: int, channels: int) -> Tensor:
    """(h·w, 4·C) -> (C, 2h, 2w)"""
    out = tokens.new_zeros(channels, 2 * rows, 2 * columns)
    for n, token in enumerate(tokens):
        r, c = divmod(n, columns)
        out[:, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2] = token.view(2, 2, channels).permute(2, 0, 1)
    return out


def renorm(v: Tensor, guided: Tensor, low: float, each: bool) -> Tensor:
    if each:
        before, after = v.norm(dim=-1, keepdim=True), guided.norm(dim=-1, keepdim=True)
    else:
        before, after = v.norm(), guided.norm()
    return guided * (before / (after + 1e-8)).clamp(low, 1.0)


def taylor(history: list[dict[str, Any]], run: Any) -> Tensor:
    """Evaluation k of a branch: full for k ≤ 4 and every third after, else a Taylor series around the last full one."""
    k = len(history)
    full = [h for h in history if h["full"]]
    if k <= 4 or (k - 4) % 3 == 0:
        terms = [run()]
        if k >= 4:
            last = full[-1]
            for i in range(min(len(last["terms"]), 6)):
                terms.append((terms[i] - last["terms"][i]) / (k - last["k"]))
        history.append({"full": True, "k": k, "terms": terms})
        return terms[0]
    history.append({"full": False})
    x = k - full[-1]["k"]
    return sum(d * x**i / math.factorial(i) for i, d in enumerate(full[-1]["terms"]))
