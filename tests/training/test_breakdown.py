"""Losses by timestep and data set against plain loops over the tokens."""

from __future__ import annotations

import pytest
import torch

from bagel_mot.sequence import PackSpec, Sample, TextSegment, VaeSegment, VitSegment, pack
from bagel_mot.tokenizer import SpecialTokens
from bagel_mot.training.breakdown import sums_by_dataset, sums_by_timestep, tokens_by_kind, with_ratios

SPEC = PackSpec(SpecialTokens(1, 2, 3, 4), vit_side=8, latent_side=64, patch_dim=12, latent_dim=4)


def _drawn(side: int, noised: bool = True) -> VaeSegment:
    return VaeSegment(torch.zeros(side**2, 4), (side, side), noised)


def _text(length: int) -> TextSegment:
    ids = tuple(range(length))
    return TextSegment((1, *ids, 2), labels=(*ids, 2))


ROWS = [
    [Sample((_text(3), _drawn(2))), Sample((_drawn(3, noised=False), _drawn(2)))],
    [Sample((_text(5), VitSegment(torch.zeros(6, 12), (2, 3)))), Sample((_drawn(4), _text(2)))],
]


def test_errors_are_sorted_by_the_timestep_of_their_image() -> None:
    layout = pack(ROWS, SPEC, und_len=40, gen_len=30)
    timesteps = torch.tensor([0.05, 0.0, 0.999, 1.0])
    errors = torch.rand(layout.latent_slots.numel(), dtype=torch.float64)
    found = with_ratios({name: float(value) for name, value in sums_by_timestep(errors, layout, timesteps).items()})
    expected: dict[str, list[float]] = {}
    for error, image in zip(errors.tolist(), layout.latent_image.tolist(), strict=True):
        if layout.noised[image]:
            name = "mse_t/0.0-0.1" if image == 0 else "mse_t/0.9-1.0"
            expected.setdefault(name, []).append(error)
    assert found == pytest.approx({name: sum(values) / len(values) for name, values in expected.items()}, rel=1e-6)


def test_losses_are_sorted_by_the_data_set_of_their_sample() -> None:
    layout = pack(ROWS, SPEC, und_len=40, gen_len=30)
    errors, ce = torch.rand(layout.latent_slots.numel()), torch.rand(layout.ce_labels.numel())
    datasets = torch.tensor([0, 2, 0, 2])
    sums = sums_by_dataset(errors, ce, layout, datasets, ["a", "b", "c"])
    found = with_ratios({name: float(value) for name, value in sums.items()})
    # Latents come in the order of the samples: 4 drawn; 9 given, 4 drawn; 16 drawn. Targets: 4; 6; 3.
    assert found == pytest.approx(
        {
            "mse_of/a": errors[:4].mean().item(),
            "mse_of/c": torch.cat([errors[13:17], errors[17:]]).mean().item(),
            "ce_of/a": ce[:10].mean().item(),
            "ce_of/c": ce[10:].mean().item(),
        },
        rel=1e-5,
    )
    assert sums_by_dataset(errors, ce, layout, datasets, []) == {}


def test_tokens_are_counted_by_kind() -> None:
    layout = pack(ROWS, SPEC, und_len=40, gen_len=30)
    kinds = tokens_by_kind(layout)
    assert kinds == {"tokens/text": 26, "tokens/learnt": 13, "tokens/seen": 6, "tokens/given": 9, "tokens/drawn": 24}
    assert sum(kinds.values()) - kinds["tokens/learnt"] == layout.num_tokens


def test_what_nothing_was_counted_for_is_left_out() -> None:
    assert with_ratios({"ce": 2.0, "a.sum": 3.0, "a.count": 1.5, "b.sum": 0.0, "b.count": 0.0}) == {"ce": 2.0, "a": 2.0}
