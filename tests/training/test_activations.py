"""Activations that are computed again, and which attention a recipe may ask for."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bagel_mot.errors import DeviceError
from bagel_mot.model.attention import MaskedAttention
from bagel_mot.training.activations import attention_of, checkpoint_activations
from bagel_mot.training.objective import add_noise, compute_losses
from bagel_mot.training.recipe import BagelRecipe
from bagel_mot.training.tasks.bagel import BagelTask

Make = Callable[..., BagelRecipe]


def test_gradients_are_the_same_and_less_is_kept(recipe: Make) -> None:
    task = BagelTask(recipe())
    layout, values = task._pack(task.stream.next_batch())
    noised = add_noise(layout, values, torch.full((len(layout.latent_grids),), 0.5), torch.ones_like(values.latents))
    plain = task.module
    torch.nn.init.normal_(plain.decoder.lm_head.weight, std=0.1)
    torch.nn.init.normal_(plain.latent_out.weight, std=0.1)
    saving = copy.deepcopy(plain)
    checkpoint_activations(saving)
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

    assert backward(saving) < 0.7 * backward(plain)
    for (name, ours), theirs in zip(saving.named_parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None:
            assert ours.grad is not None, name
            assert torch.allclose(ours.grad, theirs.grad, rtol=1e-5, atol=1e-8), name


def test_flex_attention_is_refused_where_it_does_not_train() -> None:
    assert attention_of("sdpa", torch.device("cpu")) is MaskedAttention
    with pytest.raises(DeviceError, match="'flex'.*'sdpa'"):
        attention_of("flex", torch.device("cpu"))


def test_a_recipe_may_ask_for_it(recipe: Make) -> None:
    task = BagelTask(recipe(activation_checkpointing=True))
    layout, values = task._pack(task.stream.next_batch())
    noised = add_noise(layout, values, torch.full((len(layout.latent_grids),), 0.5), torch.ones_like(values.latents))
    losses = compute_losses(task.module, noised, MaskedAttention(layout))
    losses.mse.mean().backward()
    assert "checkpoint" in repr(task.module.decoder.layers[0].forward)
    assert task.module.latent_out.weight.grad is not None
