"""Segments and their packing into one sequence.

A sample is a list of segments: text, ViT images and VAE images. `pack` lays the tokens of many samples out for one
forward pass. Three orders of the same tokens matter:

- **sequence order** is the order of the sample: it decides who sees whom and where keys stand in a cache;
- **slots** are where tokens are computed: within each row first all tokens of the *und* expert (text, ViT, image
  markers), then all tokens of the *gen* expert (VAE latents), so that each expert's matmuls run on one contiguous
  slice. Tokens are brought into slots once, here, and never moved inside a layer;
- **rows** are independent stretches of attention. The published layout is one long row; many short rows cost less
  attention where no block-sparse kernel exists.

Nothing here knows of networks: the result is plain tensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bagel.config import BagelConfig
from bagel.errors import SizeError

CAUSAL, FULL, NOISED = 0, 1, 2


@dataclass(frozen=True, eq=False)
class TextSegment:
    """Text tokens as they are fed, the start and end tokens included.

    `labels`, where given, are the targets: `labels[i]` is to be predicted at `ids[i]`. They are one fewer than the
    ids: start and ids predict ids and end, and at the end nothing is predicted.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...] | None = None

    mode = CAUSAL

    @property
    def und_len(self) -> int:
        return len(self.ids)

    gen_len = 0

    @property
    def advance(self) -> int:
        """How far this segment moves the rotary position."""
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class VitSegment:
    """A picture for understanding.

    Attributes:
        patches: (rows·columns, patch²·3) pixels in [-1, 1], as `bagel.images.patchify` makes them.
        grid: (rows, columns) of patches.
    """

    patches: Tensor
    grid: tuple[int, int]

    mode = FULL
    gen_len = 0
    advance = 1

    @property
    def und_len(self) -> int:
        return self.grid[0] * self.grid[1] + 2


