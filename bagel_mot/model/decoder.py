"""The Mixture-of-Transformers decoder: Qwen2 with two experts a layer.

What is unusual about it:
- every layer has two full sets of weights, *und* for text and ViT tokens and image markers, *gen* for VAE latents;
- tokens arrive grouped by expert, so an expert is a plain transformer block on a contiguous slice;
- the experts meet only in attention, where all tokens of a sample share one softmax;
- queries and keys are RMS-normalised per head before the rotary embedding.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bagel_mot.config import DecoderConfig
from bagel_mot.model.attention import Attend, Attention
from bagel_mot.model.cache import CachePool, CacheSpec
from bagel_mot.model.embedding import new_embedding

Rope = tuple[Tensor, Tensor]  # cosines and sines, (T, 1, head_dim) float32 each


class RMSNorm(nn.Module):
    """x / √(mean(x²) + ε) · weight, with statistics in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """(…, size) -> (…, size), in the precision of x."""
        dtype = torch.promote_types(x.dtype, self.weight.dtype)  # the fused kernel takes one type alone
        return F.rms_norm(x.to(dtype), self.weight.shape, self.weight.to(dtype), self.eps).to(x.dtype)


def for_matmuls(x: Tensor) -> Tensor:
    """Activations (T, hidden) in the type in which autocast multiplies: several products of one input share one cast
    of it, which each would make, and keep for the backward pass, itself.
    """
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def rope(positions: Tensor, head_dim: int, theta: float) -> Rope:
    """Rotary embedding in the "rotate half" form for positions (T,)."""
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions.float()[:, None] * (1.0 / theta**exponent)  # (T, head_dim/2)
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos_sin: Rope) -> Tensor:
    """Applies a rotary embedding to (T, heads, head_dim), in float32."""
    cos, sin = cos_sin
    wide = x.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


class Expert(nn.Module):
    """One expert's weights in one layer: everything but the softmax."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        hidden, dim = config.hidden_size, config.head_dim
        self.head_dim = dim
        self.input_norm = RMSNorm(hidden, config.rms_norm_eps)
        self.q = nn.Linear(hidden, config.num_heads * dim)
        self.k = nn.Linear(hidden, config.num_kv_heads * dim)
        self.v = nn.Linear(hidden, config.num_kv_heads * dim)
        self.o = nn.Linear(config.num_heads * dim, hidden, bias=False)
        self.q_norm = RMSNorm(dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(dim, config.rms_norm_eps)
        self.mlp_norm = RMSNorm(hidden, config.rms_norm_eps)
        self.gate = nn.Linear(hidden, config.intermediate_size, bias=False)
        self.up = nn.Linear(hidden, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, hidden, bias=False)

    @property
    def kv_heads(self) -> int:
        """The number of KV heads computed in this process: under tensor parallelism a share of them."""
        to_local = getattr(getattr(self.k, "weight", None), "to_local", None)
        rows = to_local().shape[0] if to_local else self.k.out_features
        return int(rows) // self.head_dim

    def project(self, x: Tensor, cos_sin: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """(T, hidden) -> queries (T, heads, head_dim), keys and values (T, kv_heads, head_dim)."""
        normed = for_matmuls(self.input_norm(x))
        q, k, v = (projection(normed).unflatten(-1, (-1, self.head_dim)) for projection in (self.q, self.k, self.v))
        return rotate(self.q_norm(q), cos_sin), rotate(self.k_norm(k), cos_sin), v

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Residual stream (T, hidden) and attention output (T, heads, head_dim) -> residual stream."""
        x = x + self.o(attended.flatten(-2))
        normed = for_matmuls(self.mlp_norm(x))
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))

    def nothing(self, like: Tensor) -> Tensor:
        """Zero (scalar), computed through all weights.

        In training every rank must gather and reduce the same parameters, whatever its pack holds.
        """
        x = like.new_zeros(1, like.shape[-1])
        q, k, v = self.project(x, rope(x.new_zeros(1), self.head_dim, 1.0))
        return 0 * (self.finish(x, q).sum() + k.sum() + v.sum())


class DecoderLayer(nn.Module):
    """Two experts and the attention they share."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.und = Expert(config)
        self.gen = Expert(config)

    @property
    def device(self) -> torch.device:
        """Where it computes, and where the cache of its keys and values stands."""
        return self.und.input_norm.weight.device

    def forward(
        self, und: Tensor, gen: Tensor, und_rope: Rope, gen_rope: Rope, attend: Attend
    ) -> tuple[Tensor, Tensor]:
        """One layer.

        Args:
            und, gen: the residual streams of the slots, (S, hidden) and (G, hidden).
            und_rope, gen_rope: their rotary embeddings.
            attend: the layer's attention.

        Returns: the residual streams behind the layer, as `und` and `gen`.
        """
        und_q, und_k, und_v = self.und.project(und, und_rope)
        if gen.shape[0] == 0:  # text is being read or written: the other expert is idle
            nothing = und_q[:0], und_k[:0], und_v[:0]
            und_out, _ = attend((und_q, nothing[0]), (und_k, nothing[1]), (und_v, nothing[2]))
            und = self.und.finish(und, und_out)
            return (und + self.gen.nothing(und), gen) if torch.is_grad_enabled() else (und, gen)
        gen_q, gen_k, gen_v = self.gen.project(gen, gen_rope)
        und_out, gen_out = attend((und_q, gen_q), (und_k, gen_k), (und_v, gen_v))
        return self.und.finish(und, und_out), self.gen.finish(gen, gen_out)


class Decoder(nn.Module):
    """Embedding, layers, and the final norms of both experts."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self._cache_pool = CachePool()
        self.embed_tokens = new_embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.norm_gen = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """Where each layer computes."""
        return tuple(cast(DecoderLayer, layer).device for layer in self.layers)

    @property
    def cache_spec(self) -> CacheSpec:
        """The shape and place of the keys and values that these layers compute.

        On the CPU contexts share no slabs: attention reads each cache where it lies, one after another.
        """
        kv_heads, devices = cast(DecoderLayer, self.layers[0]).und.kv_heads, self.devices
        pool = None if devices[0].type == "cpu" else self._cache_pool
        return CacheSpec(kv_heads, self.config.head_dim, self.norm.weight.dtype, devices, pool)

    def forward(
        self, und: Tensor, gen: Tensor, positions: tuple[Tensor, Tensor], attend: Attention
    ) -> tuple[Tensor, Tensor]:
        """All layers, without the final norms.

        Args:
            und, gen: embedded slots, (S, hidden) and (G, hidden).
            positions: rotary positions of und and gen slots, (S,) and (G,).
            attend: decides who sees whom.

        Returns: the slots' hidden states, (S, hidden) and (G, hidden).
        """
        und_rope, gen_rope = (rope(p, self.config.head_dim, self.config.rope_theta) for p in positions)
        for index, layer in enumerate(self.layers):
            und, gen = layer(und, gen, und_rope, gen_rope, attend.for_layer(index))
        return und, gen
