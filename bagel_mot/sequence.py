"""Segments and their packing into one sequence.

A sample is a list of segments: text, ViT images and VAE images. Packing lays the tokens of many samples out for one
forward pass. Three orders of the same tokens matter:

- **sequence order** is the order of the sample: it decides who sees whom and the order of keys in a cache;
- **slots** are where tokens are computed: within each row first all tokens of the *und* expert (text, ViT, image
  markers), then all tokens of the *gen* expert (VAE latents), so that each expert's matmuls run on one contiguous
  slice. Tokens are brought into slots once, here, and never moved inside a layer;
- **rows** are independent stretches of attention. The published layout is one long row; many short rows cost less
  attention where no block-sparse kernel exists.

The result has two parts. A **layout** says where every token stands; it never changes and serves as many forward passes
as the same segments are run. The **values** are what changes between them: patches, latents and timesteps.

A segment describes itself as runs of tokens (`TokenRun`), so packing knows no kind of segment. Nothing here knows of
networks: the result is plain tensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from bagel_mot.config import BagelConfig
from bagel_mot.errors import SizeError
from bagel_mot.images import patchify
from bagel_mot.tokenizer import SpecialTokens

CAUSAL, FULL, NOISED = 0, 1, 2  # attention inside a segment
TEXT, VIT, VAE = 0, 1, 2  # kinds of tokens

_START_OF_IMAGE, _END_OF_IMAGE = -1, -2  # in place of ids, which depend on the tokenizer

Grid = tuple[int, int]  # (rows, columns) of patches or latent tokens


@dataclass(frozen=True, eq=False)
class TokenRun:
    """Neighbouring tokens of one kind within a segment.

    Attributes:
        kind: TEXT, VIT or VAE. The tokens of a text count rotary positions up; those of an image share one.
        ids: the token ids of a text.
        labels: the targets of its tokens: `labels[i]` is to be predicted at `ids[first_label + i]`.
        first_label: the place of the first token with a target.
        grid: (rows, columns) of an image's tokens.
        values: an image's patches (rows·columns, patch_dim) or latent tokens (rows·columns, latent_dim); None for
            latents that are not known when they are laid out.
        timestep: the noise level of a VAE image, in [0, 1].
        position: the rotary position of the first token, relative to the segment's.
    """

    kind: int
    ids: tuple[int, ...] = ()
    labels: tuple[int, ...] = ()
    first_label: int = 0
    grid: Grid = (0, 0)
    values: Tensor | None = None
    timestep: float = 0.0
    position: int = 0

    @property
    def length(self) -> int:
        return len(self.ids) if self.kind == TEXT else self.grid[0] * self.grid[1]


_START, _END = TokenRun(TEXT, (_START_OF_IMAGE,)), TokenRun(TEXT, (_END_OF_IMAGE,))


class Segment:
    """A stretch of a sample with one rule of attention inside it: CAUSAL, FULL or NOISED.

    Nobody outside a noised segment sees it. `advance` is how far the segment moves the rotary position.
    """

    mode: int = FULL
    advance: int = 1

    @cached_property
    def runs(self) -> tuple[TokenRun, ...]:
        """The segment's tokens in sequence order."""
        raise NotImplementedError

    @cached_property
    def und_len(self) -> int:
        """The number of tokens of the und expert."""
        return sum(run.length for run in self.runs if run.kind != VAE)

    @cached_property
    def gen_len(self) -> int:
        """The number of tokens of the gen expert."""
        return sum(run.length for run in self.runs if run.kind == VAE)


