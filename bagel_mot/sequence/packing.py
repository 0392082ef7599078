"""The packing of samples: every token gets its slot, its rotary position and its place in a position table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bagel_mot.errors import SizeError
from bagel_mot.sequence.layout import Layout, PackSpec, SegmentSpan, TrainingLayout
from bagel_mot.sequence.segments import END_OF_IMAGE, NOISED, START_OF_IMAGE, TEXT, VAE, VIT, Sample, TokenRun


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


def pack_cached(
    samples: Sequence[Sample], spec: PackSpec, least_und: int = 0, round_up: Callable[[int], int] | None = None
) -> Layout:
    """Lays samples out in one row for `CachedAttention`, whose cache knows who sees whom.

    Args:
        samples: the samples.
        spec: the model's packing facts.
        least_und: und slots that there are at the least; those behind the last token are padding.
        round_up: rounds a number of tokens up to the number of slots for them; the others are padding, too.

    Raises:
        SizeError: an image does not fit its position table.
    """
    und_len, gen_len = max(least_und, sum(s.und_len for s in samples)), sum(s.gen_len for s in samples)
    if round_up is not None:
        und_len, gen_len = round_up(und_len), round_up(gen_len)
    return _Packing([samples], spec, und_len, gen_len).layout()


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

        markers = {START_OF_IMAGE: self.spec.special.start_of_image, END_OF_IMAGE: self.spec.special.end_of_image}
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
