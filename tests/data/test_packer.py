"""Packs are full, in order, lose nothing, and what is too large for them is reported."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from bagel_mot.config import parse
from bagel_mot.data.documents import IndexedSample, UnencodedImage
from bagel_mot.data.feed import GroupSample
from bagel_mot.data.layout import lay_out
from bagel_mot.data.packer import AnyPackConfig, PackConfig, Packer, PublishedPackConfig, read_pack_config
from bagel_mot.errors import DataError
from bagel_mot.sequence import PackSpec, Sample, TextSegment, VaeSegment, Values, VitSegment, pack
from bagel_mot.tokenizer import SpecialTokens

SPEC = PackSpec(SpecialTokens(1, 2, 3, 4), vit_side=8, latent_side=64, patch_dim=12, latent_dim=4)


def sample_of(und: int, gen: int = 0, index: Any = 0) -> IndexedSample:
    segments: list[Any] = [TextSegment(tuple(range(und)))] if und else []
    if gen:
        segments.append(VaeSegment(torch.zeros(gen, 4), (1, gen)))
        segments[0] = TextSegment(tuple(range(und - 2)))  # the image's markers
    return IndexedSample(tuple(segments), index=index, length=und + gen)


class Listed:
    """A feed of samples by group; the groups are drawn in turn by a generator."""

    def __init__(self, make: Sequence[Callable[[int], IndexedSample]], mandatory: Sequence[int] = ()) -> None:
        self.make, self.mandatory = make, mandatory
        self.taken = [0] * len(make)
        self.rng = random.Random(0)
        self.rejected: list[tuple[int, Any, str]] = []

    def draw(self) -> int:
        return self.rng.randrange(len(self.make))

    def take(self, group: int) -> GroupSample:
        self.taken[group] += 1
        return GroupSample(group, self.make[group](self.taken[group] - 1))

    def reject(self, item: GroupSample, reason: str, sentence: str) -> None:
        self.rejected.append((item.group, item.sample.index, sentence))


def lengths_of(seed: int, longest: int = 60) -> Callable[[int], IndexedSample]:
    def make(index: int) -> IndexedSample:
        rng = random.Random(f"{seed} {index}")
        return sample_of(rng.randint(3, longest), rng.choice((0, 16, 32)), index)

    return make


def waiting_of(packer: Packer) -> list[GroupSample]:
    return [*packer.waiting, *getattr(packer, "deferred", [])]


@pytest.mark.parametrize("mandatory", [(), (1,), (0, 1)])
@pytest.mark.parametrize(
    "config",
    [
        PackConfig(rows=4, und=128, gen=64, buffer=12),
        PackConfig(rows=2, und=40, gen=16, buffer=4),
        PublishedPackConfig(
            expected_num_tokens=150,
            max_num_tokens=170,
            max_num_tokens_per_sample=60,
            prefer_buffer_before=100,
            max_buffer_size=5,
        ),
        PublishedPackConfig(  # the proportions of the published fine-tuning
            expected_num_tokens=80,
            max_num_tokens=90,
            max_num_tokens_per_sample=80,
            prefer_buffer_before=128,
            max_buffer_size=5,
        ),
        PublishedPackConfig(  # no buffer; samples beyond a pack
            expected_num_tokens=50,
            max_num_tokens=60,
            max_num_tokens_per_sample=100,
            prefer_buffer_before=40,
            max_buffer_size=0,
        ),
    ],
)
def test_every_sample_is_packed_or_waits_or_is_reported(config: AnyPackConfig, mandatory: tuple[int, ...]) -> None:
    feed, packer = Listed([lengths_of(1), lengths_of(2), lengths_of(3)], mandatory), config.packer()
    packed: list[tuple[int, int]] = []
    for _ in range(60):
        rows = packer.next_rows(feed)
        assert any(rows)
        for row in rows:
            und, gen = sum(i.sample.und_len for i in row), sum(i.sample.gen_len for i in row)
            if isinstance(config, PackConfig):
                assert und <= config.und
                assert gen <= config.gen
            else:
                assert und + gen <= config.max_num_tokens
            packed += [(item.group, item.sample.index) for item in row]
    waiting = [(item.group, item.sample.index) for item in waiting_of(packer)]
    rejected = [(group, index) for group, index, _ in feed.rejected]
    everything = [(group, index) for group, taken in enumerate(feed.taken) for index in range(taken)]
    assert sorted([*packed, *waiting, *rejected]) == everything
    buffer = config.buffer if isinstance(config, PackConfig) else config.max_buffer_size
    assert len(waiting) <= buffer + len(mandatory) + 1


def test_rows_are_well_filled() -> None:
    config = PackConfig(rows=4, und=128, gen=64, buffer=12)
    feed, packer = Listed([lengths_of(1)]), config.packer()
    fill = [sum(i.sample.und_len for row in packer.next_rows(feed) for i in row) / 512 for _ in range(50)]
    assert sum(fill) / len(fill) > 0.75


@pytest.mark.parametrize("config", [PackConfig(und=150, gen=64), PublishedPackConfig()])
def test_each_mandatory_group_opens_every_pack(config: AnyPackConfig) -> None:
    feed = Listed([lengths_of(1), lengths_of(2), lengths_of(3)], mandatory=(2, 0))
    packer = config.packer()
    for _ in range(20):
        row = packer.next_rows(feed)[0]
        assert [item.group for item in row[:2]] == [2, 0]


def test_a_sample_that_found_no_room_opens_the_next_pack() -> None:
    config = PublishedPackConfig(
        expected_num_tokens=90,
        max_num_tokens=100,
        max_num_tokens_per_sample=100,
        prefer_buffer_before=200,
        max_buffer_size=1,
    )
    feed, packer = Listed([lambda index: sample_of(60, 0, index)]), config.packer()
    order = [item.sample.index for _ in range(10) for row in packer.next_rows(feed) for item in row]
    assert sorted(order) == list(range(10))


def test_two_mandatory_samples_that_do_not_fit_together_take_turns() -> None:
    config = PublishedPackConfig(
        expected_num_tokens=90, max_num_tokens=100, max_num_tokens_per_sample=100, prefer_buffer_before=50
    )
    large = [lambda index: sample_of(70, 0, index)] * 2
    feed, packer = Listed([*large, lambda index: sample_of(10, 0, index)], mandatory=(0, 1)), config.packer()
    groups = []
    for _ in range(8):
        (row,) = packer.next_rows(feed)
        groups.append(row[0].group)
        assert len(waiting_of(packer)) < 60
    assert groups.count(0) == groups.count(1) == 4


def test_what_is_larger_than_a_pack_is_reported_and_endlessly_is_an_error() -> None:
    def make(index: int) -> IndexedSample:
        return sample_of(70 if index % 2 else 20, 0, index)

    per_sample = "it has 70 tokens, and pack.max_num_tokens_per_sample is 60"
    for config, why in (
        (PackConfig(und=60, gen=8), "it needs 70 und and 0 gen slots, and an empty row has 60 and 8"),
        (PublishedPackConfig(max_num_tokens_per_sample=60), per_sample),
        (
            PublishedPackConfig(expected_num_tokens=60, max_num_tokens=60),
            "it has 70 tokens, and pack.max_num_tokens is 60",
        ),
    ):
        feed = Listed([make])
        config.packer().next_rows(feed)
        assert {(index % 2, sentence.startswith(why)) for _, index, sentence in feed.rejected} == {(1, True)}
        with pytest.raises(DataError, match=f"200 samples in a row are larger than a pack; of the last one {why}"):
            config.packer().next_rows(Listed([lambda index: sample_of(70)]))


def test_the_loop_selects_the_section() -> None:
    assert read_pack_config({"und": 8, "gen": 4}) == PackConfig(und=8, gen=4)
    published = read_pack_config({"loop": "published", "max_num_tokens": 50_000})
    assert published == PublishedPackConfig(max_num_tokens=50_000)
    assert (published.tokens, PackConfig(rows=2, und=8, gen=4).tokens) == (50_000, 24)
    for content, message in (
        ({"loop": "publishd"}, "did you mean published"),
        ({"loop": "published", "und": 8}, "und is not known"),
        ({"loop": "published", "expected_num_tokens": 40_000}, "must be at most max_num_tokens, 36864"),
        (7, "must be a section"),
    ):
        with pytest.raises(ValueError, match=message):
            parse(PublishedPackConfig, read_pack_config(content), "pack", DataError)


def test_the_published_row_has_whole_blocks() -> None:
    rows = [[sample_of(100, 16), sample_of(60)]]
    assert PublishedPackConfig().slots(rows) == (256, 128)
    assert PublishedPackConfig().slots([[sample_of(5)]]) == (128, 0)
    assert PackConfig(rows=2, und=8, gen=4).slots(rows) == (8, 4)


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
    laid_out = lay_out(rows, SPEC, 10, 6)
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
    empty = lay_out([[]], SPEC, 1, 1)
    assert (empty.images, len(empty.latent_source)) == ([], 0)


def test_a_pack_knows_the_data_set_of_each_sample() -> None:
    names = (("a", "b"), ("a",))
    rows = [[IndexedSample((TextSegment((1, 2)),), dataset=name) for name in row] for row in names]
    found = lay_out(rows, SPEC, 8, 1)
    assert found.datasets == ("a", "b", "a")
    assert [int(found.layout.sample.flatten()[slot]) for slot in (0, 2, 9)] == [0, 1, 2]
