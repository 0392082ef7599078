"""The autoencoder's task: unit-variance latents, a frozen encoder that stays, weights by pixel."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bagel_mot.checkpoint.official import load_autoencoder
from bagel_mot.config import parse
from bagel_mot.errors import RecipeError
from bagel_mot.training.checkpoints import latest, load_latest
from bagel_mot.training.loop import train
from bagel_mot.training.recipe import AutoencoderRecipe
from bagel_mot.training.tasks import autoencoder
from bagel_mot.training.tasks.autoencoder import AutoencoderTask, scale_channels, to_tensor
from bagel_mot.worlds.mini.draw import draw_array
from bagel_mot.worlds.mini.sampling import sample_scene

Make = Callable[..., AutoencoderRecipe]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a recipe whose latent is scaled by the statistics of a few images."""
    monkeypatch.setattr(autoencoder, "_STATISTICS_IMAGES", 32)

    def recipe(**changes: Any) -> AutoencoderRecipe:
        raw: dict[str, Any] = {
            "kind": "autoencoder",
            "output": tmp_path / "run",
            "steps": 2,
            "batch_size": 2,
            "precision": "float32",
            "device": "cpu",
            "data": {"kind": "mini"},
            "model": {"ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "z_channels": 4},
            "optimizer": {"lr": 1e-3, "eps": 1e-8},
            "ema": 0.0,
        }
        if "init" in changes:
            raw["model"] = None
        return parse(AutoencoderRecipe, {**raw, **changes}, "recipe", RecipeError)

    return recipe


@pytest.fixture
def many_statistics(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The latent is scaled by so many images that others have the same spread."""
    monkeypatch.setattr(autoencoder, "_STATISTICS_IMAGES", 256)


def _images(count: int) -> torch.Tensor:
    rng = random.Random(11)
    return to_tensor(np.stack([draw_array(sample_scene(rng)) for _ in range(count)]))


@pytest.mark.usefixtures("many_statistics")
def test_the_latent_is_scaled_to_unit_variance_and_samples_are_drawn(make: Make) -> None:
    recipe = make()
    folder = train(recipe, AutoencoderTask)
    model = load_autoencoder(folder)
    with torch.no_grad():
        latent = model.encode(_images(48))
    assert latent.mean().abs() < 0.1
    assert abs(latent.std().item() - 1) < 0.1
    assert (recipe.output / "samples" / "step-00000002.png").stat().st_size > 0


def test_a_frozen_encoder_keeps_its_latents(make: Make, tmp_path: Path) -> None:
    first = make()
    before = train(first, AutoencoderTask)
    second = make(output=tmp_path / "decoder", init=str(first.output), trainable=["decoder.*"])
    after = train(second, AutoencoderTask)
    old, new = load_autoencoder(before), load_autoencoder(after)
    images = _images(2)
    with torch.no_grad():
        assert torch.equal(old.encode(images), new.encode(images))
        assert not torch.equal(old.decode(old.encode(images)), new.decode(new.encode(images)))


def _weights(run: Path) -> dict[str, torch.Tensor]:
    """All that a run's newest checkpoint is read for: what it trains, its averages, and its scale and shift."""
    state = load_latest(run)
    assert state is not None
    vae = load_autoencoder(latest(run)).config
    scale = torch.tensor([vae.scale_factor, vae.shift_factor])
    return {
        **{name: value for name, value in state.items() if name.startswith(("module.", "ema."))},
        **load_autoencoder(latest(run)).state_dict(),
        "scale": scale,
        "random": torch.tensor(state["data"][0][1]),
    }


@pytest.mark.parametrize("frozen", [False, True])
def test_stopped_and_resumed(make: Make, tmp_path: Path, frozen: bool) -> None:
    """Though the run it was made from is gone."""
    first = make(output=tmp_path / "first", steps=1)
    train(first, AutoencoderTask)
    changes = {
        "init": str(first.output),
        "trainable": ["decoder.*"] if frozen else ["*"],
        "steps": 3,
        "latent_noise": 0.3,
        "ema": 0.5,
    }
    whole, parts = (make(output=tmp_path / name, **changes) for name in ("whole", "parts"))
    train(whole, AutoencoderTask)
    train(parts, AutoencoderTask, stop_after=1)
    shutil.rmtree(first.output)
    train(parts, AutoencoderTask)
    expected, got = _weights(whole.output), _weights(parts.output)
    assert expected.keys() == got.keys()
    assert [name for name in expected if not torch.equal(expected[name], got[name])] == []


def test_a_run_that_has_begun_refuses_another_shape(make: Make) -> None:
    train(make(), AutoencoderTask, stop_after=1)
    with pytest.raises(RecipeError, match="model.ch was 32 and is now 64, model.z_channels was 4 and is now 8"):
        train(make(model={"ch": 64, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "z_channels": 8}), AutoencoderTask)


@pytest.mark.usefixtures("many_statistics")
def test_every_channel_has_unit_variance_and_reconstructions_stay(make: Make) -> None:
    recipe = make(ema=0.0)
    task = AutoencoderTask(recipe)
    with torch.no_grad():
        task.module.encoder.conv_out.weight[1] *= 20
        images = _images(48)
        expected = task.module.decoder(task.module.posterior(images)[0])
        task.write_weights(recipe.output, task.module.state_dict())
        model = load_autoencoder(recipe.output)
        latent = model.encode(images)
        assert torch.allclose(model.decode(latent), expected, atol=1e-4)
    spread = latent.std(dim=(0, 2, 3))
    assert 0.8 < spread.min() < spread.max() < 1.2


def test_a_wider_latent_reconstructs_about_what_it_did(make: Make, tmp_path: Path) -> None:
    first = make()
    before = train(first, AutoencoderTask)
    narrow = load_autoencoder(before)
    wide = AutoencoderTask(make(output=tmp_path / "wide", init=str(first.output), z_channels=6)).module
    images = _images(8)
    with torch.no_grad():
        mean, logvar = wide.posterior(images)
        assert mean.shape[1] == logvar.shape[1] == 6
        assert torch.equal(mean[:, :4], narrow.posterior(images)[0])
        assert mean[:, 4:].std() > 0
        old = narrow.decode(narrow.encode(images))
        assert (wide.decoder(mean) - old).abs().mean() < 0.2 * old.abs().mean()
    with pytest.raises(RecipeError, match="z_channels is 2"):
        AutoencoderTask(make(output=tmp_path / "narrow", init=str(first.output), z_channels=2))


def test_what_a_beginning_cannot_change_is_refused(make: Make, tmp_path: Path) -> None:
    first = make()
    train(first, AutoencoderTask)

    def begin(**changes: Any) -> AutoencoderTask:
        return AutoencoderTask(make(output=tmp_path / "next", init=str(first.output), **changes))

    with pytest.raises(RecipeError, match="either init .* or model .* is needed, and not both"):
        begin(model={"ch": 64, "z_channels": 4})
    with pytest.raises(RecipeError, match="z_channels widens the latent of init"):
        make(z_channels=6)
    assert begin().module.config.z_channels == 4  # not the 16 of a new one
    with pytest.raises(RecipeError, match="optimizer.name is 'muon'"):
        begin(optimizer={"name": "muon"})


def test_a_latent_stays_where_its_decoder_does(make: Make, tmp_path: Path) -> None:
    """Scaling it would change both ends, and one of them is to stay."""
    first = make()
    before = load_autoencoder(train(first, AutoencoderTask))
    folder = train(make(output=tmp_path / "next", init=str(first.output), trainable=["encoder.*"]), AutoencoderTask)
    after = load_autoencoder(folder)
    assert after.config == before.config
    assert all(torch.equal(p, q) for p, q in zip(before.decoder.parameters(), after.decoder.parameters(), strict=True))
    assert not torch.equal(before.encoder.conv_in.weight, after.encoder.conv_in.weight)


def test_latent_noise_raises_the_loss_in_proportion_to_the_spread(make: Make) -> None:
    losses = []
    for noise, gain in ((0.0, 1.0), (3.0, 1.0), (3.0, 7.0)):
        task = AutoencoderTask(make(latent_noise=noise))
        scale_channels(task.module, torch.full((4,), gain))
        batch = task.draw_batch(random.Random(5))
        losses.append(float(task.losses(batch, torch.Generator().manual_seed(0))["mse"].detach()))
    assert losses[1] != losses[0]
    assert losses[2] == pytest.approx(losses[1], rel=1e-3)


def test_only_errors_that_stand_out_are_peaks(make: Make) -> None:
    """The squared excess over 0.08 of the error averaged over 3 × 3 pixels, by brute force."""
    task = AutoencoderTask(make(mask_weight=4.0))
    batch = task.draw_batch(random.Random(5))
    peak = float(task.losses(batch, torch.Generator().manual_seed(0))["peak"].detach())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        mean, logvar = task.module.posterior(batch.pixels)
        noise = torch.randn(mean.shape, generator=generator)
        error = (task.module.decoder(mean + noise * (0.5 * logvar).exp()) - batch.pixels).double()
    padded = torch.nn.functional.pad(error, (1, 1, 1, 1))
    local = sum(padded[:, :, y : y + 64, x : x + 64] for y in range(3) for x in range(3)) / 9
    excess = (local.abs() - 0.08).clamp_min(0) ** 2 * batch.weights
    wanted = float(excess.sum())
    assert wanted > 0
    assert peak == pytest.approx(wanted, rel=1e-4)


def test_things_weigh_more_by_pixel(make: Make) -> None:
    task = AutoencoderTask(make(mask_weight=4.0))
    batch = task.draw_batch(random.Random(5))
    assert set(batch.weights.unique().tolist()) == {1.0, 4.0}
    assert 0.01 < (batch.weights == 4).float().mean() < 0.7
    assert task.counts(batch)["l1"] == pytest.approx(3 * float(batch.weights.sum()))


def test_loss_falls_on_a_fixed_batch(make: Make) -> None:
    task = AutoencoderTask(make())
    optimizer = torch.optim.AdamW(task.module.parameters(), lr=2e-3)
    batch = task.draw_batch(random.Random(5))
    losses = []
    for _ in range(12):
        sums = task.losses(batch, torch.Generator().manual_seed(0))
        loss = (sums["l1"] + sums["mse"]) / task.counts(batch)["l1"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
