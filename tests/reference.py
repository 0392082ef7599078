"""A second, plain implementation to record cases with: dense float64 PyTorch, no cache, none of the package's code.

Written from the description of the model alone. Every forward pass computes a whole sequence anew under an explicit
mask, one token after another in the order of the sample, so that nothing here shares an idea with what it checks.
`recording.py` uses it to write folders laid out as tests/golden is, for models of any shape and random weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from reference_parts import D, Shape
from tokenizers import Tokenizer
from torch import Tensor


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
