"""Packing against a brute-force reading of the rules."""

from __future__ import annotations

import random

import pytest
import torch

from bagel_mot.errors import SizeError
from bagel_mot.sequence import (
    CAUSAL,
    NOISED,
    DroppedImage,
    PackSpec,
    Sample,
    Segment,
    SpecialTokens,
    TextSegment,
    VaeSegment,
    VitSegment,
    pack,
    table_index,
)

SPEC = PackSpec(SpecialTokens(1, 2, 3, 4), vit_side=7, latent_side=6, patch_dim=12, latent_dim=8)


def _random_sample(rng: random.Random) -> Sample:
    segments: list[Segment] = []
    for _ in range(rng.randint(1, 6)):
        grid = (rng.randint(1, 3), rng.randint(1, 3))
        tokens = grid[0] * grid[1]
        kind = rng.randrange(5)
        if kind == 0:
            segments.append(SPEC.special.condition([rng.randint(5, 90) for _ in range(rng.randint(0, 5))]))
        elif kind == 1:
            segments.append(SPEC.special.target([rng.randint(5, 90) for _ in range(rng.randint(0, 5))]))
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
    packed = pack([[Sample((SPEC.special.target([7, 8, 9]),))]], SPEC)
    assert packed.text_ids.tolist() == [1, 7, 8, 9, 2]
    assert packed.text_ids[packed.ce_slots].tolist() == [1, 7, 8, 9]
    assert packed.ce_labels.tolist() == [7, 8, 9, 2]
    assert torch.allclose(packed.ce_weights, torch.full((4,), 0.5))


def test_fixed_lengths_pad_and_refuse() -> None:
    sample = Sample((SPEC.special.condition([7, 8]),))
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
