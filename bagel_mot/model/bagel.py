"""The whole network: embeddings of text, ViT and VAE tokens, the decoder, and the two heads.

    text ids ─ embed_tokens ─────────────────┐
    patches ─ ViT ─ connector ─ + sin-cos ───┼─ und slots ┐            ┌ norm ─ lm_head ── logits
                                             │            ├─ decoder ──┤
    latents ─ vae2llm ─ + time ─ + sin-cos ──┴─ gen slots ┘            └ norm_gen ─ llm2vae ── velocity

The autoencoder (`bagel_mot.model.vae`) is a network of its own: frozen, it turns images into latents and back.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bagel_mot.config import BagelConfig
from bagel_mot.model.attention import Attention
from bagel_mot.model.decoder import Decoder
from bagel_mot.model.vit import Connector, VisionTransformer
from bagel_mot.sequence import Layout, Values

_TIME_FREQUENCIES = 256
# Fewer rows take another kernel on the CPU, which rounds otherwise: an image would depend on its neighbours in a batch.
_FEWEST_ROWS = 16


def sincos_table(side: int, size: int) -> Tensor:
    """The fixed 2-D position table: (side², size) float32, computed in float64.

    The first half of the channels encodes the column, the second the row; each half is sines, then cosines, of
    frequencies 10000^(−i/(size/4)).
    """
    if size % 4:
        raise ValueError(f"a sin-cos table needs a width divisible by 4, not {size}")
    table = torch.empty(side, side, size, dtype=torch.float32)
    if table.is_meta:  # to work it out there, PyTorch would import its whole compiler
        return table.flatten(0, 1)
    frequencies = 10000.0 ** -(torch.arange(size // 4, dtype=torch.float64) / (size / 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=-1).float()  # (side, size/2)
    table[..., : size // 2] = axis
    table[..., size // 2 :] = axis[:, None]
    return table.flatten(0, 1)


class TimestepEmbedding(nn.Module):
    """t in [0, 1] -> 128 cosines and 128 sines -> Linear, SiLU, Linear."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(_TIME_FREQUENCIES, hidden_size)
        self.fc2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, t: Tensor) -> Tensor:
        """(N,) float32 -> (N, hidden)"""
        n = t.shape[0]
        t = F.pad(t, (0, max(0, _FEWEST_ROWS - n)))
        half = _TIME_FREQUENCIES // 2
        frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
        angles = t.float()[:, None] * frequencies
        features = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.fc1.weight.dtype)
        return self.fc2(F.silu(self.fc1(features)))[:n]


