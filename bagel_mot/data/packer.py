"""Filling packs: samples of many lengths into rows of fixed size, resumable to the sample.

Rows have two capacities, und and gen slots. A sample goes into the first row with room for both; one that fits
nowhere waits in a buffer and is tried first in the next pack. A sample larger than a whole row is left out and
counted, never an error.

The state of the stream is a handful of integers: documents are made from their index, so the buffer is a list of
indices.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic.dataclasses import dataclass as section
from torch import Tensor

from bagel_mot.config import Count, Section, Whole
from bagel_mot.data.documents import Document, IndexedSample, SampleBuilder, UnencodedImage
from bagel_mot.errors import DataError
from bagel_mot.sequence import FramesSegment, PackSpec, TrainingLayout, Values, pack

_MISFITS = 200


@section(frozen=True, kw_only=True)
class PackConfig(Section):
    """The size of a pack: `rows` rows of `und` and `gen` slots each; `buffer` samples may wait for a row that fits."""

    rows: Count = 1
    und: Count
    gen: Count
    buffer: Whole = 64


@dataclass(frozen=True)
class TrainingPack:
    """A pack laid out without its latents, and the images to encode for them.

    Attributes:
        layout: the layout, on the CPU.
        vit_patches: (Np, patch_dim) patches of the ViT's images, uint8 levels.
        images: the distinct images, stacked by size: (n, H, W, 3) uint8 levels each.
        latent_source: (Nl,) int64: each latent token's row among the tokens of all `images`, in their order.
        datasets: the name of each sample's data set; `layout.sample` numbers the samples.
    """

    layout: TrainingLayout
    vit_patches: Tensor
    images: list[Tensor]
    latent_source: Tensor
    datasets: tuple[str, ...]


def lay_out(rows: Sequence[Sequence[IndexedSample]], spec: PackSpec, config: PackConfig) -> TrainingPack:
    """Lays out the samples of each row in a pack of fixed size. An image in several segments is encoded once."""
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
        pack(rows, spec, und_len=config.und, gen_len=config.gen),
        Values.of([sample for row in rows for sample in row], spec).vit_patches,
        [torch.stack([segment.levels for segment in same_size.values()]) for same_size in by_size.values()],
        torch.cat([torch.zeros(0, dtype=torch.int64), *sources]),
        tuple(sample.dataset for row in rows for sample in row),
    )


class PackStream:
    """Endless packs from a source: one of the logical streams of a run, number `stream` of `streams`, which takes every
    `streams`-th document.
    """

    def __init__(
        self,
        source: Callable[[int], Document],
        builder: SampleBuilder,
        spec: PackSpec,
        config: PackConfig,
        seed: int,
        stream: int = 0,
        streams: int = 1,
    ) -> None:
        self.source, self.builder, self.spec, self.config, self.seed = source, builder, spec, config, seed
        self.next_index, self.streams = stream, streams
        self.too_large = 0
        self.filled, self.slots = (0, 0), (0, 0)  # und and gen slots of all packs: taken, and in all
        self.waiting: list[IndexedSample] = []

    def sample(self, index: int) -> IndexedSample:
        """The sample of an index, always the same. What is left out of it is drawn apart from what it is about."""
        return self.builder(index, self.source(index), random.Random(f"sample {self.seed} {index}"))

    def state_dict(self) -> dict[str, Any]:
        """The stream's place, which later packs do not change."""
        return {
            "next_index": self.next_index,
            "too_large": self.too_large,
            "filled": self.filled,
            "slots": self.slots,
            "waiting": [sample.index for sample in self.waiting],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts the stream back to a place it told."""
        self.next_index, self.too_large = state["next_index"], state["too_large"]
        self.filled, self.slots = state["filled"], state["slots"]
        self.waiting = [self.sample(index) for index in state["waiting"]]

    def next_batch(self) -> TrainingPack:
        """The next pack, laid out."""
        return lay_out(self.next_rows(), self.spec, self.config)

    def next_rows(self) -> list[list[IndexedSample]]:
        """The samples of the next pack by row. It is full when the buffer is: nothing that waits fits any row.

        Raises:
            DataError: sample after sample fits no empty row.
        """
        shape = self.config
        rows: list[list[IndexedSample]] = [[] for _ in range(shape.rows)]
        und = [shape.und] * shape.rows
        gen = [shape.gen] * shape.rows

        def place(sample: IndexedSample) -> bool:
            for row in range(shape.rows):
                if sample.und_len <= und[row] and sample.gen_len <= gen[row]:
                    rows[row].append(sample)
                    und[row] -= sample.und_len
                    gen[row] -= sample.gen_len
                    return True
            return False

        self.waiting = [sample for sample in self.waiting if not place(sample)]
        misses = misfits = 0
        while misses <= shape.rows and len(self.waiting) <= shape.buffer:
            sample = self.sample(self.next_index)
            self.next_index += self.streams
            if sample.und_len > shape.und or sample.gen_len > shape.gen:
                self.too_large += 1
                misfits += 1
                if misfits == _MISFITS:
                    raise DataError(
                        f"{_MISFITS} samples in a row fit no empty row of {shape.und} und and {shape.gen} gen slots; "
                        f"the last one needs {sample.und_len} and {sample.gen_len}: enlarge pack.und or pack.gen"
                    )
                continue
            misfits = 0
            if not place(sample):
                self.waiting.append(sample)
                misses += 1
        total = (shape.rows * shape.und, shape.rows * shape.gen)
        self.filled = (self.filled[0] + total[0] - sum(und), self.filled[1] + total[1] - sum(gen))
        self.slots = (self.slots[0] + total[0], self.slots[1] + total[1])
        return rows


def pack_gauges(states: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Numbers on the packs of all streams so far, from their states.

    `too_large`: samples left out because they exceed an empty row; `und_padding`, `gen_padding`: share of the slots
    that stayed empty.
    """
    und, gen = (sum(state["filled"][expert] for state in states) for expert in (0, 1))
    und_slots, gen_slots = (sum(state["slots"][expert] for state in states) for expert in (0, 1))
    return {
        "too_large": float(sum(state["too_large"] for state in states)),
        "und_padding": 1 - und / und_slots if und_slots else 0.0,
        "gen_padding": 1 - gen / gen_slots if gen_slots else 0.0,
    }
