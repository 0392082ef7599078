"""The layout of a pack for training: its samples in rows, and the images to encode for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bagel_mot.data.documents import IndexedSample, UnencodedImage
from bagel_mot.data.feed import SkippedItem
from bagel_mot.sequence import FramesSegment, PackSpec, TrainingLayout, Values, pack


@dataclass(frozen=True)
class TrainingPack:
    """A pack laid out without its latents, and the images to encode for them.

    Attributes:
        layout: the layout, on the CPU.
        vit_patches: (Np, patch_dim) patches of the ViT's images, uint8 levels.
        images: the distinct images, stacked by size: (n, H, W, 3) uint8 levels each.
        latent_source: (Nl,) int64: each latent token's row among the tokens of all `images`, in their order.
        datasets: the name of each sample's data set; `layout.sample` numbers the samples.
        replayed: (samples,) bool: whether each sample is what the model knows already.
        skipped: the items of the data that were left out since the pack before.
    """

    layout: TrainingLayout
    vit_patches: Tensor
    images: list[Tensor]
    latent_source: Tensor
    datasets: tuple[str, ...]
    replayed: Tensor
    skipped: tuple[SkippedItem, ...] = ()


def lay_out(
    rows: Sequence[Sequence[IndexedSample]], spec: PackSpec, und: int, gen: int, skipped: tuple[SkippedItem, ...] = ()
) -> TrainingPack:
    """Lays out the samples of each row in a pack. An image in several segments is encoded once.

    Args:
        rows: the samples of each row.
        spec: the model's packing facts.
        und, gen: the slots of each row.
        skipped: the items that were left out, which the pack tells.
    """
    segments = [s for row in rows for sample in row for s in sample.segments]
    images = [image for s in segments for image in (s.frames if isinstance(s, FramesSegment) else (s,))]
    unencoded = [image for image in images if isinstance(image, UnencodedImage)]
    by_size: dict[tuple[int, ...], dict[int, UnencodedImage]] = {}
    for segment in unencoded:
        by_size.setdefault(tuple(segment.levels.shape), {})[id(segment.levels)] = segment
    first: dict[int, int] = {}  # each image's first token among those of all
    tokens = 0
    for same_size in by_size.values():
        for image, segment in same_size.items():
            first[image] = tokens
            tokens += segment.gen_len
    sources = [torch.arange(start := first[id(s.levels)], start + s.gen_len) for s in unencoded]
    return TrainingPack(
        pack(rows, spec, und_len=und, gen_len=gen),
        Values.of([sample for row in rows for sample in row], spec).vit_patches,
        [torch.stack([segment.levels for segment in same_size.values()]) for same_size in by_size.values()],
        torch.cat([torch.zeros(0, dtype=torch.int64), *sources]),
        tuple(sample.dataset for row in rows for sample in row),
        torch.tensor([sample.replayed for row in rows for sample in row], dtype=torch.bool),
        skipped,
    )
