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

from bagel_mot.config import BagelConfig
from bagel_mot.errors import SizeError

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
    """An image for understanding.

    Attributes:
        patches: (rows·columns, patch²·3) pixels in [-1, 1], as `bagel_mot.images.patchify` makes them.
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
    """An image as latent tokens: a clean condition (`timestep` 0), or noised and being predicted.

    Attributes:
        latent: (rows·columns, latent_dim) tokens, as `bagel_mot.images.latent_to_tokens` makes them. For a training
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
    """What is left of an image that condition dropout removed: no tokens, but the position moves on by one."""

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
    """Ids of the tokens that delimit texts and images."""

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
            shapes static from step to step.

    Raises:
        ValueError: a row does not fit the given lengths.
        SizeError: an image does not fit its position table.
    """
    need_und = max((sum(s.und_len for s in row) for row in rows), default=0)
    need_gen = max((sum(s.gen_len for s in row) for row in rows), default=0)
    und_len = need_und if und_len is None else und_len
    gen_len = need_gen if gen_len is None else gen_len
    if need_und > und_len or need_gen > gen_len:
        raise ValueError(f"a row needs {need_und} und and {need_gen} gen slots; it has {und_len} and {gen_len}")
    layout = _Layout(len(rows), und_len, gen_len, spec)
    for row, samples in enumerate(rows):
        layout.add_row(row, samples)
    return layout.packed()


class _Layout:
    """A `PackedSequence` in the making: rows are added in order, each sample's segments one behind the other."""

    def __init__(self, rows: int, und_len: int, gen_len: int, spec: PackSpec) -> None:
        self.rows, self.und_len, self.gen_len, self.spec = rows, und_len, gen_len, spec
        shape = (rows, und_len + gen_len)
        self.positions, self.mode = (torch.zeros(shape, dtype=torch.int64) for _ in range(2))
        self.place, self.sample, self.segment = (torch.full(shape, -1, dtype=torch.int64) for _ in range(3))
        self.text_ids: list[int] = []
        self.text_slots: list[int] = []
        self.ce_slots: list[int] = []
        self.ce_labels: list[int] = []
        self.ce_weights: list[float] = []
        self.vit: list[VitSegment] = []
        self.vit_slots: list[Tensor] = []
        self.vae: list[VaeSegment] = []
        self.latent_slots: list[Tensor] = []
        self.spans: list[list[SegmentSpan]] = []
        self._next_place = self._next_segment = 0

    def add_row(self, row: int, samples: Sequence[Sample]) -> None:
        und, gen = 0, self.und_len  # the row's next free slot for each expert
        for sample in samples:
            position, start, number = sample.position, self._next_place, len(self.spans)
            spans: list[SegmentSpan] = []
            for segment in sample.segments:
                und_end, gen_end = und + segment.und_len, gen + segment.gen_len
                if (und_end, gen_end) != (und, gen):  # of what was dropped, only the position goes on
                    ours = slice(und, und_end), slice(gen, gen_end)
                    spans.append(self._span(segment.mode, row, *ours, self._next_place - start))
                    self._fill(segment, row, *ours, position, number)
                position += segment.advance
                und, gen = und_end, gen_end
            self.spans.append(spans)

    def _span(self, mode: int, row: int, und: slice, gen: slice, start: int) -> SegmentSpan:
        before_und, before_gen = row * self.und_len, row * self.gen_len - self.und_len
        return SegmentSpan(
            mode,
            (before_und + und.start, before_und + und.stop),
            (before_gen + gen.start, before_gen + gen.stop),
            start,
        )

    def _fill(self, segment: Segment, row: int, und: slice, gen: slice, position: int, sample: int) -> None:
        """Fills the slots `und` and `gen` of a row with a segment that begins at a position."""
        first = self._next_place
        after = first + (und.stop - und.start) + (gen.stop - gen.start)
        for slots in (und, gen):
            self.sample[row, slots] = sample
            self.segment[row, slots] = self._next_segment
            self.mode[row, slots] = segment.mode
        if isinstance(segment, TextSegment):
            self.positions[row, und] = torch.arange(position, position + len(segment.ids))
            self.place[row, und] = torch.arange(first, after)
            self._add_text(segment, row * self.und_len + und.start)
        else:  # a image between its two markers, all at one position
            self.positions[row, und] = position
            self.positions[row, gen] = position
            self.place[row, und.start] = first
            self.place[row, und.stop - 1] = after - 1
            inside = torch.arange(first + 1, after - 1)
            opening, closing = row * self.und_len + und.start, row * self.und_len + und.stop - 1
            self.text_ids += (self.spec.special.start_of_image, self.spec.special.end_of_image)
            self.text_slots += (opening, closing)
            if isinstance(segment, VitSegment):
                self.place[row, und.start + 1 : und.stop - 1] = inside
                self.vit.append(segment)
                self.vit_slots.append(torch.arange(opening + 1, closing))
            elif isinstance(segment, VaeSegment):
                self.place[row, gen] = inside
                self.vae.append(segment)
                before = row * self.gen_len - self.und_len
                self.latent_slots.append(torch.arange(before + gen.start, before + gen.stop))
        self._next_place = after
        self._next_segment += 1

    def _add_text(self, segment: TextSegment, first_slot: int) -> None:
        self.text_ids += segment.ids
        self.text_slots += range(first_slot, first_slot + len(segment.ids))
        if segment.labels is not None:
            count = len(segment.labels)
            self.ce_slots += range(first_slot, first_slot + count)
            self.ce_labels += segment.labels
            self.ce_weights += [count**-0.5] * count

    def packed(self) -> PackedSequence:
        spec, none = self.spec, torch.zeros(0, dtype=torch.int64)
        vit_grids, latent_grids = [s.grid for s in self.vit], [s.grid for s in self.vae]
        sizes = torch.tensor([rows * columns for rows, columns in latent_grids], dtype=torch.int64)

        def index(grids: list[tuple[int, int]], side: int) -> Tensor:
            return torch.cat([none, *(table_index(*grid, side, spec.interpolate) for grid in grids)])

        def per_latent(values: Tensor) -> Tensor:
            return values.repeat_interleave(sizes)

        return PackedSequence(
            rows=self.rows,
            und_len=self.und_len,
            gen_len=self.gen_len,
            text_ids=torch.tensor(self.text_ids, dtype=torch.int64),
            text_slots=torch.tensor(self.text_slots, dtype=torch.int64),
            vit_patches=torch.cat([s.patches for s in self.vit]) if self.vit else torch.zeros(0, spec.patch_dim),
            vit_slots=torch.cat([none, *self.vit_slots]),
            vit_index=index(vit_grids, spec.vit_side),
            vit_grids=vit_grids,
            latents=torch.cat([s.latent for s in self.vae]) if self.vae else torch.zeros(0, spec.latent_dim),
            latent_slots=torch.cat([none, *self.latent_slots]),
            latent_index=index(latent_grids, spec.latent_side),
            timesteps=per_latent(torch.tensor([s.timestep for s in self.vae], dtype=torch.float32)),
            noised=per_latent(torch.tensor([s.noised for s in self.vae], dtype=torch.bool)),
            latent_image=per_latent(torch.arange(len(self.vae))),
            latent_grids=latent_grids,
            ce_slots=torch.tensor(self.ce_slots, dtype=torch.int64),
            ce_labels=torch.tensor(self.ce_labels, dtype=torch.int64),
            ce_weights=torch.tensor(self.ce_weights, dtype=torch.float32),
            positions=self.positions,
            place=self.place,
            sample=self.sample,
            segment=self.segment,
            mode=self.mode,
            spans=self.spans,
        )
