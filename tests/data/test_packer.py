"""Packs are full, in order, lose nothing, and can be resumed anywhere."""

from __future__ import annotations

import random

import pytest
import torch

from bagel_mot.data.documents import RawSample
from bagel_mot.data.packer import PackShape, PackStream, pack_gauges
from bagel_mot.sequence import TextSegment, VaeSegment


class FakeBuilder:
    """Samples of random lengths, without documents."""

    def __call__(self, index: int, document: object, rng: random.Random) -> RawSample:
        und, gen = rng.randint(1, 60), rng.choice((0, 16, 32))
        segments: list[object] = [TextSegment(tuple(range(und)))]
        if gen:
            segments.append(VaeSegment(torch.zeros(gen, 4), (1, gen)))
        return RawSample(index, tuple(segments))  # type: ignore[arg-type]


def _stream(shape: PackShape) -> PackStream:
    return PackStream(lambda index: (), FakeBuilder(), shape, seed=1)  # type: ignore[arg-type]


def test_every_sample_appears_once_and_fits() -> None:
    shape = PackShape(rows=4, und=128, gen=64, buffer=12)
    stream = _stream(shape)
    seen: list[int] = []
    fill = []
    for _ in range(50):
        pack = stream.next_batch()
        for row in pack.rows:
            assert sum(s.und_len for s in row) <= shape.und
            assert sum(s.gen_len for s in row) <= shape.gen
            seen += [s.index for s in row]
        fill.append(sum(s.und_len for row in pack.rows for s in row) / (shape.rows * shape.und))
    waiting = {sample.index for sample in stream.waiting}
    assert len(seen) == len(set(seen))
    assert set(seen) | waiting == set(range(stream.next_index))
    assert sum(fill) / len(fill) > 0.75


def test_samples_too_large_are_counted_not_fatal() -> None:
    stream = _stream(PackShape(rows=2, und=40, gen=16, buffer=4))
    packs = [stream.next_batch() for _ in range(10)]
    assert stream.too_large > 0
    assert all(any(row for row in pack.rows) for pack in packs)


def test_padding_is_the_share_of_empty_slots() -> None:
    shape = PackShape(rows=3, und=100, gen=48, buffer=9)
    stream = _stream(shape)
    und = gen = 0
    for count in range(1, 6):
        pack = stream.next_batch()
        und += sum(s.und_len for row in pack.rows for s in row)
        gen += sum(s.gen_len for row in pack.rows for s in row)
        gauges = pack_gauges(stream.state_dict())
        assert gauges["und_padding"] == pytest.approx(1 - und / (count * 300))
        assert gauges["gen_padding"] == pytest.approx(1 - gen / (count * 144))
    resumed = _stream(shape)
    resumed.load_state_dict(stream.state_dict())
    assert pack_gauges(resumed.state_dict()) == gauges


def test_a_state_without_counted_slots_can_be_resumed() -> None:
    stream = _stream(PackShape(rows=3, und=100, gen=48, buffer=9))
    stream.load_state_dict({"next_index": 5, "too_large": 2, "waiting": [3]})
    assert pack_gauges(stream.state_dict()) == {"too_large": 2.0, "und_padding": 0.0, "gen_padding": 0.0}
    assert stream.next_batch().rows[0][0].index == 3


def test_resume_anywhere() -> None:
    shape = PackShape(rows=3, und=100, gen=48, buffer=9)
    reference = _stream(shape)
    expected = [[[s.index for s in row] for row in reference.next_batch().rows] for _ in range(12)]
    for stop in range(1, 11, 3):
        first = _stream(shape)
        for _ in range(stop):
            first.next_batch()
        second = _stream(shape)
        second.load_state_dict(first.state_dict())
        got = [[[s.index for s in row] for row in second.next_batch().rows] for _ in range(12 - stop)]
        assert got == expected[stop:]
