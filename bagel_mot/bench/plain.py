"""The plain side of the comparison: a loop over the same weights that works as the published code does.

It differs from our engine in three ways:
- tokens keep the order of the sample, and each expert's tokens are gathered by index tensors, computed, and scattered
  back, around every norm and every matmul of every layer;
- the cache of a layer is built anew whenever tokens are added to it, even for tokens that are dropped right after (a
  denoising step) and for each single decoded token: a fresh tensor, with old and new keys copied in by index;
- each guidance branch is a forward pass of its own, and text to image runs three of them.

It computes the same numbers, which a test checks. Attention is PyTorch's, as ours is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.decoder import DecoderLayer, Rope, rope, rotate
from bagel_mot.sequence import table_index


@dataclass
class PlainCache:
    """Keys and values of each layer, (length, kv_heads, head_dim); None before the first token."""

    keys: list[Tensor | None]
    values: list[Tensor | None]
    length: int = 0

    @classmethod
    def empty(cls, layers: int) -> PlainCache:
        return cls([None] * layers, [None] * layers)

    def copy(self) -> PlainCache:
        """The same, every tensor copied."""
        keys, values = ([None if t is None else t.clone() for t in part] for part in (self.keys, self.values))
        return PlainCache(keys, values, self.length)


@dataclass
class PlainQuery:
    """New tokens in sequence order, and the index tensors of the published packing.

    Attributes:
        hidden: (n, hidden) embeddings.
        positions: (n,) rotary positions.
        und_index, gen_index: the places of each expert's tokens; None if all tokens are the und expert's.
        causal: whether attention among the new tokens is causal.
        keep: whether their keys and values enter the cache.
    """

    hidden: Tensor
    positions: Tensor
    und_index: Tensor | None = None
    gen_index: Tensor | None = None
    causal: bool = False
    keep: bool = False


def plain_forward(model: BagelModel, query: PlainQuery, cache: PlainCache) -> Tensor:
    """Hidden states (n, hidden) before the final norm; the new keys enter the cache where `query.keep`."""
    decoder = model.decoder
    x = query.hidden
    cos_sin = rope(query.positions, decoder.config.head_dim, decoder.config.rope_theta)
    for index, layer in enumerate(decoder.layers):
        assert isinstance(layer, DecoderLayer)
        x = _layer(layer, index, x, cos_sin, query, cache)
    if query.keep:
        cache.length += x.shape[0]
    return x


def _by_expert(x: Tensor, query: PlainQuery, und: torch.nn.Module, gen: torch.nn.Module, size: int) -> Tensor:
    """Applies one module per expert to (n, …, width): gather, compute, scatter into a fresh (n, …, size)."""
    if query.gen_index is None or query.und_index is None:
        return und(x)
    out = x.new_zeros(x.shape[0], *x.shape[1:-1], size)
    out[query.und_index] = und(x[query.und_index])
    out[query.gen_index] = gen(x[query.gen_index])
    return out


def _layer(layer: DecoderLayer, index: int, x: Tensor, cos_sin: Rope, query: PlainQuery, cache: PlainCache) -> Tensor:
    und, gen = layer.und, layer.gen
    dim, kv_heads = und.head_dim, und.kv_heads
    heads = und.q.out_features // dim
    hidden = x.shape[-1]
    normed = _by_expert(x, query, und.input_norm, gen.input_norm, hidden)
    q = _by_expert(normed, query, und.q, gen.q, heads * dim).view(-1, heads, dim)
    k = _by_expert(normed, query, und.k, gen.k, kv_heads * dim).view(-1, kv_heads, dim)
    v = _by_expert(normed, query, und.v, gen.v, kv_heads * dim).view(-1, kv_heads, dim)
    q = rotate(_by_expert(q, query, und.q_norm, gen.q_norm, dim), cos_sin)
    k = rotate(_by_expert(k, query, und.k_norm, gen.k_norm, dim), cos_sin)
    keys, values = _merged(cache.keys[index], k), _merged(cache.values[index], v)
    if query.keep:
        cache.keys[index], cache.values[index] = keys, values
    attended = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        keys.transpose(0, 1)[None],
        values.transpose(0, 1)[None],
        attn_mask=_causal_mask(x.shape[0], keys.shape[0], x.device) if query.causal and cache.length else None,
        is_causal=query.causal and not cache.length,
        enable_gqa=heads != kv_heads,
    )[0]
    x = x + _by_expert(attended.transpose(0, 1).reshape(-1, heads * dim), query, und.o, gen.o, hidden)
    normed = _by_expert(x, query, und.mlp_norm, gen.mlp_norm, hidden)
    if query.gen_index is None or query.und_index is None:
        return x + und.down(F.silu(und.gate(normed)) * und.up(normed))
    out = torch.zeros_like(x)
    for expert, where in ((und, query.und_index), (gen, query.gen_index)):
        part = normed[where]
        out[where] = expert.down(F.silu(expert.gate(part)) * expert.up(part))
    return x + out


def _causal_mask(new: int, length: int, device: torch.device) -> Tensor:
    """Who sees whom, (new, length) bool: the last `new` of `length` tokens see all before them and themselves."""
    return torch.ones(new, length, dtype=torch.bool, device=device).tril(length - new)


def _merged(old: Tensor | None, new: Tensor) -> Tensor:
    """A layer's cached keys or values with the new ones appended: both copied into a fresh tensor by index."""
    if old is None:
        return new
    merged = new.new_zeros(old.shape[0] + new.shape[0], *new.shape[1:])
    places = torch.arange(merged.shape[0], device=new.device)
    merged[places[: old.shape[0]]] = old
    merged[places[old.shape[0] :]] = new
    return merged


