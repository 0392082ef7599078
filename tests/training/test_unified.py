"""Packs of every kind train, and accumulation gives what one large pack would."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bagel.data.packer import RawPack
from bagel.model.attention import MaskedAttention
from bagel.sequence import PackedSequence
from bagel.training.objective import add_noise, compute_losses
from bagel.training.optimizer import Optimizers
from bagel.training.recipe import BagelRecipe
from bagel.training.unified import BagelTask

Make = Callable[..., BagelRecipe]


def _samples(task: BagelTask, wanted: Callable[[object], bool], count: int) -> list[object]:
    found = []
    index = 0
    while len(found) < count:
        sample = task.stream.sample(index)
        if wanted(sample):
            found.append(sample)
        index += 1
    return found


def _loss(task: BagelTask, packs: list[PackedSequence], noise: list[Tensor], times: list[Tensor]) -> Tensor:
    """The loop's normalisation, with given noise."""
    totals = {name: sum(task.counts(p)[name] for p in packs) for name in ("ce", "mse")}
    whole = torch.zeros(())
    for packed, n, t in zip(packs, noise, times, strict=True):
        noised = add_noise(packed, t, n)
        losses = compute_losses(task.module, noised, MaskedAttention(noised.packed))
        whole = whole + losses.ce_sum(False) / totals["ce"] + losses.mse_sum() / totals["mse"]
    return whole


def test_accumulation_is_one_large_pack(recipe: Make) -> None:
    task = BagelTask(recipe(pack={"rows": 4}))
    raw = task.stream.next_batch()
    whole = task._pack(raw)
    halves = [task._pack(RawPack(raw.rows[:2])), task._pack(RawPack(raw.rows[2:]))]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(whole.latents.shape, generator=generator)
    times = torch.rand(len(whole.latent_grids), generator=generator)
    cut, pictures = len(halves[0].latents), len(halves[0].latent_grids)
    torch.nn.init.normal_(task.module.decoder.lm_head.weight, std=0.1)
    torch.nn.init.normal_(task.module.latent_out.weight, std=0.1)
    gradients = []
    for packs, ns, ts in (
        ([whole], [noise], [times]),
        (halves, [noise[:cut], noise[cut:]], [times[:pictures], times[pictures:]]),
    ):
        task.module.zero_grad()
        _loss(task, packs, ns, ts).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in task.module.parameters() if p.grad is not None]))
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "mix",
    [
        {"draw": 1.0},  # no ViT picture, no text loss
        {"ask": 1.0},  # no VAE picture
        {"edit": 1.0},
        {"think_answer": 1.0},
    ],
    ids=lambda mix: next(iter(mix)),
)
def test_packs_without_some_kind_of_token_train(recipe: Make, mix: dict[str, float]) -> None:
    made = recipe(data={"mix": mix}, dropout={"text": 0.0, "vit": 0.0, "vae": 0.0})
    task = BagelTask(made)
    before = {name: p.clone() for name, p in task.module.named_parameters()}
    optimizers = Optimizers(task.module.named_parameters(), made.optimizer)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        batch = task._pack(task.stream.next_batch())
        sums, counts = task.losses(batch, generator), task.counts(batch)
        loss = sum(sums[name] / max(counts[name], 1.0) for name in sums)
        assert torch.isfinite(loss)
        loss.backward()
        assert torch.isfinite(torch.tensor(optimizers.step(1.0)))
    moved = {name for name, p in task.module.named_parameters() if not torch.equal(p, before[name])}
    assert any(".und." in name for name in moved)


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
        packed = task._pack(RawPack(rows))  # type: ignore[arg-type]
        times = torch.full((len(packed.latent_grids),), 0.5)
        noise = torch.ones_like(packed.latents)
        noised = add_noise(packed, times, noise)
        losses = compute_losses(task.module, noised, MaskedAttention(noised.packed))
        return losses.ce.detach(), losses.mse.detach()

    together = predictions([samples])
    alone = [predictions([[sample]]) for sample in samples]
    for which in (0, 1):
        joined = torch.cat([part[which] for part in alone])
        assert torch.allclose(together[which], joined, rtol=1e-4, atol=1e-5)


def test_the_wrong_recipe_is_refused(recipe: Make) -> None:
    from bagel.errors import RecipeError

    with pytest.raises(RecipeError, match="either init"):
        BagelTask(recipe(init="somewhere"))