@dataclass(frozen=True, eq=False)
class VaeSegment:
    """A picture as latent tokens: a clean condition (`timestep` 0), or noised and being predicted.

    Attributes:
        latent: (rows·columns, latent_dim) tokens, as `bagel.images.latent_to_tokens` makes them. For a training
            target these are the clean ones: the objective noises them.
        grid: (rows, columns) of tokens.
        noised: whether it is being predicted. Nobody outside a noised segment sees it, and it does not move the
            position.
        timestep: in [0, 1], 1 being pure noise.
    """

    latent: Tensor
    grid: tuple[int, int]
    noised: bool = False
    timestep: float = 0.0

    und_len = 2

    @property
    def mode(self) -> int:
        return NOISED if self.noised else FULL

    @property
    def gen_len(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def advance(self) -> int:
        return 0 if self.noised else 1


@dataclass(frozen=True, eq=False)
class DroppedImage:
    """What is left of a picture that condition dropout removed: no tokens, but the position moves on by one."""

    mode = FULL
    und_len = 0
    gen_len = 0
    advance = 1


Segment = TextSegment | VitSegment | VaeSegment | DroppedImage


def segment_length(segment: Segment) -> int:
    """Tokens in a segment, of both experts."""
    return segment.und_len + segment.gen_len


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens that delimit texts and pictures."""

    bos: int
    eos: int
    start_of_image: int
    end_of_image: int

    def condition(self, ids: Sequence[int]) -> TextSegment:
        """A text that is given: start, ids, end."""
        return TextSegment((self.bos, *ids, self.eos))

    def target(self, ids: Sequence[int]) -> TextSegment:
        """A text that is to be learnt: start and ids predict ids and end."""
        return TextSegment((self.bos, *ids, self.eos), labels=(*ids, self.eos))


@dataclass(frozen=True)
class PackSpec:
    """What packing needs to know of a model: its special tokens and the shapes of its position tables and inputs."""

    special: SpecialTokens
    vit_side: int  # of the fixed table after the connector; the learned SigLIP table is indexed alike
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


def table_index(rows: int, columns: int, side: int, interpolate: bool = False) -> Tensor:
    """Where the patches of a (rows, columns) grid stand in a position table of side·side entries, in reading order.

    Plain mode is `row * side + column`. With `interpolate` the grid is stretched over the table: fractional
    coordinates are sorted into `side` buckets (in float32, as recorded outputs need).

    Returns: (rows·columns,) int64.
    """
    if interpolate:
        edges = torch.arange(1 / side, 1.0, 1 / side)
        row, column = (torch.bucketize(torch.arange(0, 1 - 1e-6, 1 / n), edges, right=True) for n in (rows, columns))
    else:
        if rows > side or columns > side:
            raise SizeError(f"a {rows}×{columns} grid does not fit a position table of {side}×{side}")
        row, column = torch.arange(rows), torch.arange(columns)
    return (row[:, None] * side + column[None, :]).flatten()


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


@dataclass
class PackedSequence:
    """Many samples laid out for one forward pass. S = rows·und_len und slots, G = rows·gen_len gen slots."""

    rows: int
    und_len: int
    gen_len: int
    # What fills the slots. Slots that nothing fills are padding.
    text_ids: Tensor  # (Nt,) int64: text and image markers
    text_slots: Tensor  # (Nt,) int64 in [0, S)
    vit_patches: Tensor  # (Np, patch_dim) float32
    vit_slots: Tensor  # (Np,) int64 in [0, S)
    vit_index: Tensor  # (Np,) int64 into both position tables of the ViT, the learned and the fixed one
    vit_grids: list[tuple[int, int]]
    latents: Tensor  # (Nl, latent_dim) float32
    latent_slots: Tensor  # (Nl,) int64 in [0, G)
    latent_index: Tensor  # (Nl,) int64 into the fixed table
    timesteps: Tensor  # (Nl,) float32
    noised: Tensor  # (Nl,) bool: tokens whose velocity is predicted
    latent_image: Tensor  # (Nl,) int64: which VAE segment, counting in sequence order
    latent_grids: list[tuple[int, int]]
    # Targets of the cross-entropy.
    ce_slots: Tensor  # (Nc,) int64 in [0, S)
    ce_labels: Tensor  # (Nc,) int64
    ce_weights: Tensor  # (Nc,) float32: 1/√(length of the target text)
    # Per slot, rows·(und_len + gen_len), und first within a row: (rows, und_len + gen_len).
    positions: Tensor  # int64 rotary position
    place: Tensor  # int64 sequence order over the whole pack; -1 is padding
    sample: Tensor  # int64; -1 is padding
    segment: Tensor  # int64, counting over the whole pack
    mode: Tensor  # int64: CAUSAL, FULL or NOISED
    spans: list[list[SegmentSpan]] = field(default_factory=list)  # per sample, per segment with tokens

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return self.text_ids.numel() + self.vit_slots.numel() + self.latent_slots.numel()

    def to(self, device: torch.device | str) -> PackedSequence:
        """The same pack with its tensors on `device`."""
        tensors: dict[str, Any] = {
            f.name: value.to(device, non_blocking=True)
            for f in dataclasses.fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return dataclasses.replace(self, **tensors)

    def mask(self) -> Tensor:
        """Who may attend to whom: (rows, L, L) bool over the slots of each row, L = und_len + gen_len, True = may.

        A token sees earlier tokens of its sample and, in a full or noised segment, all of its own segment; nobody
        outside a noised segment sees it. Padding sees itself alone, so that its softmax stays finite.
        """
        place, segment, mode = self.place, self.segment, self.mode
        same_segment = segment[:, :, None] == segment[:, None, :]
        visible = (place[:, None, :] <= place[:, :, None]) | (same_segment & (mode[:, :, None] != CAUSAL))
        visible &= (mode[:, None, :] != NOISED) | same_segment
        visible &= self.sample[:, :, None] == self.sample[:, None, :]
        visible &= (self.sample >= 0)[:, None, :]
        itself = torch.eye(place.shape[1], dtype=torch.bool, device=place.device)
        return visible | (itself & (self.sample < 0)[:, :, None])


@dataclass(frozen=True)
class Sample:
    """Segments of one sample, or what a request adds to its context in this step (`position` is where it goes on)."""

    segments: tuple[Segment, ...]
    position: int = 0

    @property
    def und_len(self) -> int:
        return sum(s.und_len for s in self.segments)

    @property
    def gen_len(self) -> int:
        return sum(s.gen_len for s in self.segments)


def pack(
    rows: Sequence[Sequence[Sample]], spec: PackSpec, *, und_len: int | None = None, gen_len: int | None = None
) -> PackedSequence:
    """Lays samples out in rows.

    Args:
        rows: the samples of each row.
        spec: the model's packing facts.
        und_len, gen_len: slots per row for each expert; by default what the fullest row needs. Fixed numbers keep
        shapes
            static from step to step.

    Raises:
        ValueError: a row does not fit the given lengths.
        SizeError: a picture does not fit its position table.
    """
    need_und = max((sum(s.und_len for s in row) for row in rows), default=0)
    need_gen = max((sum(s.gen_len for s in row) for row in rows), default=0)
    und_len = need_und if und_len is None else und_len
    gen_len = need_gen if gen_len is None else gen_len
    if need_und > und_len or need_gen > gen_len:
        raise ValueError(f"a row needs {need_und} und and {need_gen} gen slots; it has {und_len} and {gen_len}")
    length = und_len + gen_len
    count = len(rows)
    positions = torch.zeros(count, length, dtype=torch.int64)
    place = torch.full((count, length), -1, dtype=torch.int64)
    sample_of = torch.full((count, length), -1, dtype=torch.int64)
    segment_of = torch.full((count, length), -1, dtype=torch.int64)
    mode_of = torch.zeros(count, length, dtype=torch.int64)

    text_ids: list[int] = []
    text_slots: list[int] = []
    ce_slots: list[int] = []
    ce_labels: list[int] = []
    ce_weights: list[float] = []
    vit_patches: list[Tensor] = []
    vit_slots: list[Tensor] = []
    vit_grids: list[tuple[int, int]] = []
    latents: list[Tensor] = []
    latent_slots: list[Tensor] = []
    latent_grids: list[tuple[int, int]] = []
    timesteps: list[float] = []
    noised: list[bool] = []
    spans: list[list[SegmentSpan]] = []
    next_place = next_sample = next_segment = 0
    special = spec.special

    for row_number, row in enumerate(rows):
        und = gen = 0
        for sample in row:
            position = sample.position
            sample_start = next_place
            sample_spans: list[SegmentSpan] = []
            for segment in sample.segments:
                n_und, n_gen = segment.und_len, segment.gen_len
                total = n_und + n_gen
                if total == 0:
                    position += segment.advance
                    continue
                base = row_number * und_len + und
                und_slice = slice(und, und + n_und)
                gen_slice = slice(und_len + gen, und_len + gen + n_gen)
                if isinstance(segment, TextSegment):
                    positions[row_number, und_slice] = torch.arange(position, position + n_und)
                    place[row_number, und_slice] = torch.arange(next_place, next_place + n_und)
                    text_ids.extend(segment.ids)
                    text_slots.extend(range(base, base + n_und))
                    if segment.labels is not None:
                        ce_slots.extend(range(base, base + len(segment.labels)))
                        ce_labels.extend(segment.labels)
                        ce_weights.extend([len(segment.labels) ** -0.5] * len(segment.labels))
                else:
                    text_ids.extend((special.start_of_image, special.end_of_image))
                    text_slots.extend((base, base + n_und - 1))
                    positions[row_number, und_slice] = position
                    place[row_number, und] = next_place
                    place[row_number, und + n_und - 1] = next_place + total - 1
                    if isinstance(segment, VitSegment):
                        place[row_number, und + 1 : und + n_und - 1] = torch.arange(
                            next_place + 1, next_place + total - 1
                        )
                        vit_patches.append(segment.patches)
                        vit_slots.append(torch.arange(base + 1, base + n_und - 1))
                        vit_grids.append(segment.grid)
                    elif isinstance(segment, VaeSegment):
                        positions[row_number, gen_slice] = position
                        place[row_number, gen_slice] = torch.arange(next_place + 1, next_place + total - 1)
                        latents.append(segment.latent)
                        latent_slots.append(
                            torch.arange(row_number * gen_len + gen, row_number * gen_len + gen + n_gen)
                        )
                        latent_grids.append(segment.grid)
                        timesteps.append(segment.timestep)
                        noised.append(segment.noised)
                for where in (und_slice, gen_slice):
                    sample_of[row_number, where] = next_sample
                    segment_of[row_number, where] = next_segment
                    mode_of[row_number, where] = segment.mode
                sample_spans.append(
                    SegmentSpan(
                        segment.mode,
                        (base, base + n_und),
                        (row_number * gen_len + gen, row_number * gen_len + gen + n_gen),
                        next_place - sample_start,
                    )
                )
                und += n_und
                gen += n_gen
                next_place += total
                next_segment += 1
                position += segment.advance
            spans.append(sample_spans)
            next_sample += 1

    def indices(grids: list[tuple[int, int]], side: int) -> Tensor:
        parts = [table_index(*grid, side, spec.interpolate) for grid in grids]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)

    empty = torch.zeros(0, dtype=torch.int64)
    sizes = torch.tensor([r * c for r, c in latent_grids], dtype=torch.int64)

    def per_latent(values: Tensor) -> Tensor:
        return values.repeat_interleave(sizes)

    return PackedSequence(
        rows=count,
        und_len=und_len,
        gen_len=gen_len,
        text_ids=torch.tensor(text_ids, dtype=torch.int64),
        text_slots=torch.tensor(text_slots, dtype=torch.int64),
        vit_patches=torch.cat(vit_patches) if vit_patches else torch.zeros(0, spec.patch_dim),
        vit_slots=torch.cat(vit_slots) if vit_slots else empty,
        vit_index=indices(vit_grids, spec.vit_side),
        vit_grids=vit_grids,
        latents=torch.cat(latents) if latents else torch.zeros(0, spec.latent_dim),
        latent_slots=torch.cat(latent_slots) if latent_slots else empty,
        latent_index=indices(latent_grids, spec.latent_side),
        timesteps=per_latent(torch.tensor(timesteps, dtype=torch.float32)),
        noised=per_latent(torch.tensor(noised, dtype=torch.bool)),
        latent_image=per_latent(torch.arange(len(latent_grids))),
        latent_grids=latent_grids,
        ce_slots=torch.tensor(ce_slots, dtype=torch.int64),
        ce_labels=torch.tensor(ce_labels, dtype=torch.int64),
        ce_weights=torch.tensor(ce_weights, dtype=torch.float32),
        positions=positions,
        place=place,
        sample=sample_of,
        segment=segment_of,
        mode=mode_of,
        spans=spans,
    )
