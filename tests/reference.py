"""A second, plain implementation, to record cases with: dense float64 PyTorch, no cache, no packing, no code of the package.

Written from the description of the model alone. Every forward pass computes a whole sequence anew under an explicit mask, one
token after another in the order of the sample, so that nothing here shares an idea with what it checks. `recording.py` uses it to
write folders laid out as tests/golden is, for models of any shape and random weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
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
    return image.resize(resize_rule(*image.size, limits), Image.Resampling.BICUBIC)


def pixels_of(image: Image.Image) -> Tensor:
    flat = torch.tensor(list(image.tobytes()), dtype=D).view(image.height, image.width, 3)
    return ((flat / 255 - 0.5) / 0.5).permute(2, 0, 1)


def cut(x: Tensor, p: int) -> Tensor:
    """(C, H, W) -> (patches, p·p·C), inside a patch (row, column, channel)."""
    rows, columns = x.shape[1] // p, x.shape[2] // p
    tiles = [
        x[:, r * p : r * p + p, c * p : c * p + p].permute(1, 2, 0).flatten() for r in range(rows) for c in range(columns)
    ]
    return torch.stack(tiles)


def glue(tokens: Tensor, rows: int, columns: int, channels: int) -> Tensor:
    """(h·w, 4·C) -> (C, 2h, 2w)"""
    out = tokens.new_zeros(channels, 2 * rows, 2 * columns)
    for n, token in enumerate(tokens):
        r, c = divmod(n, columns)
        out[:, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2] = token.view(2, 2, channels).permute(2, 0, 1)
    return out


@dataclass
class Piece:
    """One segment: what it is, its tokens' content, and what is drawn or read there."""

    kind: str  # text, vit, vae
    ids: list[int] = field(default_factory=list)
    content: Tensor | None = None  # patches or latent tokens
    grid: tuple[int, int] = (0, 0)
    noised: bool = False
    t: Tensor | float = 0.0
    loss: bool = False
    target: Tensor | None = None  # the velocity to learn

    @property
    def length(self) -> int:
        return len(self.ids) if self.kind == "text" else self.grid[0] * self.grid[1] + 2


