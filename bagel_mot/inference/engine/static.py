"""Denoising steps and decoded tokens as functions of the few tensors that change from one to the next."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bagel_mot.inference.engine.graphs import StaticPass
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.cache import KVReservation
from bagel_mot.model.cached_attention import CachedAttention, CachedSample
from bagel_mot.model.decode_batch import DecodeBatch, DecodeRow
from bagel_mot.sequence import Layout, Values


def denoising(
    model: BagelModel, layout: Layout, values: Values, reservations: Sequence[KVReservation], key: object
) -> StaticPass:
    """The velocities of noised images behind their contexts, all of them scratch.

    Args:
        model: the model.
        layout: the places of the images' tokens, on the device.
        values: their latents and timesteps.
        reservations: the scratch of each image.
        key: everything that decides the layout.

    Returns: a pass from latents (Nl, latent_dim) and timesteps (images,) to velocities (G, latent_dim) float32 and
        hidden states (G, hidden) of all gen slots.
    """

    def compute(latents: Tensor, timesteps: Tensor) -> tuple[Tensor, ...]:
        samples = [CachedSample(spans, own) for spans, own in zip(layout.spans, reservations, strict=True)]
        now = Values(values.vit_patches, latents, timesteps)
        _, gen = model(layout, now, CachedAttention(samples))
        return model.velocity(gen).float(), gen

    inputs = values.latents, values.timesteps
    return StaticPass("denoising step", key, tuple(reservations), inputs, compute, kept=layout)


def decoding(
    model: BagelModel, tokens: Sequence[int], positions: Sequence[int], reservations: Sequence[KVReservation]
) -> StaticPass:
    """The logits after the next tokens of texts.

    Args:
        model: the model.
        tokens, positions: the token of each text, and its rotary position.
        reservations: the room for each token, in slabs.

    Returns: a pass to logits (R, vocab) float32, of which those beyond the number of texts mean nothing. R, and the
        longest context that there is room for, are rounded up, so that few different passes come to be.
    """
    batch = DecodeBatch.of([DecodeRow(slot, own) for slot, own in enumerate(reservations)], static=True)
    slabs, shape = batch.slabs, batch.shape
    spare = shape.rows - len(tokens)
    given = torch.tensor([[*tokens, *[tokens[0]] * spare], [*positions, *[positions[0]] * spare]])

    def compute(given: Tensor, numbers: Tensor) -> tuple[Tensor, ...]:
        ids, places = given
        none = ids[:0]
        layout = Layout(
            rows=1,
            und_len=shape.rows,
            gen_len=0,
            text_ids=ids,
            text_slots=torch.arange(shape.rows, device=ids.device),
            vit_slots=none,
            vit_index=none,
            vit_grids=(),
            latent_slots=none,
            latent_index=none,
            latent_image=none,
            latent_grids=(),
            positions=places[None],
            spans=(),
        )
        nothing = torch.zeros(0, device=ids.device)
        attend = CachedAttention((), DecodeBatch(slabs, shape, numbers))
        und, _ = model(layout, Values(nothing, nothing, nothing), attend)
        return (model.logits(und).float(),)

    return StaticPass("decoded token", shape, tuple(slabs), (given, batch.numbers), compute)
