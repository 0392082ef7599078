"""Filling packs: samples of many lengths into rows of fixed size, resumable to the sample.

Rows have two capacities, und and gen slots. A sample goes into the first row with room for both; one that fits
nowhere waits in a buffer and is tried first in the next pack. A sample larger than a whole row is left out and
counted, never an error.

The state of the stream is a handful of integers: documents are made from their index, so the buffer is a list of
indices.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from bagel_mot.data.documents import Builder, RawSample, Source
from bagel_mot.errors import DataError

_MISFITS = 200


@dataclass(frozen=True)
class PackShape:
    """Rows of one pack and the slots of each."""

    rows: int
    und: int
    gen: int
    buffer: int = 64


@dataclass
class RawPack:
    """Samples by row."""

    rows: list[list[RawSample]]


class PackStream:
    """Endless packs from a source."""

    def __init__(self, source: Source, builder: Builder, shape: PackShape, seed: int) -> None:
        self.source, self.builder, self.shape, self.seed = source, builder, shape, seed
        self.next_index = 0
        self.too_large = 0
        self.filled, self.slots = (0, 0), (0, 0)  # und and gen slots of all packs: taken, and in all
        self.waiting: list[RawSample] = []

    def sample(self, index: int) -> RawSample:
        """The sample of an index: always the same. What is left out of it is drawn apart from what it is about."""
        return self.builder(index, self.source(index), random.Random(f"sample {self.seed} {index}"))

    def state_dict(self) -> dict[str, Any]:
        return {
            "next_index": self.next_index,
            "too_large": self.too_large,
            "filled": self.filled,
            "slots": self.slots,
            "waiting": [sample.index for sample in self.waiting],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.next_index, self.too_large = state["next_index"], state["too_large"]
        # Checkpoints of earlier versions do not count slots.
        self.filled, self.slots = (tuple(state.get(name, (0, 0))) for name in ("filled", "slots"))
        self.waiting = [self.sample(index) for index in state["waiting"]]

    def next_batch(self) -> RawPack:
        """The next pack. It is full when the buffer is: nothing that waits fits any row."""
        shape = self.shape
        rows: list[list[RawSample]] = [[] for _ in range(shape.rows)]
        und = [shape.und] * shape.rows
        gen = [shape.gen] * shape.rows

        def place(sample: RawSample) -> bool:
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
            self.next_index += 1
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
        self.filled = (
            self.filled[0] + shape.rows * shape.und - sum(und),
            self.filled[1] + shape.rows * shape.gen - sum(gen),
        )
        self.slots = (self.slots[0] + shape.rows * shape.und, self.slots[1] + shape.rows * shape.gen)
        return RawPack(rows)


def pack_gauges(state: dict[str, Any]) -> dict[str, float]:
    """What a stream's state tells of its packs so far.

    `too_large`: samples left out because they exceed an empty row; `und_padding`, `gen_padding`: share of the slots
    that stayed empty.
    """
    filled, slots = (state.get(name, (0, 0)) for name in ("filled", "slots"))
    return {
        "too_large": float(state["too_large"]),
        "und_padding": 1 - filled[0] / slots[0] if slots[0] else 0.0,
        "gen_padding": 1 - filled[1] / slots[1] if slots[1] else 0.0,
    }