@dataclass(frozen=True, eq=False)
class TextSegment(Segment):
    """Text tokens as they are fed, the start and end tokens included.

    Attributes:
        ids: the token ids.
        labels: the targets, from the token `first_label` on. A text to be learnt has one for each token but the end
            token, which has one where it is to be learnt that an image follows.
        first_label: the place of the first token with a target.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...] = ()
    first_label: int = 0

    mode = CAUSAL

    @property
    def advance(self) -> int:  # type: ignore[override]
        return len(self.ids)

    @cached_property
    def runs(self) -> tuple[TokenRun, ...]:
        return (TokenRun(TEXT, self.ids, self.labels, self.first_label),)


@dataclass(frozen=True, eq=False)
class VitSegment(Segment):
    """An image for understanding.

    Attributes:
        patches: (rows·columns, patch²·3) pixels in [-1, 1], as `bagel_mot.images.patchify` makes them.
        grid: (rows, columns) of patches.
    """

    patches: Tensor
    grid: Grid

    @cached_property
    def runs(self) -> tuple[TokenRun, ...]:
        return _START, TokenRun(VIT, grid=self.grid, values=self.patches), _END


@dataclass(frozen=True, eq=False)
class VaeSegment(Segment):
    """An image as latent tokens: a clean condition (`timestep` 0), or noised and being predicted.

    Attributes:
        latent: (rows·columns, latent_dim) tokens, as `bagel_mot.images.patchify` makes them; None where they
            are not known when the segment is laid out. For a training target these are the clean ones: the objective
            noises them.
        grid: (rows, columns) of tokens.
        noised: whether it is being predicted. A noised image does not move the rotary position.
        timestep: the noise level in [0, 1], 1 being pure noise.
    """

    latent: Tensor | None
    grid: Grid
    noised: bool = False
    timestep: float = 0.0

    @property
    def mode(self) -> int:  # type: ignore[override]
        return NOISED if self.noised else FULL

    @property
    def advance(self) -> int:  # type: ignore[override]
        return 0 if self.noised else 1

    @cached_property
    def runs(self) -> tuple[TokenRun, ...]:
        return _START, TokenRun(VAE, grid=self.grid, values=self.latent, timestep=self.timestep), _END


@dataclass(frozen=True, eq=False)
class FramesSegment(Segment):
    """Frames of a clip as latent tokens in one segment: they see one another, and noised ones share a timestep.

    Attributes:
        frames: the frames, all of them noised or all of them clean.
        offsets: the rotary position of each frame, relative to the first one's, which is 0.
        step: the rotary position of what follows, if these frames are clean; likewise relative.
    """

    frames: tuple[VaeSegment, ...]
    offsets: tuple[int, ...]
    step: int

    @property
    def mode(self) -> int:  # type: ignore[override]
        return self.frames[0].mode

    @property
    def advance(self) -> int:  # type: ignore[override]
        return 0 if self.frames[0].noised else self.step

    @cached_property
    def runs(self) -> tuple[TokenRun, ...]:
        frames = zip(self.frames, self.offsets, strict=True)
        return tuple(dataclasses.replace(run, position=offset) for frame, offset in frames for run in frame.runs)


@dataclass(frozen=True, eq=False)
class DroppedImage(Segment):
    """The rest of an image that condition dropout removed: no tokens, but the position moves on as if it were there.

    Attributes:
        advance: the positions that it moves by.
        length: the number of tokens that were removed.
    """

    advance: int = 1
    length: int = 0
    runs = ()


def text_segment(
    ids: Sequence[int], special: SpecialTokens, *, learn: bool = False, starts_image: bool = False
) -> TextSegment:
    """The segment of a text: start, ids, end.

    Args:
        ids: the text's own token ids.
        special: the special tokens.
        learn: whether ids and end are to be predicted, from start and ids.
        starts_image: whether the start of an image is to be predicted at the end token.
    """
    labels = ((*ids, special.eos) if learn else ()) + ((special.start_of_image,) if starts_image else ())
    fed = (special.bos, *ids, special.eos)
    return TextSegment(fed, labels, len(fed) - 1 if starts_image and not learn else 0)


def vit_segment(pixels: Tensor, patch: int) -> VitSegment:
    """The ViT segment of an image (3, H, W) in [-1, 1], whose sides are multiples of `patch` pixels."""
    return VitSegment(patchify(pixels, patch), (pixels.shape[1] // patch, pixels.shape[2] // patch))


def vae_segment(latent: Tensor, patch: int, *, noised: bool = False) -> VaeSegment:
    """The VAE segment of a latent (z, h, w), whose sides are multiples of `patch` cells."""
    return VaeSegment(patchify(latent, patch), (latent.shape[1] // patch, latent.shape[2] // patch), noised)


def segment_length(segment: Segment) -> int:
    """The number of tokens in a segment, of both experts."""
    return segment.und_len + segment.gen_len


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


@lru_cache(maxsize=64)
def table_index(rows: int, columns: int, side: int, interpolate: bool = False) -> Tensor:
    """The places of the patches of a (rows, columns) grid in a position table of side·side entries, in reading order.

    Plain mode is `row * side + column`. With `interpolate` the grid is stretched over the table: fractional
    coordinates are sorted into `side` buckets (in float32, as recorded outputs need).

    Returns: (rows·columns,) int64, not to be written to.

    Raises:
        SizeError: the grid is larger than the table.
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


def pack_cached(samples: Sequence[Sample], spec: PackSpec) -> Layout:
    """Lays samples out in one row for `CachedAttention`, whose cache knows who sees whom.

    Raises:
        SizeError: an image does not fit its position table.
    """
    return _Packing([samples], spec, sum(s.und_len for s in samples), sum(s.gen_len for s in samples)).layout()


def pack(
    rows: Sequence[Sequence[Sample]], spec: PackSpec, *, und_len: int | None = None, gen_len: int | None = None
) -> TrainingLayout:
    """Lays samples out in rows for training.

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
    return _Packing(rows, spec, und_len, gen_len).training_layout()


class _Line(NamedTuple):
    """The place of a run's first token; or, with a tensor (tokens,) in each field, the place of every token."""

    length: Any  # tokens of the run
    kind: Any
    slot: Any  # among the slots of its expert
    before: Any  # slots of the other expert that lie before it in a tensor of (rows, und_len + gen_len)
    position: Any
    place: Any
    sample: Any
    segment: Any
    mode: Any


