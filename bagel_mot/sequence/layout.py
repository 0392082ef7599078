"""Where the tokens of a forward pass stand, who may see whom among them, and the values that fill them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from bagel_mot.config import BagelConfig
from bagel_mot.sequence.segments import CAUSAL, NOISED, VAE, VIT, Grid, Sample
from bagel_mot.tokenizer import SpecialTokens


@dataclass(frozen=True)
class PackSpec:
    """The facts of a model that packing needs: its special tokens and the shapes of its position tables and inputs."""

    special: SpecialTokens
    vit_side: int  # side of the fixed table after the connector; the learned SigLIP table is indexed alike
    latent_side: int
    patch_dim: int
    latent_dim: int
    interpolate: bool = False

    @classmethod
    def of(cls, config: BagelConfig, special: SpecialTokens) -> PackSpec:
        return cls(
            special=special,
            vit_side=config.vit_max_num_patch_per_side,
            latent_side=config.max_latent_size,
            patch_dim=config.vit.patch_dim,
            latent_dim=config.latent_dim,
            interpolate=config.interpolate_pos,
        )


@dataclass(frozen=True)
class SegmentSpan:
    """Where one segment's tokens stand: `und` and `gen` slots, each (start, stop), and its place in sequence order."""

    mode: int
    und: tuple[int, int]
    gen: tuple[int, int]
    start: int  # first token, counted from the first token of its sample in this pack

    @property
    def length(self) -> int:
        return self.und[1] - self.und[0] + self.gen[1] - self.gen[0]


class _Tensors:
    """A frozen dataclass with tensors among its fields."""

    def to(self, device: torch.device | str) -> Self:
        """The same with its tensors on a device; the host does not wait for copies to a GPU."""
        pinned = torch.device(device).type == "cuda"
        moved: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                value = value.pin_memory() if pinned and value.device.type == "cpu" else value
                moved[name] = value.to(device, non_blocking=True)
        return dataclasses.replace(self, **moved)  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class Layout(_Tensors):
    """Where the tokens of a forward pass stand. S = rows·und_len und slots, G = rows·gen_len gen slots.

    Slots that nothing fills are padding.
    """

    rows: int
    und_len: int
    gen_len: int
    text_ids: Tensor  # (Nt,) int64: text and image markers
    text_slots: Tensor  # (Nt,) int64 in [0, S)
    vit_slots: Tensor  # (Np,) int64 in [0, S)
    vit_index: Tensor  # (Np,) int64 into both position tables of the ViT, the learned and the fixed one
    vit_grids: tuple[Grid, ...]
    latent_slots: Tensor  # (Nl,) int64 in [0, G)
    latent_index: Tensor  # (Nl,) int64 into the fixed table
    latent_image: Tensor  # (Nl,) int64: which VAE image, counting in sequence order
    latent_grids: tuple[Grid, ...]
    positions: Tensor  # (rows, und_len + gen_len) int64 rotary position of each slot, und first within a row
    spans: tuple[tuple[SegmentSpan, ...], ...]  # per sample, per segment with tokens

    @property
    def num_tokens(self) -> int:
        """The number of tokens that are not padding."""
        return self.text_ids.numel() + self.vit_slots.numel() + self.latent_slots.numel()


Visibility = tuple[Tensor, Tensor, Tensor, Tensor]  # place, sample, segment, mode


@dataclass(frozen=True, eq=False)
class TrainingLayout(Layout):
    """A layout with the targets of the losses and, per slot (rows, und_len + gen_len), who may see whom."""

    ce_slots: Tensor  # (Nc,) int64 in [0, S): where text is predicted
    ce_labels: Tensor  # (Nc,) int64
    ce_weights: Tensor  # (Nc,) float32: 1/√(length of the target text)
    noised: Tensor  # (images,) bool: VAE images whose velocity is predicted
    timesteps: int  # how many timesteps there are to draw: one for each segment with VAE images
    timestep_of: Tensor  # (images,) int64 in [0, timesteps): the timestep of each VAE image
    place: Tensor  # int64 sequence order over the whole pack; -1 is padding
    sample: Tensor  # int64; each slot of padding has a negative number of its own, so that it sees itself alone
    segment: Tensor  # int64, counting over the whole pack; -1 is padding
    mode: Tensor  # int64: CAUSAL, FULL or NOISED

    @property
    def visibility(self) -> Visibility:
        """Everything that decides who sees whom."""
        return self.place, self.sample, self.segment, self.mode

    @property
    def ce_sample(self) -> Tensor:
        """(Nc,) int64: the sample of each text target."""
        return self.sample[:, : self.und_len].flatten()[self.ce_slots]

    @property
    def latent_sample(self) -> Tensor:
        """(Nl,) int64: the sample of each latent token."""
        return self.sample[:, self.und_len :].flatten()[self.latent_slots]

    def mask(self) -> Tensor:
        """Who may attend to whom: (rows, L, L) bool over the slots of each row, L = und_len + gen_len, True = may."""
        return may_attend([v[:, :, None] for v in self.visibility], [v[:, None] for v in self.visibility])


def may_attend(query: Sequence[Tensor], key: Sequence[Tensor]) -> Tensor:
    """Whether queries see keys: bool, of the broadcast shape of the two `TrainingLayout.visibility`.

    A token sees earlier tokens of its sample and, in a full or noised segment, all of its own segment; nobody outside a
    noised segment sees it.
    """
    (place, sample, segment, mode), (key_place, key_sample, key_segment, key_mode) = query, key
    same_segment = segment == key_segment
    visible = (key_place <= place) | (same_segment & (mode != CAUSAL))
    return visible & (same_segment | (key_mode != NOISED)) & (sample == key_sample)


@dataclass(frozen=True, eq=False)
class Values(_Tensors):
    """The contents of a layout's image tokens in one forward pass."""

    vit_patches: Tensor  # (Np, patch_dim) float32
    latents: Tensor  # (Nl, latent_dim) float32
    timesteps: Tensor  # (images,) float32, one for each VAE image

    @classmethod
    def of(cls, samples: Iterable[Sample], spec: PackSpec, latents: Tensor | None = None) -> Values:
        """The values of samples, in the order in which they are packed.

        Args:
            samples: the samples of all rows, row by row.
            spec: the model's packing facts.
            latents: (Nl, latent_dim), in place of those the segments hold.
        """
        runs = [run for sample in samples for segment in sample.segments for run in segment.runs]

        def joined(kind: int, size: int) -> Tensor:
            parts = [run.values for run in runs if run.kind == kind and run.values is not None]
            return torch.cat(parts) if parts else torch.zeros(0, size)

        return cls(
            joined(VIT, spec.patch_dim),
            joined(VAE, spec.latent_dim) if latents is None else latents,
            torch.tensor([run.timestep for run in runs if run.kind == VAE], dtype=torch.float32),
        )
