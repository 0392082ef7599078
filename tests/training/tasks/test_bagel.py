"""Packs of every kind train, and accumulation gives what one large pack would."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bagel_mot.checkpoint.official import load_checkpoint, save_checkpoint
from bagel_mot.checkpoint.side_files import DEFAULTS_FILE
from bagel_mot.config import BagelConfig, load_config
from bagel_mot.data.documents import ImagePart
from bagel_mot.data.packer import RawPack
from bagel_mot.errors import CheckpointError, RecipeError
from bagel_mot.inference import loading
from bagel_mot.model.attention import MaskedAttention
from bagel_mot.model.vae import Autoencoder
from bagel_mot.sequence import TextSegment
from bagel_mot.training.checkpoints import STATE_FILE
from bagel_mot.training.loop import _backward
from bagel_mot.training.objective import add_noise, compute_losses, draw_timesteps
from bagel_mot.training.optimizer import Optimizers
from bagel_mot.training.recipe import BagelRecipe
from bagel_mot.training.tasks import bagel as unified
from bagel_mot.training.tasks.bagel import BagelTask

Make = Callable[..., BagelRecipe]


def test_accumulation_is_one_large_pack(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    task = BagelTask(recipe(pack={"rows": 4}, ce_weight=0.5))
    raw = task.stream.next_batch()
    whole = task._pack(raw)
    halves = [task._pack(RawPack(raw.rows[:2])), task._pack(RawPack(raw.rows[2:]))]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(whole.values.latents.shape, generator=generator)
    times = torch.rand(len(whole.layout.latent_grids), generator=generator)
    cut, images = len(halves[0].values.latents), len(halves[0].layout.latent_grids)
    torch.nn.init.normal_(task.module.decoder.lm_head.weight, std=0.1)
    torch.nn.init.normal_(task.module.latent_out.weight, std=0.1)
    # The halves must count differently: else a mean of means would do.
    assert task.counts(halves[0])["ce"] != task.counts(halves[1])["ce"]
    given = [(times, noise), (times[:images], noise[:cut]), (times[images:], noise[cut:])]
    monkeypatch.setattr(unified, "add_noise", lambda layout, values, t, n: add_noise(layout, values, *given.pop(0)))
    gradients, means = [], []
    for packs in ([whole], halves):
        task.module.zero_grad()
        means.append(_backward(task, packs, generator, torch.float32))
        gradients.append(torch.cat([p.grad.flatten() for p in task.module.parameters() if p.grad is not None]))
    assert given == []
    assert means[0] == pytest.approx(means[1], rel=1e-4)
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("task_name", "absent"),
    [("draw", {"vit", "text loss"}), ("ask", {"latents"}), ("edit", {"text loss"}), ("think_answer", {"latents"})],
)
def test_packs_without_some_kind_of_token_train(recipe: Make, task_name: str, absent: set[str]) -> None:
    made = recipe(data={"mix": {task_name: 1.0}}, dropout={"text": 0.0, "vit": 0.0, "vae": 0.0})
    task = BagelTask(made)
    before = {name: p.clone() for name, p in task.module.named_parameters()}
    optimizers = Optimizers(task.module.named_parameters(), made.optimizer)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        batch = task._pack(task.stream.next_batch())
        layout = batch.layout
        kinds = {"vit": layout.vit_slots, "text loss": layout.ce_slots, "latents": layout.latent_slots}
        assert {name for name, slots in kinds.items() if slots.numel() == 0} == absent
        means = _backward(task, [batch], generator, torch.float32)
        assert {name for name, mean in means.items() if mean > 0} == ({"ce"} if "latents" in absent else {"mse"})
        assert math.isfinite(optimizers.step(1.0))
    moved = {name for name, p in task.module.named_parameters() if not torch.equal(p, before[name])}
    assert any(".und." in name for name in moved)
    assert any(".gen." in name for name in moved) == ("latents" not in absent)


def test_a_pack_of_one_sample_trains(recipe: Make) -> None:
    task = BagelTask(recipe())
    batch = task._pack(RawPack([[task.stream.sample(0)], []]))
    sums = task.losses(batch, torch.Generator().manual_seed(0))
    assert all(torch.isfinite(value) for value in sums.values())


def test_a_sample_gives_the_same_loss_in_any_company(recipe: Make) -> None:
    """Neighbours in a row, padding, and rows do not touch a sample's predictions."""
    task = BagelTask(recipe(pack={"rows": 1, "und": 600, "gen": 400}))
    torch.nn.init.normal_(task.module.decoder.lm_head.weight, std=0.1)
    torch.nn.init.normal_(task.module.latent_out.weight, std=0.1)
    raw = task.stream.next_batch()
    samples = raw.rows[0][:4]

    def predictions(rows: list[list[object]]) -> tuple[Tensor, Tensor]:
        layout, values = task._pack(RawPack(rows))  # type: ignore[arg-type]
        times = torch.full((len(layout.latent_grids),), 0.5)
        noise = torch.ones_like(values.latents)
        noised = add_noise(layout, values, times, noise)
        losses = compute_losses(task.module, noised, MaskedAttention(layout))
        return losses.ce.detach(), losses.mse.detach()

    together = predictions([samples])
    alone = [predictions([[sample]]) for sample in samples]
    for which in (0, 1):
        joined = torch.cat([part[which] for part in alone])
        assert torch.allclose(together[which], joined, rtol=1e-4, atol=1e-5)


