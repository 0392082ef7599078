"""The Mixture-of-Transformers decoder: Qwen2 with two experts a layer.

What is unusual about it:
- every layer has two full sets of weights, *und* for text and ViT tokens and image markers, *gen* for VAE latents;
- tokens arrive grouped by expert, so an expert is a plain transformer block on a contiguous slice;
- the experts meet only in attention, where all tokens of a sample share one softmax;
- queries and keys are RMS-normalised per head before the rotary embedding.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bagel_mot.config import DecoderConfig
from bagel_mot.model.attention import Attend, Attention
from bagel_mot.model.cache import CachePool, CacheSpec
from bagel_mot.model.embedding import new_embedding
from bagel_mot.model.joined import JoinedLinear, PrepackedRows, join, prepare
from bagel_mot.model.passes import LEAST_WIDTH, Passes, passes_for
from bagel_mot.model.prepacked import PrepackedLinear

Rope = tuple[Tensor, Tensor]
"""Cosines, and sines that are negative in their first half, (T, 1, head_dim) float32 each."""


class RMSNorm(nn.Module):
    """x / √(mean(x²) + ε) · weight, with statistics in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """(…, size) -> (…, size), in the precision of x."""
        if x.dtype == self.weight.dtype:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
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
    angles = positions.float()[:, None, None] * (1.0 / theta**exponent)  # (T, 1, head_dim/2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, cos_sin: Rope) -> Tensor:
    """Applies a rotary embedding to (T, heads, head_dim), in float32."""
    cos, sin = cos_sin
    rotated = torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
    return rotated if rotated.dtype == x.dtype else rotated.to(x.dtype)


def _added(residual: Tensor, linear: nn.Module, x: Tensor) -> Tensor:
    """residual (T, out) + what a linear map makes of x (T, in)."""
    if isinstance(linear, PrepackedLinear):
        return linear.added_to(residual, x)
    return residual + cast(Tensor, linear(x))


class Expert(nn.Module):
    """One expert's weights in one layer: everything but the softmax.

    Attributes:
        qkv, gate_up: maps of the same input as one, for inference (`bagel_mot.model.joined`); None where each is alone.
        passes: compiled passes for inference on the CPU; without them PyTorch's operations serve.
    """

    passes: Passes | None = None

    JOINED: ClassVar[dict[str, tuple[str, ...]]] = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
    qkv: JoinedLinear | None
    gate_up: JoinedLinear | None

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

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        for joined, parts in self.JOINED.items():
            if name in parts:  # they were joined before it was replaced
                self.__dict__[joined] = None

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for name, parts in self.JOINED.items():  # plain weights were moved one by one
            if getattr(self, name) is not None and not isinstance(getattr(self, parts[0]), PrepackedRows):
                setattr(self, name, join(self, parts, prepack=False))
        return self

    @property
    def kv_heads(self) -> int:
        """The number of KV heads computed in this process: under tensor parallelism a share of them."""
        to_local = getattr(getattr(self.k, "weight", None), "to_local", None)
        rows = to_local().shape[0] if to_local else self.k.out_features
        return int(rows) // self.head_dim

    def project(self, x: Tensor, cos_sin: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """(T, hidden) -> queries (T, heads, head_dim), keys and values (T, kv_heads, head_dim)."""
        normed, passes = self._normed(self.input_norm, x), self._passes_for(x)
        if self.qkv is None:
            q, k, v = (linear(normed).unflatten(-1, (-1, self.head_dim)) for linear in (self.q, self.k, self.v))
            return rotate(self.q_norm(q), cos_sin), rotate(self.k_norm(k), cos_sin), v
        heads = [size // self.head_dim for size in self.qkv.sizes]
        if passes is not None:
            weights, eps = (self.q_norm.weight, self.k_norm.weight), self.q_norm.eps
            return passes.heads(self.qkv(normed), *weights, eps, cos_sin, heads[0])
        q, k, v = self.qkv(normed).unflatten(-1, (-1, self.head_dim)).split_with_sizes(heads, 1)
        both = rotate(torch.cat([self.q_norm(q), self.k_norm(k)], 1), cos_sin)
        return (*both.split_with_sizes(heads[:2], 1), v)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Residual stream (T, hidden) and attention output (T, heads, head_dim) -> residual stream."""
        x = _added(x, self.o, attended.flatten(-2))
        return _added(x, self.down, self._activated(self._normed(self.mlp_norm, x)))

    def _activated(self, normed: Tensor) -> Tensor:
        """SiLU(gate) · up of (T, hidden) -> (T, intermediate). No more than three tensors of its size are alive."""
        if self.gate_up is None:
            return F.silu(self.gate(normed)) * self.up(normed)
        both = self.gate_up(normed)
        if (passes := self._passes_for(both)) is not None:
            return passes.gated(both)
        gate, up = both.chunk(2, -1)
        return F.silu(gate).mul_(up)

    def _passes_for(self, x: Tensor) -> Passes | None:
        """The compiled passes, if they take such activations (T, hidden)."""
        found = self.passes
        return found if found is not None and x.dtype == found.dtype and x.device.type == "cpu" else None

    def _normed(self, norm: RMSNorm, x: Tensor) -> Tensor:
        """A norm of the residual stream (T, hidden), as matmuls take it."""
        if (passes := self._passes_for(x)) is not None and x.is_contiguous():
            return passes.norm(x, norm.weight, norm.eps)
        return for_matmuls(norm(x))

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
        # Queries, keys and values are gone before the MLPs take their memory.
        if gen.shape[0] == 0:  # text is being read or written: the other expert is idle
            und_out, _ = attend(*((found, found[:0]) for found in self.und.project(und, und_rope)))
            und = self.und.finish(und, und_out)
            return (und + self.gen.nothing(und), gen) if torch.is_grad_enabled() else (und, gen)
        und_out, gen_out = attend(*zip(self.und.project(und, und_rope), self.gen.project(gen, gen_rope), strict=True))
        return self.und.finish(und, und_out), self.gen.finish(gen, gen_out)


class Decoder(nn.Module):
    """Embedding, layers, and the final norms of both experts.

    Attributes:
        compiled: whether layers are compiled for each number of slots, so that few different ones should come.
        passes: compiled passes for inference on the CPU; without them PyTorch's operations serve.
    """

    compiled = False
    passes: Passes | None = None

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self._cache_pool = CachePool()
        self.embed_tokens = new_embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.norm_gen = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def prepare(self, *, prepack: bool) -> None:
        """Joins what is multiplied with one input, and takes compiled passes where they are faster: for inference with
        weights that stay where they are.

        Args:
            prepack: prepack all linear maps where that pays.
        """
        prepare(self, prepack=prepack)
        config, dtype = self.config, self.norm.weight.dtype
        if self.devices[0].type != "cpu" or config.hidden_size < LEAST_WIDTH:
            return
        self.passes = passes_for(dtype, config.hidden_size, config.intermediate_size, config.head_dim)
        for layer in cast("list[DecoderLayer]", list(self.layers)):
            for expert in filter(None, (layer.und, layer.gen)):
                expert.passes = self.passes

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
        passes = self.passes if {device.type for device in devices} == {"cpu"} else None
        return CacheSpec(kv_heads, self.config.head_dim, self.norm.weight.dtype, devices, pool, passes)

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
