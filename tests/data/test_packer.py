"""Packs are full, in order, lose nothing, and can be resumed anywhere."""

from __future__ import annotations

import random

import pytest
import torch

from bagel_mot.data.documents import IndexedSample, UnencodedImage
from bagel_mot.data.packer import PackConfig, PackStream, lay_out, pack_gauges
from bagel_mot.sequence import PackSpec, Sample, TextSegment, VaeSegment, Values, VitSegment, pack
from bagel_mot.tokenizer import SpecialTokens

SPEC = PackSpec(SpecialTokens(1, 2, 3, 4), vit_side=8, latent_side=64, patch_dim=12, latent_dim=4)


class FakeBuilder:
    """Samples of random lengths, without documents."""

    def __call__(self, index: int, document: object, rng: random.Random) -> IndexedSample:
        und, gen = rng.randint(1, 60), rng.choice((0, 16, 32))
        segments: list[object] = [TextSegment(tuple(range(und)))]
        if gen:
            segments.append(VaeSegment(torch.zeros(gen, 4), (1, gen)))
        return IndexedSample(tuple(segments), index=index)  # type: ignore[arg-type]


def _stream(shape: PackConfig) -> PackStream:
    return PackStream(lambda index: (), FakeBuilder(), SPEC, shape, seed=1)  # type: ignore[arg-type]


def test_every_sample_appears_once_and_fits() -> None:
    shape = PackConfig(rows=4, und=128, gen=64, buffer=12)
    stream = _stream(shape)
    seen: list[int] = []
    fill = []
    for _ in range(50):
        pack = stream.next_rows()
        for row in pack:
            assert sum(s.und_len for s in row) <= shape.und
            assert sum(s.gen_len for s in row) <= shape.gen
            seen += [s.index for s in row]
        fill.append(sum(s.und_len for row in pack for s in row) / (shape.rows * shape.und))
    waiting = {sample.index for sample in stream.waiting}
    assert len(seen) == len(set(seen))
    assert set(seen) | waiting == set(range(stream.next_index))
    assert sum(fill) / len(fill) > 0.75


def test_samples_too_large_are_counted_not_fatal() -> None:
    stream = _stream(PackConfig(rows=2, und=40, gen=16, buffer=4))
    packs = [stream.next_rows() for _ in range(10)]
    assert stream.too_large > 0
    assert all(any(row for row in pack) for pack in packs)


def test_padding_is_the_share_of_empty_slots() -> None:
    shape = PackConfig(rows=3, und=100, gen=48, buffer=9)
    stream = _stream(shape)
    und = gen = 0
    for count in range(1, 6):
        pack = stream.next_rows()
        und += sum(s.und_len for row in pack for s in row)
        gen += sum(s.gen_len for row in pack for s in row)
        gauges = pack_gauges([stream.state_dict()])
        assert gauges["und_padding"] == pytest.approx(1 - und / (count * 300))
        assert gauges["gen_padding"] == pytest.approx(1 - gen / (count * 144))
    resumed = _stream(shape)
    resumed.load_state_dict(stream.state_dict())
    assert pack_gauges([resumed.state_dict()]) == gauges


def test_resume_anywhere() -> None:
    shape = PackConfig(rows=3, und=100, gen=48, buffer=9)
    reference = _stream(shape)
    expected = [[[s.index for s in row] for row in reference.next_rows()] for _ in range(12)]
    for stop in range(1, 11, 3):
        first = _stream(shape)
        for _ in range(stop):
            first.next_rows()
        second = _stream(shape)
        second.load_state_dict(first.state_dict())
        got = [[[s.index for s in row] for row in second.next_rows()] for _ in range(12 - stop)]
        assert got == expected[stop:]


def test_a_pack_is_laid_out_without_latents_and_each_image_stands_once() -> None:
    """The latents that the layout asks for are those of its segments, as if they had been known."""
    small, large = torch.zeros(16, 16, 3).byte(), torch.ones(32, 16, 3).byte()
    tokens = {id(small): torch.rand(1, 4), id(large): torch.rand(2, 4)}

    def image(levels: torch.Tensor, noised: bool) -> UnencodedImage:
        return UnencodedImage(None, (len(tokens[id(levels)]), 1), noised=noised, levels=levels)

    patches = torch.rand(2, 12)
    rows = [
        [IndexedSample((image(large, True), image(large, True), image(large, False)))],
        [IndexedSample((image(small, False), VitSegment(patches, (1, 2)), image(large, True)))],
    ]
    laid_out = lay_out(rows, SPEC, PackConfig(rows=2, und=10, gen=6))
    assert [images.shape for images in laid_out.images] == [(1, 32, 16, 3), (1, 16, 16, 3)]
    encoded = torch.cat([tokens[id(large)], tokens[id(small)]])
    assert torch.equal(laid_out.vit_patches, patches)
    known = [
        Sample(tuple(VaeSegment(tokens[id(s.levels)], s.grid, s.noised) if isinstance(s, UnencodedImage) else s
                     for s in row[0].segments))
        for row in rows
    ]  # fmt: skip
    expected = pack([[sample] for sample in known], SPEC, und_len=10, gen_len=6)
    assert torch.equal(laid_out.layout.latent_slots, expected.latent_slots)
    assert torch.equal(encoded[laid_out.latent_source], Values.of(known, SPEC).latents)
    empty = lay_out([[]], SPEC, PackConfig(und=1, gen=1))
    assert (empty.images, len(empty.latent_source)) == ([], 0)


def test_a_pack_knows_the_data_set_of_each_sample() -> None:
    names = (("a", "b"), ("a",))
    rows = [[IndexedSample((TextSegment((1, 2)),), dataset=name) for name in row] for row in names]
    found = lay_out(rows, SPEC, PackConfig(rows=2, und=8, gen=1))
    assert found.datasets == ("a", "b", "a")
    assert [int(found.layout.sample.flatten()[slot]) for slot in (0, 2, 9)] == [0, 1, 2]
