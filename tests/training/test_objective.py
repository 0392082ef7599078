"""Losses in chunks, activations that are computed again, and which attention a recipe may ask for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bagel_mot.errors import DeviceError
from bagel_mot.model.attention import MaskedAttention
from bagel_mot.model.segment_attention import SegmentAttention
from bagel_mot.parallel.activations import checkpoint_activations
from bagel_mot.parallel.ranks import Ranks
from bagel_mot.training import objective
from bagel_mot.training.objective import (
    Losses,
    add_noise,
    attention_of,
    compute_losses,
    cross_entropy,
)
from bagel_mot.training.recipe import BagelRecipe
from bagel_mot.training.tasks.bagel import BagelTask

Make = Callable[..., BagelRecipe]


@pytest.mark.parametrize(("kind", "share"), [("full", 0.7), ("selective", 0.85)])
def test_gradients_are_the_same_and_less_is_kept(recipe: Make, kind: str, share: float) -> None:
    task = BagelTask(recipe())
    batch = task.to_device(task.pack_stream(0, 1).next_batch())
    layout, values = batch.layout, batch.values
    noised = add_noise(layout, values, torch.full((len(layout.latent_grids),), 0.5), torch.ones_like(values.latents))
    plain = task.module
    torch.nn.init.normal_(plain.decoder.lm_head.weight, std=0.1)
    torch.nn.init.normal_(plain.latent_out.weight, std=0.1)
    saving = copy.deepcopy(plain)
    checkpoint_activations(saving.decoder.layers, kind)
    assert plain.state_dict().keys() == saving.state_dict().keys()

    def backward(model: torch.nn.Module) -> int:
        kept = [0]

        def note(tensor: Tensor) -> Tensor:
            kept[0] += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            losses = compute_losses(model, noised, MaskedAttention(layout))  # type: ignore[arg-type]
            total = losses.ce.mean() + losses.mse.mean()
        total.backward()
        return kept[0]

    assert backward(saving) < share * backward(plain)
    for (name, ours), theirs in zip(saving.named_parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None:
            assert ours.grad is not None, name
            assert torch.allclose(ours.grad, theirs.grad, rtol=1e-5, atol=1e-8), name


@pytest.mark.parametrize(("device", "made"), [("cpu", SegmentAttention), ("cuda", MaskedAttention)])
def test_the_cpu_attends_by_segments(device: str, made: type) -> None:
    found = attention_of("sdpa", torch.device(device), torch.float32)
    assert found.func is made  # type: ignore[attr-defined]


def test_flex_attention_is_refused_where_it_does_not_train() -> None:
    with pytest.raises(DeviceError, match="'flex'.*'sdpa'"):
        attention_of("flex", torch.device("cpu"), torch.float32)


def test_a_recipe_may_ask_for_it(recipe: Make) -> None:
    task = BagelTask(recipe(parallel={"activation_checkpoint": "full"}))
    task.parallelise(Ranks.alone())
    batch = task.to_device(task.pack_stream(0, 1).next_batch())
    layout, values = batch.layout, batch.values
    noised = add_noise(layout, values, torch.full((len(layout.latent_grids),), 0.5), torch.ones_like(values.latents))
    losses = compute_losses(task.module, noised, MaskedAttention(layout))
    losses.mse.mean().backward()
    assert "checkpoint" in repr(task.module.decoder.layers[0].forward)
    assert task.module.latent_out.weight.grad is not None


class Largest(TorchDispatchMode):
    """Notes the most numbers of any tensor with a column for each word, but the head's own matrix."""

    def __init__(self, head: Tensor) -> None:
        super().__init__()
        (self.words, self.width), self.numbers = head.shape, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            logits = isinstance(tensor, Tensor) and tensor.ndim == 2 and tensor.shape[1] == self.words
            if logits and tensor.shape[0] != self.width:
                self.numbers = max(self.numbers, tensor.numel())
        return made


@pytest.mark.parametrize("reweight", [False, True])
@pytest.mark.parametrize("targets", [1, 64, 65, 200])
def test_cross_entropy_in_chunks_is_that_of_all_logits(recipe: Make, reweight: bool, targets: int) -> None:
    """Values and gradients, with the logits of 64 targets at a time."""
    model = BagelTask(recipe()).module
    torch.nn.init.normal_(model.decoder.lm_head.weight, std=0.3)
    words, width = model.decoder.lm_head.weight.shape
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(targets, width, generator=generator, requires_grad=True)
    labels = torch.randint(words, (targets,), generator=generator)
    weights = torch.rand(targets, generator=generator)
    found = []
    for chunk in (targets, 64):
        model.zero_grad()
        hidden.grad = None
        with Largest(model.decoder.lm_head.weight) as seen:
            ce = cross_entropy(model, hidden, labels, chunk)
            Losses(ce, torch.zeros(0, 4), weights).ce_sum(reweight).backward()
        assert seen.numbers == min(chunk, targets) * words
        assert hidden.grad is not None
        parameters = (model.decoder.lm_head.weight, model.decoder.norm.weight)
        found.append([ce.detach(), hidden.grad.clone(), *(p.grad.clone() for p in parameters if p.grad is not None)])
    assert torch.allclose(found[0][0], F.cross_entropy(model.logits(hidden), labels, reduction="none"), atol=1e-6)
    for whole, chunked in zip(*found, strict=True):
        assert (whole - chunked).abs().max() <= 1e-6 * max(1.0, float(whole.abs().max()))


def test_a_loss_in_chunks_is_the_objectives(recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    task = BagelTask(recipe(data={"mix": {"ask": 1.0}}))
    torch.nn.init.normal_(task.module.decoder.lm_head.weight, std=0.3)
    batch = task.to_device(task.pack_stream(0, 1).next_batch())
    assert batch.counts["ce"] > 8
    expected = task.losses(batch, torch.Generator().manual_seed(0))
    whole = cross_entropy
    monkeypatch.setattr(objective, "cross_entropy", lambda *args: whole(*args, chunk=8))
    with Largest(task.module.decoder.lm_head.weight) as seen:
        got = task.losses(batch, torch.Generator().manual_seed(0))
    assert seen.numbers == 8 * seen.words
    assert torch.allclose(got["ce"], expected["ce"], rtol=1e-6)
    assert torch.equal(got["mse"], expected["mse"])
