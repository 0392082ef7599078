"""A pack of one row as the published packing writes it down: places and values in sequence order."""

from __future__ import annotations

import torch
from torch import Tensor

from bagel_mot.sequence import CAUSAL, FULL, NOISED, TrainingLayout

MODE_NAMES = {CAUSAL: "causal", FULL: "full", NOISED: "noise"}


def in_order(packed: TrainingLayout, slots: Tensor, *, gen: bool = False) -> Tensor:
    """The places of und or gen slots of a pack of one row in sequence order."""
    return packed.place[0, slots + packed.und_len if gen else slots]


def published_tensors(packed: TrainingLayout, vit_patches: Tensor) -> dict[str, Tensor]:
    """The tensors of the published pack by their names, from slots back in sequence order.

    Args:
        packed: a pack of one row.
        vit_patches: (Np, patch_dim) patches of the ViT's images, in the order of the layout.
    """

    def sorted_by(places: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        order = places.argsort()
        return (places[order], *(value[order] for value in values))

    found: dict[str, Tensor] = {}
    found["packed_text_indexes"], found["packed_text_ids"] = sorted_by(
        in_order(packed, packed.text_slots), packed.text_ids
    )
    vit = sorted_by(in_order(packed, packed.vit_slots), vit_patches, packed.vit_index)
    found["packed_vit_token_indexes"], found["packed_vit_tokens"], found["packed_vit_position_ids"] = vit
    found["vit_token_seqlens"] = torch.tensor([rows * columns for rows, columns in packed.vit_grids])
    places, index, noised = sorted_by(
        in_order(packed, packed.latent_slots, gen=True), packed.latent_index, packed.noised[packed.latent_image]
    )
    found["packed_vae_token_indexes"], found["packed_latent_position_ids"] = places, index
    found["mse_loss_indexes"] = places[noised]
    ce = sorted_by(in_order(packed, packed.ce_slots), packed.ce_labels, packed.ce_weights)
    found["ce_loss_indexes"], found["packed_label_ids"], found["ce_loss_weights"] = ce
    used = packed.place[0] >= 0
    (_, found["packed_position_ids"]) = sorted_by(packed.place[0][used], packed.positions[0][used])
    mask, start = mask_in_order(packed), 0
    for number, length in enumerate(sample_lengths(packed)):
        found[f"mask_{number}"] = mask[start : start + length, start : start + length]
        start += length
    return found


def sample_lengths(packed: TrainingLayout) -> list[int]:
    """The number of tokens of each sample."""
    return [sum(span.length for span in spans) for spans in packed.spans]


def mask_in_order(packed: TrainingLayout) -> Tensor:
    """The mask of a pack of one row, (tokens, tokens), in sequence order and without padding."""
    slot_of = torch.empty(packed.num_tokens, dtype=torch.int64)
    filled = packed.place[0] >= 0
    slot_of[packed.place[0][filled]] = filled.nonzero()[:, 0]
    return packed.mask()[0][slot_of][:, slot_of]


def across_samples(packed: TrainingLayout) -> int:
    """The number of pairs of tokens of different samples of which one sees the other; there should be none."""
    lengths = sample_lengths(packed)
    sample = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths, dtype=torch.int64))
    return int(mask_in_order(packed)[sample[:, None] != sample[None, :]].sum())


def splits_of(packed: TrainingLayout) -> tuple[list[int], list[str], list[int]]:
    """The block layout: lengths and modes of the splits, and lengths of the samples, the padding as a last one."""
    spans = [span for sample in packed.spans for span in sample]
    padding = int((packed.sample < 0).sum())
    splits, modes = [span.length for span in spans], [MODE_NAMES[span.mode] for span in spans]
    lengths = sample_lengths(packed)
    if padding:  # causal, and a sample of its own
        return [*splits, padding], [*modes, MODE_NAMES[CAUSAL]], [*lengths, padding]
    return splits, modes, lengths
