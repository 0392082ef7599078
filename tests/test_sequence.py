"""Packing against a brute-force reading of the rules."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import cached_property

import pytest
import torch
from torch import Tensor

from bagel_mot.errors import SizeError
from bagel_mot.sequence import (
    CAUSAL,
    NOISED,
    DroppedImage,
    FramesSegment,
    PackSpec,
    Sample,
    Segment,
    TextSegment,
    TokenRun,
    VaeSegment,
    Values,
    VitSegment,
    pack,
    pack_cached,
    table_index,
    text_segment,
    vae_segment,
    vit_segment,
)
from bagel_mot.tokenizer import SpecialTokens

SPEC = PackSpec(SpecialTokens(1, 2, 3, 4), vit_side=7, latent_side=6, patch_dim=12, latent_dim=8)


def _random_sample(rng: random.Random) -> Sample:
    segments: list[Segment] = []
    for _ in range(rng.randint(1, 6)):
        grid = (rng.randint(1, 3), rng.randint(1, 3))
        tokens = grid[0] * grid[1]
        kind = rng.randrange(5)
        ids = [rng.randint(5, 90) for _ in range(rng.randint(0, 5))]
        if kind == 0:
            segments.append(text_segment(ids, SPEC.special))
        elif kind == 1:
            segments.append(text_segment(ids, SPEC.special, learn=True))
        elif kind == 2:
            segments.append(VitSegment(torch.randn(tokens, 12), grid))
        elif kind == 3:
            segments.append(VaeSegment(torch.randn(tokens, 8), grid, noised=rng.random() < 0.5, timestep=rng.random()))
        else:
            segments.append(DroppedImage())
    return Sample(tuple(segments), position=rng.choice((0, 17)))


def _tokens(rows: list[list[Sample]]) -> list[dict[str, object]]:
    """Every token in sequence order, from the rules alone."""
    found: list[dict[str, object]] = []
    sample_number = segment_number = 0
    for row_number, row in enumerate(rows):
        for sample in row:
            position = sample.position
            for segment in sample.segments:
                length = segment.und_len + segment.gen_len
                for i in range(length):
                    text = isinstance(segment, TextSegment)
                    marker = not text and i in (0, length - 1)
                    found.append(
                        {
                            "row": row_number,
                            "sample": sample_number,
                            "segment": segment_number,
                            "mode": segment.mode,
                            "position": position + i if text else position,
                            "gen": isinstance(segment, VaeSegment) and not marker,
                        }
                    )
                segment_number += length > 0
                if isinstance(segment, TextSegment):
                    position += length
                elif not (isinstance(segment, VaeSegment) and segment.noised):
                    position += 1
            sample_number += 1
    return found


@pytest.mark.parametrize("seed", range(12))
def test_positions_and_mask_follow_the_rules(seed: int) -> None:
    rng = random.Random(seed)
    rows = [[_random_sample(rng) for _ in range(rng.randint(0, 3))] for _ in range(rng.randint(1, 3))]
    packed = pack(rows, SPEC)
    expected = _tokens(rows)
    slots = {int(p): divmod(i, packed.place.shape[1]) for i, p in enumerate(packed.place.flatten()) if p >= 0}
    assert sorted(slots) == list(range(len(expected)))
    assert packed.num_tokens == len(expected)
    mask = packed.mask()
    for place, token in enumerate(expected):
        row, slot = slots[place]
        assert row == token["row"]
        assert int(packed.positions[row, slot]) == token["position"]
        assert (slot >= packed.und_len) == token["gen"]
    for i, query in enumerate(expected):
        for j, key in enumerate(expected):
            if query["row"] != key["row"]:
                continue
            same_segment = query["segment"] == key["segment"]
            may = query["sample"] == key["sample"] and (
                (same_segment and (query["mode"] != CAUSAL or j <= i))
                or (not same_segment and j < i and key["mode"] != NOISED)
            )
            assert bool(mask[slots[i][0], slots[i][1], slots[j][1]]) == may
    padding = packed.place < 0
    assert torch.equal(mask.diagonal(dim1=1, dim2=2) & padding, padding)
    assert not (mask & padding[:, None, :] & ~torch.eye(mask.shape[1], dtype=torch.bool)).any()


def test_text_with_loss_predicts_its_ids_and_the_end() -> None:
    packed = pack([[Sample((text_segment([7, 8, 9], SPEC.special, learn=True),))]], SPEC)
    assert packed.text_ids.tolist() == [1, 7, 8, 9, 2]
    assert packed.text_ids[packed.ce_slots].tolist() == [1, 7, 8, 9]
    assert packed.ce_labels.tolist() == [7, 8, 9, 2]
    assert torch.allclose(packed.ce_weights, torch.full((4,), 0.5))


@dataclass(frozen=True, eq=False)
class _Clip(Segment):
    """Two frames in one segment, a distance of three rotary positions apart."""

    grid: tuple[int, int] = (1, 2)
    advance = 6

    @cached_property
    def runs(self) -> tuple[TokenRun, ...]:
        frames = (VitSegment(torch.full((2, 12), i), self.grid).runs for i in range(2))
        return tuple(replace(run, position=3 * i) for i, frame in enumerate(frames) for run in frame)


def test_a_segment_lays_itself_out() -> None:
    """Packing knows no kinds of segment: the frames of a clip come with positions of their own."""
    samples = [Sample((_Clip(), text_segment([7], SPEC.special)), position=5)]
    layout, values = pack([samples], SPEC), Values.of(samples, SPEC)
    assert layout.positions.tolist() == [[5] * 4 + [8] * 4 + [11, 12, 13]]
    assert layout.text_ids.tolist() == [3, 4, 3, 4, 1, 7, 2]
    assert layout.vit_grids == ((1, 2), (1, 2))
    assert values.vit_patches[:, 0].tolist() == [0, 0, 1, 1]
    assert layout.mask()[0, :8, :8].all()  # one segment: its frames see one another
    assert not layout.mask()[0, :8, 8:].any()


def test_a_layout_serves_other_values() -> None:
    """A denoising step changes latents and timestep alone; the layout for the cache is that of training."""

    def at(timestep: float) -> list[Sample]:
        image = VaeSegment(torch.full((4, 8), timestep), (2, 2), noised=True, timestep=timestep)
        return [Sample((image,), position=9), Sample((text_segment([7], SPEC.special),))]

    layout, again, trained = pack_cached(at(0.25), SPEC), pack_cached(at(0.75), SPEC), pack([at(0.5)], SPEC)
    for name, value in vars(layout).items():
        for other in (again, trained):
            assert torch.equal(value, getattr(other, name)) if isinstance(value, Tensor) else value == vars(other)[name]
    assert Values.of(at(0.25), SPEC).timesteps.tolist() == [0.25]
    given = Values.of(at(0.25), SPEC, torch.ones(4, 8))
    assert torch.equal(given.latents, torch.ones(4, 8))


def test_images_become_segments() -> None:
    pixels = torch.rand(3, 4, 6)
    vit = vit_segment(pixels, 2)
    assert vit.grid == (2, 3)
    assert torch.equal(vit.patches[4].view(2, 2, 3), pixels[:, 2:4, 2:4].permute(1, 2, 0))
    vae = vae_segment(torch.rand(2, 4, 6), 2, noised=True)
    assert (vae.grid, vae.noised) == ((2, 3), True)
    assert vae.latent is not None
    assert vae.latent.shape == (6, 8)


def test_fixed_lengths_pad_and_refuse() -> None:
    sample = Sample((text_segment([7, 8], SPEC.special),))
    packed = pack([[sample], []], SPEC, und_len=10, gen_len=6)
    assert packed.place.shape == (2, 16)
    assert (packed.place >= 0).sum() == 4
    with pytest.raises(ValueError, match="needs 4 und"):
        pack([[sample]], SPEC, und_len=3)


def test_an_empty_pack() -> None:
    packed = pack([], SPEC)
    assert packed.num_tokens == 0
    assert packed.mask().shape == (0, 0, 0)


def test_table_index() -> None:
    assert table_index(2, 3, 10).tolist() == [0, 1, 2, 10, 11, 12]
    with pytest.raises(SizeError, match="11×2 grid does not fit"):
        table_index(11, 2, 10)
    # Stretched: fractional coordinates i/n sorted into the table's buckets.
    stretched = table_index(2, 4, 8, interpolate=True).view(2, 4)
    assert (stretched[0] % 8).tolist() == [0, 2, 4, 6]
    assert (stretched[:, 0] // 8).tolist() == [0, 4]


def test_frames_of_a_clip_share_a_timestep_and_see_one_another() -> None:
    """Frames 0, 3 and 5 of a clip, noised together, then clean; what follows is as far on as the clip says."""

    def frames(noised: bool) -> FramesSegment:
        return FramesSegment(tuple(VaeSegment(torch.zeros(2, 8), (1, 2), noised) for _ in range(3)), (0, 3, 5), 9)

    image = VaeSegment(torch.zeros(1, 8), (1, 1), noised=True)
    layout = pack([[Sample((frames(True), frames(False), image, image), position=2)]], SPEC)
    und, first = layout.und_len, [2, 5, 7]
    markers = [2, 2, 5, 5, 7, 7]
    assert layout.positions[0, :und].tolist() == [*markers, *markers, 11, 11, 11, 11]
    assert layout.positions[0, und:].tolist() == [p for p in first for _ in range(2)] * 2 + [11, 11]
    assert layout.noised.tolist() == [True] * 3 + [False] * 3 + [True] * 2
    assert layout.timestep_of.tolist() == [0, 0, 0, 1, 1, 1, 2, 3]
    assert layout.timesteps == 4
    mask = layout.mask()[0]
    noised, clean = [*range(6), *range(und, und + 6)], [*range(6, 12), *range(und + 6, und + 12)]
    for group in (noised, clean):
        assert mask[group][:, group].all()
    assert not mask[clean][:, noised].any()
    assert not mask[noised][:, clean].any()
    last = und + 13
    assert mask[last][clean].all()
    assert not mask[last][noised].any()


@pytest.mark.parametrize("learn", [False, True])
def test_a_text_can_teach_that_an_image_starts_after_it(learn: bool) -> None:
    before, text = text_segment([9], SPEC.special), text_segment([7, 8], SPEC.special, learn=learn, starts_image=True)
    layout = pack([[Sample((before, text))]], SPEC)
    slots, labels = layout.ce_slots.tolist(), layout.ce_labels.tolist()
    ids = layout.text_ids.tolist()
    assert [ids[slot] for slot in slots] == ([1, 7, 8, 2] if learn else [2])
    assert slots[-1] == 6  # the end token of the second text
    assert labels == ([7, 8, 2, 3] if learn else [3])
    assert torch.allclose(layout.ce_weights, torch.full((len(labels),), len(labels) ** -0.5))
