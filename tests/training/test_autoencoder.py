"""The autoencoder's task: unit-variance latents, a frozen encoder that stays, weights by pixel."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bagel.checkpoint.official import load_autoencoder
from bagel.mini.draw import draw_array
from bagel.mini.sampling import sample_scene
from bagel.training.autoencoder import AutoencoderTask, to_tensor
from bagel.training.loop import train
from bagel.training.recipe import AutoencoderRecipe

Make = Callable[..., AutoencoderRecipe]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def recipe(**changes: Any) -> AutoencoderRecipe:
        raw: dict[str, Any] = {
            "kind": "autoencoder",
            "output": tmp_path / "run",
            "steps": 2,
            "batch_size": 2,
            "precision": "float32",
            "device": "cpu",
            "model": {"ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "z_channels": 4},
            "optimizer": {"lr": 1e-3, "eps": 1e-8},
            "ema": 0.0,
        }
        return AutoencoderRecipe.model_validate({**raw, **changes})

    return recipe


def _pictures(count: int) -> torch.Tensor:
    rng = random.Random(11)
    return to_tensor([draw_array(sample_scene(rng)) for _ in range(count)])


def test_the_latent_is_scaled_to_unit_variance_and_samples_are_drawn(make: Make) -> None:
    recipe = make()
    folder = train(recipe, AutoencoderTask(recipe))
    assert folder is not None
    model = load_autoencoder(folder)
    with torch.no_grad():
        latent = model.encode(_pictures(48))
    assert latent.mean().abs() < 0.1
    assert abs(latent.std().item() - 1) < 0.1
    assert (recipe.output / "samples" / "step-00000002.png").stat().st_size > 0


def test_a_frozen_encoder_keeps_its_latents(make: Make, tmp_path: Path) -> None:
    first = make()
    before = train(first, AutoencoderTask(first))
    second = make(output=tmp_path / "decoder", init=first.output, freeze_encoder=True)
    after = train(second, AutoencoderTask(second))
    assert before is not None
    assert after is not None
    old, new = load_autoencoder(before), load_autoencoder(after)
    pictures = _pictures(2)
    with torch.no_grad():
        assert torch.equal(old.encode(pictures), new.encode(pictures))
        assert not torch.equal(old.decode(old.encode(pictures)), new.decode(new.encode(pictures)))


def test_things_weigh_more_by_pixel(make: Make) -> None:
    task = AutoencoderTask(make(thing_weight=4.0))
    batch = task.next_batch()
    assert set(batch.weights.unique().tolist()) == {1.0, 4.0}
    assert 0.01 < (batch.weights == 4).float().mean() < 0.7
    assert task.counts(batch)["l1"] == pytest.approx(3 * float(batch.weights.sum()))


def test_loss_falls_on_a_fixed_batch(make: Make) -> None:
    task = AutoencoderTask(make())
    optimizer = torch.optim.AdamW(task.module.parameters(), lr=2e-3)
    batch = task.next_batch()
    losses = []
    for _ in range(12):
        sums = task.losses(batch, torch.Generator().manual_seed(0))
        loss = (sums["l1"] + sums["mse"]) / task.counts(batch)["l1"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