def plain_text(model: BagelModel, ids: Tensor, position: int, cache: PlainCache) -> Tensor:
    """Reads text tokens (n,) into the cache and returns hidden states (n, hidden); decoding reads one at a time."""
    positions = torch.arange(position, position + ids.numel(), device=ids.device)
    causal = ids.numel() > 1
    query = PlainQuery(model.decoder.embed_tokens(ids), positions, causal=causal, keep=True)
    return plain_forward(model, query, cache)


def plain_velocity(
    model: BagelModel, markers: Tensor, latents: Tensor, index: Tensor, t: float, position: int, cache: PlainCache
) -> Tensor:
    """One evaluation of one branch: the velocity (N, latent_dim) of noised latents.

    Args:
        markers: (2,) ids of the tokens before and after the image.
        latents: (N, latent_dim) noised tokens.
        index: (N,) places in the position table.
        t: timestep.
        position: rotary position of the image.
        cache: the branch's context, which stays as it is.
    """
    hidden = _plain_latents(model, markers, latents, index, t, position, cache, keep=False)
    return model.velocity(hidden[1:-1])


def plain_vae_image(
    model: BagelModel, markers: Tensor, latents: Tensor, index: Tensor, position: int, cache: PlainCache
) -> None:
    """Reads a clean image into the cache: its latents (N, latent_dim); the rest is as in `plain_velocity`."""
    _plain_latents(model, markers, latents, index, 0.0, position, cache, keep=True)


def plain_vit_image(
    model: BagelModel, markers: Tensor, patches: Tensor, grid: tuple[int, int], position: int, cache: PlainCache
) -> None:
    """Reads the patches (N, patch_dim) of an image of `grid` (rows, columns) into the cache, through the ViT."""
    index = table_index(*grid, model.config.vit_max_num_patch_per_side).to(patches.device)
    features = model.connector(model.vit(patches.to(model.dtype), index, (grid,))) + model.vit_pos_embed[index]
    start, end = model.decoder.embed_tokens(markers)[:, None]
    x = torch.cat([start, features, end])
    positions = torch.full((x.shape[0],), position, device=x.device)
    plain_forward(model, PlainQuery(x, positions, keep=True), cache)


def _plain_latents(
    model: BagelModel,
    markers: Tensor,
    latents: Tensor,
    index: Tensor,
    t: float,
    position: int,
    cache: PlainCache,
    *,
    keep: bool,
) -> Tensor:
    """Hidden states (N + 2, hidden) of an image's latents between its markers."""
    n, device = latents.shape[0], latents.device
    und_index = torch.tensor([0, n + 1], device=device)
    gen_index = torch.arange(1, n + 1, device=device)
    x = torch.zeros(n + 2, model.config.decoder.hidden_size, dtype=model.dtype, device=device)
    x[und_index] = model.decoder.embed_tokens(markers)
    x[gen_index] = model.embed_latents(latents, torch.tensor([t], device=device), torch.zeros_like(index), index)
    positions = torch.full((n + 2,), position, device=device)
    return plain_forward(model, PlainQuery(x, positions, und_index, gen_index, keep=keep), cache)