class Reference:
    """The model in float64."""

    def __init__(self, shape: Shape, model: dict[str, Tensor], auto: dict[str, Tensor], tokens: Tokenizer) -> None:
        self.s, self.tokens = shape, tokens
        self.w = {name: value.to(D) for name, value in model.items()}
        self.a = {name: value.to(D) for name, value in auto.items()}
        self.bos, self.eos, self.soi, self.eoi = (
            tokens.token_to_id(t) for t in ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
        )

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"))

    def rms(self, x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * self.w[f"{name}.weight"]

    def layer_norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"], 1e-6)

    def places(self, grid: tuple[int, int], side: int) -> Tensor:
        if not self.s.interpolate:
            return torch.tensor([r * side + c for r in range(grid[0]) for c in range(grid[1])])
        edges = torch.arange(1 / side, 1.0, 1 / side)
        rows, columns = (torch.bucketize(torch.arange(0, 1 - 1e-6, 1 / n), edges, right=True) for n in grid)
        return torch.tensor([int(r) * side + int(c) for r in rows for c in columns])

    def vit(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        at, heads = "vit_model.vision_model", self.s.vit_heads
        x = self.linear(patches, f"{at}.embeddings.patch_embedding")
        x = x + self.w[f"{at}.embeddings.position_embedding.weight"][self.places(grid, self.s.vit_side)]
        for i in range(self.s.vit_layers):
            layer = f"{at}.encoder.layers.{i}"
            n = self.layer_norm(x, f"{layer}.layer_norm1")
            q, k, v = (
                self.linear(n, f"{layer}.self_attn.{p}").view(len(x), heads, -1).transpose(0, 1)
                for p in ("q_proj", "k_proj", "v_proj")
            )
            mixed = ((q @ k.transpose(1, 2)) / q.shape[-1] ** 0.5).softmax(-1) @ v
            x = x + self.linear(mixed.transpose(0, 1).flatten(1), f"{layer}.self_attn.out_proj")
            n = self.layer_norm(x, f"{layer}.layer_norm2")
            n = F.gelu(self.linear(n, f"{layer}.mlp.fc1"), approximate="tanh")
            x = x + self.linear(n, f"{layer}.mlp.fc2")
        return self.layer_norm(x, f"{at}.post_layernorm")

    def connect(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        x = self.linear(F.gelu(self.linear(features, "connector.fc1"), approximate="tanh"), "connector.fc2")
        return x + self.w["vit_pos_embed.pos_embed"][self.places(grid, self.s.vit_side)]

    def latents_in(self, piece: Piece) -> Tensor:
        t = torch.as_tensor(piece.t, dtype=D)
        angles = t * torch.tensor([10000 ** (-i / 128) for i in range(128)], dtype=D)
        time = self.linear(torch.cat([angles.cos(), angles.sin()]), "time_embedder.mlp.0")
        time = self.linear(F.silu(time), "time_embedder.mlp.2")
        table = self.w["latent_pos_embed.pos_embed"][self.places(piece.grid, self.s.latent_side)]
        return self.linear(piece.content, "vae2llm") + time + table

    def layout(self, pieces: list[Piece], position: int = 0) -> tuple[list[int], list[bool], Tensor]:
        """Positions, whether a token takes the gen expert, and the mask."""
        positions: list[int] = []
        gen: list[bool] = []
        where: list[int] = []
        for n, piece in enumerate(pieces):
            where += [n] * piece.length
            if piece.kind == "text":
                positions += range(position, position + piece.length)
                gen += [False] * piece.length
                position += piece.length
            else:
                positions += [position] * piece.length
                gen += [False] + [piece.kind == "vae"] * (piece.length - 2) + [False]
                position += 0 if piece.noised else 1
        mask = torch.zeros(len(where), len(where), dtype=torch.bool)
        for i, mine in enumerate(where):
            for j, other in enumerate(where):
                if mine == other:
                    mask[i, j] = j <= i or pieces[mine].kind != "text"
                else:
                    mask[i, j] = other < mine and not pieces[other].noised
        return positions, gen, mask

    def hidden(self, pieces: list[Piece]) -> Tensor:
        """What leaves the last layer, before the final norms: (tokens, hidden)."""
        s, lm = self.s, "language_model.model"
        positions, gen_list, mask = self.layout(pieces)
        embed = self.w[f"{lm}.embed_tokens.weight"]
        rows = []
        for piece in pieces:
            if piece.kind == "text":
                rows.append(embed[piece.ids])
            else:
                body = (
                    self.connect(self.vit(piece.content, piece.grid), piece.grid)
                    if piece.kind == "vit"
                    else self.latents_in(piece)
                )
                rows.append(torch.cat([embed[self.soi][None], body, embed[self.eoi][None]]))
        x = torch.cat(rows)
        gen, dim = torch.tensor(gen_list)[:, None], s.hidden // s.heads

        def both(f: Callable[[str], Tensor]) -> Tensor:
            return torch.where(gen, f("_moe_gen"), f(""))

        angles = torch.tensor(positions, dtype=D)[:, None] * torch.tensor(
            [s.rope_theta ** (-2 * i / dim) for i in range(dim // 2)], dtype=D
        )

        def heads(n: Tensor, at: str, part: str, count: int) -> Tensor:
            y = both(lambda e: self.linear(n, f"{at}.{part}_proj{e}")).view(len(n), count, dim)
            if part == "v":
                return y
            y = torch.stack(
                [
                    torch.where(gen, self.rms(h, f"{at}.{part}_norm_moe_gen"), self.rms(h, f"{at}.{part}_norm"))
                    for h in y.unbind(1)
                ],
                1,
            )
            a, b = y[..., : dim // 2], y[..., dim // 2 :]
            cos, sin = angles.cos()[:, None], angles.sin()[:, None]
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

        for i in range(s.layers):
            at = f"{lm}.layers.{i}"
            n = both(lambda e, at=at, x=x: self.rms(x, f"{at}.input_layernorm{e}"))
            q = heads(n, f"{at}.self_attn", "q", s.heads)
            k = heads(n, f"{at}.self_attn", "k", s.kv_heads).repeat_interleave(s.heads // s.kv_heads, 1)
            v = heads(n, f"{at}.self_attn", "v", s.kv_heads).repeat_interleave(s.heads // s.kv_heads, 1)
            scores = torch.einsum("ihd,jhd->hij", q, k) / dim**0.5
            mixed = torch.einsum("hij,jhd->ihd", scores.masked_fill(~mask, -math.inf).softmax(-1), v).flatten(1)
            x = x + both(lambda e, at=at, m=mixed: self.linear(m, f"{at}.self_attn.o_proj{e}"))
            n = both(lambda e, at=at, x=x: self.rms(x, f"{at}.post_attention_layernorm{e}"))
            x = x + both(
                lambda e, at=at, n=n: self.linear(
                    F.silu(self.linear(n, f"{at}.mlp{e}.gate_proj")) * self.linear(n, f"{at}.mlp{e}.up_proj"),
                    f"{at}.mlp{e}.down_proj",
                )
            )
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        return self.linear(self.rms(hidden, "language_model.model.norm"), "language_model.lm_head")

    def velocity(self, hidden: Tensor) -> Tensor:
        return self.linear(self.rms(hidden, "language_model.model.norm_moe_gen"), "llm2vae")

    # ------------------------------------------------------------------------------------------- autoencoder

    def conv(self, x: Tensor, name: str, **how: Any) -> Tensor:
        return F.conv2d(x, self.a[f"{name}.weight"], self.a[f"{name}.bias"], **how)

    def group_norm(self, x: Tensor, name: str) -> Tensor:
        return F.group_norm(x, 32, self.a[f"{name}.weight"], self.a[f"{name}.bias"], 1e-6)

    def res(self, x: Tensor, at: str) -> Tensor:
        h = self.conv(F.silu(self.group_norm(x, f"{at}.norm1")), f"{at}.conv1", padding=1)
        h = self.conv(F.silu(self.group_norm(h, f"{at}.norm2")), f"{at}.conv2", padding=1)
        return h + (self.conv(x, f"{at}.nin_shortcut") if f"{at}.nin_shortcut.weight" in self.a else x)

    def middle(self, x: Tensor, half: str) -> Tensor:
        x = self.res(x, f"{half}.mid.block_1")
        at = f"{half}.mid.attn_1"
        n = self.group_norm(x, f"{at}.norm")
        q, k, v = (self.conv(n, f"{at}.{p}").flatten(2).transpose(1, 2) for p in "qkv")
        mixed = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v
        x = x + self.conv(mixed.transpose(1, 2).reshape(x.shape), f"{at}.proj_out")
        return self.res(x, f"{half}.mid.block_2")

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> the scaled mean"""
        x = self.conv(pixels, "encoder.conv_in", padding=1)
        for level in range(len(self.s.ch_mult)):
            for b in range(self.s.res_blocks):
                x = self.res(x, f"encoder.down.{level}.block.{b}")
            if level < len(self.s.ch_mult) - 1:
                x = self.conv(F.pad(x, (0, 1, 0, 1)), f"encoder.down.{level}.downsample.conv", stride=2)
        x = F.silu(self.group_norm(self.middle(x, "encoder"), "encoder.norm_out"))
        return (self.conv(x, "encoder.conv_out", padding=1)[:, : self.s.z] - self.s.shift) * self.s.scale

    def decode(self, latent: Tensor) -> Tensor:
        x = self.conv(latent / self.s.scale + self.s.shift, "decoder.conv_in", padding=1)
        x = self.middle(x, "decoder")
        for level in reversed(range(len(self.s.ch_mult))):
            for b in range(self.s.res_blocks + 1):
                x = self.res(x, f"decoder.up.{level}.block.{b}")
            if level > 0:
                x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
                x = self.conv(x, f"decoder.up.{level}.upsample.conv", padding=1)
        return self.conv(F.silu(self.group_norm(x, "decoder.norm_out")), "decoder.conv_out", padding=1)