class _Packing:
    """All tokens of a pack in sequence order, with the slot of each."""

    def __init__(self, rows: Sequence[Sequence[Sample]], spec: PackSpec, und_len: int, gen_len: int) -> None:
        self.rows, self.und_len, self.gen_len, self.spec = len(rows), und_len, gen_len, spec
        self.runs: list[TokenRun] = []
        self.lines: list[_Line] = []  # one per run
        self.spans: list[tuple[SegmentSpan, ...]] = []
        self._place = self._segment = 0
        for row, samples in enumerate(rows):
            free = [row * und_len, row * gen_len]  # the next slots of each expert
            before = row * gen_len, (row + 1) * und_len
            for sample in samples:
                self.spans.append(tuple(self._add(sample, free, before)))
        table = torch.tensor(self.lines, dtype=torch.int64).view(-1, len(_Line._fields)).T.contiguous()
        lengths = table[0]
        inside = torch.arange(self._place) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        first = _Line(*table.repeat_interleave(lengths, 1))
        self.tokens = first._replace(
            slot=first.slot + inside,
            position=first.position + inside * (first.kind == TEXT),
            place=first.place + inside,
        )

    def _add(self, sample: Sample, free: list[int], before: tuple[int, int]) -> Iterator[SegmentSpan]:
        position, first = sample.position, self._place
        for segment in sample.segments:
            (und, gen), start = free, self._place
            for run in segment.runs:
                expert = int(run.kind == VAE)
                self.runs.append(run)
                at = run.length, run.kind, free[expert], before[expert], position + run.position, self._place
                self.lines.append(_Line(*at, len(self.spans), self._segment, segment.mode))
                free[expert] += run.length
                self._place += run.length
            if self._place > start:
                self._segment += 1
                yield SegmentSpan(segment.mode, (und, free[0]), (gen, free[1]), start - first)
            position += segment.advance

    def _per_slot(self, values: Tensor, padding: int | Tensor) -> Tensor:
        """Values of all tokens by slot, (rows, und_len + gen_len), and padding between them."""
        found = torch.empty(self.rows, self.und_len + self.gen_len, dtype=torch.int64).copy_(torch.as_tensor(padding))
        found.view(-1)[self.tokens.slot + self.tokens.before] = values
        return found

    def _fields(self) -> dict[str, Any]:
        grids = {kind: tuple(run.grid for run in self.runs if run.kind == kind) for kind in (VIT, VAE)}
        none = torch.zeros(0, dtype=torch.int64)

        def index(kind: int, side: int) -> Tensor:
            parts = [table_index(*grid, side, self.spec.interpolate) for grid in grids[kind]]
            return torch.cat(parts) if parts else none

        def slots_of(kind: int) -> Tensor:
            return slots[self.tokens.kind == kind] if grids[kind] else none

        markers = {_START_OF_IMAGE: self.spec.special.start_of_image, _END_OF_IMAGE: self.spec.special.end_of_image}
        ids = [markers.get(i, i) for run in self.runs for i in run.ids]
        slots: Tensor = self.tokens.slot
        return {
            "rows": self.rows,
            "und_len": self.und_len,
            "gen_len": self.gen_len,
            "text_ids": torch.tensor(ids, dtype=torch.int64),
            "text_slots": slots[self.tokens.kind == TEXT] if grids[VIT] or grids[VAE] else slots,
            "vit_slots": slots_of(VIT),
            "vit_index": index(VIT, self.spec.vit_side),
            "vit_grids": grids[VIT],
            "latent_slots": slots_of(VAE),
            "latent_index": index(VAE, self.spec.latent_side),
            "latent_image": torch.cat([none, *(torch.full((r * c,), i) for i, (r, c) in enumerate(grids[VAE]))]),
            "latent_grids": grids[VAE],
            "positions": self._per_slot(self.tokens.position, 0),
            "spans": tuple(self.spans),
        }

    def layout(self) -> Layout:
        return Layout(**self._fields())

    def training_layout(self) -> TrainingLayout:
        lines = zip(self.lines, self.runs, strict=True)
        targets = [(at.slot + run.first_label, run.labels) for at, run in lines if run.labels]
        noised = [at.mode == NOISED for at in self.lines if at.kind == VAE]
        segments = [at.segment for at in self.lines if at.kind == VAE]  # the frames of a clip share theirs
        draws = {segment: number for number, segment in enumerate(dict.fromkeys(segments))}
        counts = torch.tensor([len(labels) for _, labels in targets], dtype=torch.int64)
        slots = list(chain.from_iterable(range(slot, slot + len(labels)) for slot, labels in targets))
        return TrainingLayout(
            **self._fields(),
            ce_slots=torch.tensor(slots, dtype=torch.int64),
            ce_labels=torch.tensor(list(chain.from_iterable(labels for _, labels in targets)), dtype=torch.int64),
            ce_weights=(counts**-0.5).repeat_interleave(counts),
            noised=torch.tensor(noised, dtype=torch.bool),
            timesteps=len(draws),
            timestep_of=torch.tensor([draws[segment] for segment in segments], dtype=torch.int64),
            place=self._per_slot(self.tokens.place, -1),
            sample=self._per_slot(self.tokens.sample, -1 - torch.arange(self.und_len + self.gen_len)),
            segment=self._per_slot(self.tokens.segment, -1),
            mode=self._per_slot(self.tokens.mode, 0),
        )
