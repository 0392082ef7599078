"""Logical streams: endless packs, whose order does not depend on how many processes read or train.

A run has L logical streams of packs, L being the recipe's `packs_per_step`. What a stream gives, and the state that it
keeps, depend on the data, the seed, its own number and L alone; so a run that goes on with other ranks or workers takes
the same packs in the same steps. The state is a handful of JSON: the place in each group, the keys of the samples that
wait for a pack, the draws so far, and counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bagel_mot.data.documents import IndexedSample
from bagel_mot.data.feed import GroupSample, SampleFeed
from bagel_mot.data.layout import TrainingPack, lay_out
from bagel_mot.data.packer import AnyPackConfig, PublishedPacker
from bagel_mot.sequence import PackSpec


class PackStream:
    """The packs of one logical stream."""

    def __init__(self, feed: SampleFeed, spec: PackSpec, config: AnyPackConfig) -> None:
        self.feed, self.spec, self.config = feed, spec, config
        self.packer = config.packer()
        self.filled, self.slots = (0, 0), (0, 0)  # und and gen slots of all packs: taken, and in all
        self.listed = 0  # items that were left out, in all

    def next_rows(self) -> list[list[IndexedSample]]:
        """The samples of the next pack, by row.

        Raises:
            DataError: the data cannot be read, or sample after sample cannot be used.
        """
        return [[item.sample for item in row] for row in self.packer.next_rows(self.feed)]

    def next_batch(self) -> TrainingPack:
        """The next pack, laid out; it tells what was left out since the one before."""
        rows = self.next_rows()
        und, gen = self.config.slots(rows)
        taken = [(sample.und_len, sample.gen_len) for row in rows for sample in row]
        self.filled = (self.filled[0] + sum(t[0] for t in taken), self.filled[1] + sum(t[1] for t in taken))
        self.slots = (self.slots[0] + len(rows) * und, self.slots[1] + len(rows) * gen)
        skipped = self.feed.take_skipped()
        self.listed += len(skipped)
        return lay_out(rows, self.spec, und, gen, skipped)

    def state_dict(self) -> dict[str, Any]:
        """The stream's place, which later packs do not change."""
        deferred = self.packer.deferred if isinstance(self.packer, PublishedPacker) else []
        return {
            **self.feed.state_dict(),
            "waiting": self._keys(self.packer.waiting),
            "deferred": self._keys(deferred),
            "packer": self.packer.state_dict(),
            "filled": list(self.filled),
            "slots": list(self.slots),
            "listed": self.listed,
        }

    def _keys(self, items: Sequence[GroupSample]) -> list[list[Any]]:
        return [[self.feed.groups[item.group].name, item.sample.index] for item in items]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts the stream back to a place it told.

        Raises:
            DataError: the data are others than they were.
        """
        self.feed.load_state_dict(state)
        resuming = {group.name for group in self.feed.groups if group.resumes}
        self.packer.load_state_dict(state["packer"])
        self.packer.waiting = [self.feed.again(*key) for key in state["waiting"] if key[0] in resuming]
        if isinstance(self.packer, PublishedPacker):
            self.packer.deferred = [self.feed.again(*key) for key in state["deferred"] if key[0] in resuming]
        self.filled, self.slots = tuple(state["filled"]), tuple(state["slots"])
        self.listed = state["listed"]


class StreamRotation:
    """Several streams of packs that take turns in one logical stream, as the workers of a published rank do."""

    def __init__(self, parts: Sequence[PackStream]) -> None:
        self.parts, self.turn = tuple(parts), 0

    def next_batch(self) -> TrainingPack:
        """The next pack of the stream whose turn it is."""
        part = self.parts[self.turn]
        self.turn = (self.turn + 1) % len(self.parts)
        return part.next_batch()

    def state_dict(self) -> dict[str, Any]:
        """The turn, the place of each stream, and the numbers of all together."""
        states = [part.state_dict() for part in self.parts]
        reasons = {reason for state in states for reason in state["skipped"]}
        return {
            "turn": self.turn,
            "parts": states,
            "skipped": {reason: sum(state["skipped"].get(reason, 0) for state in states) for reason in sorted(reasons)},
            "listed": sum(state["listed"] for state in states),
            **{name: [sum(state[name][n] for state in states) for n in (0, 1)] for name in ("filled", "slots")},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts the streams back to a place they told.

        Raises:
            DataError: the data are others than they were.
        """
        self.turn = state["turn"]
        for part, one in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(one)


def pack_gauges(states: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Numbers on the packs of some streams so far, from their states.

    `skipped`: items of the data that were left out, and `skipped/REASON` those of each reason; `und_padding`,
    `gen_padding`: the share of the slots that stayed empty.
    """
    und, gen = (sum(state["filled"][expert] for state in states) for expert in (0, 1))
    und_slots, gen_slots = (sum(state["slots"][expert] for state in states) for expert in (0, 1))
    reasons = sorted({reason for state in states for reason in state["skipped"]})
    skipped = {reason: float(sum(state["skipped"].get(reason, 0) for state in states)) for reason in reasons}
    return {
        "skipped": sum(skipped.values()),
        **{f"skipped/{reason.replace(' ', '_')}": count for reason, count in skipped.items()},
        "und_padding": 1 - und / und_slots if und_slots else 0.0,
        "gen_padding": 1 - gen / gen_slots if gen_slots else 0.0,
    }