def test_a_run_starts_from_whatever_names_a_checkpoint(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = BagelTask(recipe(timestep_shift=2.0))
    run = tmp_path / "first"
    for step in (2, 4):  # what is in the newest checkpoint counts
        folder = run / f"step-{step:08d}"
        weights = {name: torch.full_like(p, step) for name, p in first.module.named_parameters()}
        first.write_weights(folder, weights)
        (folder / STATE_FILE).write_bytes(b"")
    monkeypatch.setattr(loading, "MINI_FOLDER", Path(shutil.copytree(folder, tmp_path / "embedded")))

    def started(**changes: object) -> BagelTask:
        return BagelTask(recipe(model=None, output=tmp_path / "second", **changes))

    for name in ("mini", str(folder), str(run)):
        task = started(init=name, autoencoder=None)
        assert {float(p.detach().mean()) for p in task.module.parameters()} == {4.0}
        assert task.config == first.config
    assert started(init=str(run), autoencoder="mini").autoencoder.config == first.autoencoder.config
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        started(init=str(tmp_path / "nowhere"))


def test_a_run_takes_over_another_autoencoder(recipe: Make, tmp_path: Path) -> None:
    first = BagelTask(recipe())
    folder = tmp_path / "first"
    first.write_weights(folder, dict(first.module.named_parameters()))
    (folder / DEFAULTS_FILE).write_text('{"generate": {"num_timesteps": 25}, "edit": {"cfg_image_scale": 1.5}}')

    def autoencoder(name: str, **changes: Any) -> str:
        vae = replace(first.config.vae, **changes)
        save_checkpoint(tmp_path / name, BagelConfig(vae=vae), autoencoder=Autoencoder(vae).state_dict())
        return str(tmp_path / name)

    def begin(where: str) -> BagelTask:
        return BagelTask(recipe(model=None, init=str(folder), autoencoder=where, output=tmp_path / "second"))

    task = begin(autoencoder("scaled", scale_factor=0.7, shift_factor=0.05, ch_mult=(1, 1, 1, 2)))
    second = tmp_path / "second" / "step-00000002"
    task.write_weights(second, dict(task.module.named_parameters()))
    found = load_checkpoint(second)
    assert found.config.vae == task.autoencoder.config
    assert (found.config.vae.scale_factor, found.config.vae.ch_mult) == (0.7, (1, 1, 1, 2))
    side = {"max_size": 64, "min_size": 64}
    assert json.loads((second / DEFAULTS_FILE).read_text()) == {
        "generate": {"num_timesteps": 25, "size": [64, 64]},
        "edit": {"cfg_image_scale": 1.5},
        "vae_transform": side,
        "vit_transform": side,
    }
    with pytest.raises(RecipeError, match="has 6 latent channels, one for 8 pixels a side; the model of .* 4 and 8"):
        begin(autoencoder("other", z_channels=6))


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_conditions_are_left_out_as_often_whatever_the_task(recipe: Make, seed: int) -> None:
    stream = BagelTask(recipe(seed=seed, data={"mix": {"draw": 1.0, "edit": 1.0}})).stream
    left_out: dict[bool, list[bool]] = {True: [], False: []}
    for index in range(600):
        document = stream.source(index)
        edits = any(isinstance(part, ImagePart) and not part.target for part in document)
        sample = stream.sample(index)
        texts = sum(isinstance(segment, TextSegment) for segment in sample.segments)
        left_out[edits].append(texts == 0)
    for shares in left_out.values():
        assert 0.04 < sum(shares) / len(shares) < 0.17


def test_the_timestep_shift_is_that_of_the_recipe_or_of_the_checkpoint(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def draw(images: int, shift: float, generator: torch.Generator) -> Tensor:
        drawn.append(shift)
        return draw_timesteps(images, shift, generator)

    monkeypatch.setattr(unified, "draw_timesteps", draw)

    def shift_of(**changes: object) -> float:
        task = BagelTask(recipe(**changes))
        task.losses(task._pack(task.stream.next_batch()), torch.Generator().manual_seed(0))
        task.write_weights(folder := tmp_path / f"{len(drawn)}", dict(task.module.named_parameters()))
        assert load_config(folder).timestep_shift == drawn[-1]
        return drawn[-1]

    assert shift_of() == 1.0
    assert shift_of(timestep_shift=2.0) == 2.0
    second = {"model": None, "autoencoder": None, "init": str(tmp_path / "2"), "output": tmp_path / "other"}
    assert shift_of(**second) == 2.0
    assert shift_of(**second, timestep_shift=4.0) == 4.0


def test_the_wrong_recipe_is_refused(recipe: Make) -> None:
    with pytest.raises(RecipeError, match="either init"):
        BagelTask(recipe(init="somewhere"))