class BagelModel(nn.Module):
    """The network without the autoencoder. Call it on a packed sequence; then take `logits` or `velocity` where
    needed.
    """

    latent_pos_embed: Tensor  # (max_latent_size², hidden), fixed
    vit_pos_embed: Tensor  # (vit_max_num_patch_per_side², hidden), fixed

    def __init__(self, config: BagelConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.decoder.hidden_size
        self.decoder = Decoder(config.decoder)
        self.vit = VisionTransformer(config.vit)
        self.connector = Connector(config.vit.hidden_size, hidden)
        self.time_embedding = TimestepEmbedding(hidden)
        self.latent_in = nn.Linear(config.latent_dim, hidden)
        self.latent_out = nn.Linear(hidden, config.latent_dim)
        self.register_buffer("latent_pos_embed", sincos_table(config.max_latent_size, hidden))
        self.register_buffer("vit_pos_embed", sincos_table(config.vit_max_num_patch_per_side, hidden))

    def drop(self, *, image_input: bool = False, image_output: bool = False) -> None:
        """Leaves out what a task does not need; it is not to be called on afterwards.

        Args:
            image_input: leave out the vision transformer and its connector; images are drawn from texts alone.
            image_output: leave out the gen expert and the layers that take latents in and out; only text is written.
        """
        # A module set to None stays known by its name and is neither moved, stored nor counted.
        if image_input:
            for name in ("vit", "connector", "vit_pos_embed"):
                setattr(self, name, None)
        if image_output:
            for name in ("latent_in", "latent_out", "time_embedding", "latent_pos_embed"):
                setattr(self, name, None)
            for module, name in ((self.decoder, "norm_gen"), *((layer, "gen") for layer in self.decoder.layers)):
                setattr(module, name, None)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of activations: that of the norms (large matrices may be stored otherwise)."""
        return self.decoder.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.decoder.norm.weight.device

    def embed_images(self, layout: Layout, patches: Tensor) -> Tensor:
        """ViT features through the connector, with positions: patches (Np, patch_dim) -> (Np, hidden)."""
        features = self.vit(patches.to(self.dtype), layout.vit_index, layout.vit_grids)
        return self.connector(features) + self.vit_pos_embed[layout.vit_index]

    def embed_latents(self, latents: Tensor, timesteps: Tensor, image: Tensor, index: Tensor) -> Tensor:
        """Latent tokens (Nl, latent_dim) of images `image` (Nl,) at their timesteps (images,), with positions.

        Args:
            index: (Nl,) places in the position table.

        Returns: (Nl, hidden)
        """
        time = self.time_embedding(timesteps)[image]  # once per image, whatever its size
        return self.latent_in(latents.to(self.dtype)) + time + self.latent_pos_embed[index]

    def embed(self, layout: Layout, values: Values) -> tuple[Tensor, Tensor]:
        """Fills the slots: und (S, hidden) and gen (G, hidden). Slots that nothing fills are zero."""
        hidden = self.config.decoder.hidden_size
        text = self.decoder.embed_tokens(layout.text_ids)
        und = text.new_zeros(layout.rows * layout.und_len, hidden)
        und = und.index_copy(0, layout.text_slots, text)
        if layout.vit_grids:
            und = und.index_copy(0, layout.vit_slots, self.embed_images(layout, values.vit_patches).to(und.dtype))
        elif torch.is_grad_enabled():
            und = und + self._nothing_seen(und)
        gen = text.new_zeros(layout.rows * layout.gen_len, hidden)
        if layout.latent_grids:
            latents = self.embed_latents(values.latents, values.timesteps, layout.latent_image, layout.latent_index)
            gen = gen.index_copy(0, layout.latent_slots, latents.to(gen.dtype))
        elif torch.is_grad_enabled():
            und = und + self._nothing_drawn(und)
        return und, gen

    # In training every rank must gather and reduce the same parameters, whatever its pack holds: a pack without images
    # adds zero, computed through the weights that it would not use.

    def _nothing_seen(self, like: Tensor) -> Tensor:
        patch, index = like.new_zeros(1, self.config.vit.patch_dim), like.new_zeros(1, dtype=torch.int64)
        return 0 * self.connector(self.vit(patch, index, ((1, 1),))).sum().to(like.dtype)

    def _nothing_drawn(self, like: Tensor) -> Tensor:
        latent, index = like.new_zeros(1, self.config.latent_dim), like.new_zeros(1, dtype=torch.int64)
        return 0 * self.embed_latents(latent, like.new_zeros(1), index, index).sum().to(like.dtype)

    def forward(self, layout: Layout, values: Values, attend: Attention) -> tuple[Tensor, Tensor]:
        """The network up to the final norms.

        Args:
            layout, values: the packed sequence.
            attend: decides who sees whom.

        Returns: the hidden states of und slots (S, hidden) and gen slots (G, hidden).
        """
        und, gen = self.embed(layout, values)
        positions = (layout.positions[:, : layout.und_len].flatten(), layout.positions[:, layout.und_len :].flatten())
        return self.decoder(und, gen, positions, attend)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (N, hidden) of und slots -> (N, vocab)."""
        return self.decoder.lm_head(self.decoder.norm(hidden))

    def velocity(self, hidden: Tensor) -> Tensor:
        """Hidden states (N, hidden) of gen slots -> (N, latent_dim)."""
        return self.latent_out(self.decoder.norm_gen(hidden))
