"""Parameters that a recipe freezes stay as they are, and take no part in averages, moments and states."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bagel_mot.checkpoint.official import load_checkpoint
from bagel_mot.errors import RecipeError
from bagel_mot.training import checkpoints
from bagel_mot.training.loop import train
from bagel_mot.training.optimizer import OptimizerConfig, Optimizers
from bagel_mot.training.recipe import BagelRecipe
from bagel_mot.training.run import Run
from bagel_mot.training.tasks.bagel import BagelTask
from bagel_mot.training.trainable import select_trainable

Make = Callable[..., BagelRecipe]
CONNECTOR = {f"connector.{name}.{kind}" for name in ("fc1", "fc2") for kind in ("weight", "bias")}


def _trainable(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def test_patterns_are_matched_against_both_names() -> None:
    module = nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)})
    official = {"a.weight": "x.y.weight", "a.bias": "x.y.bias", "b.weight": "z.weight", "b.bias": "z.bias"}.__getitem__
    for patterns, expected in (
        (["a.*"], {"a.weight", "a.bias"}),
        (["x.y.*"], {"a.weight", "a.bias"}),
        (["*.bias", "z.weight"], {"a.bias", "b.bias", "b.weight"}),
        (["*"], {"a.weight", "a.bias", "b.weight", "b.bias"}),
    ):
        select_trainable(module, patterns, official)
        assert _trainable(module) == expected


@pytest.mark.parametrize(
    ("preset", "inside", "outside"),
    [
        (
            "gen",
            ["decoder.layers.1.gen.down.weight", "latent_in.bias", "time_embedding.fc1.weight"],
            "decoder.layers.0.und.",
        ),
        ("und", ["decoder.layers.0.und.q.bias", "decoder.lm_head.weight", "decoder.norm.weight"], "decoder.norm_gen."),
        ("connector", ["connector.fc1.weight"], "vit."),
        ("vit", ["vit.post_norm.weight"], "connector."),
    ],
)
def test_presets_are_parts_of_the_model(recipe: Make, preset: str, inside: list[str], outside: str) -> None:
    task = BagelTask(recipe(trainable=preset))
    found = _trainable(task.module)
    assert set(inside) <= found
    assert not [name for name in found if name.startswith(outside)]


def test_presets_together_are_the_whole_model(recipe: Make) -> None:
    task = BagelTask(recipe(trainable=["und", "gen", "vit", "connector"]))
    assert all(parameter.requires_grad for parameter in task.module.parameters())


def test_parts_have_learning_rates_of_their_own() -> None:
    module = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("a", "b", "c")})
    config = OptimizerConfig(lr=0.1, lr_of={"a.*": 0.01, "a.bias": 0.5, "x.c.*": 0.2}, eps=1e-12)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    optimizers = Optimizers(module.named_parameters(), config, lambda name: f"x.{name}")
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizers.step(0.5)  # AdamW's first step is its learning rate, whatever the gradient
    moved = {name: float((before[name] - p.detach()).mean()) for name, p in module.named_parameters()}
    rates = {"a.weight": 0.01, "a.bias": 0.5, "b.weight": 0.1, "b.bias": 0.1, "c.weight": 0.2, "c.bias": 0.2}
    assert moved == pytest.approx({name: 0.5 * rate for name, rate in rates.items()}, rel=1e-3)
    other = Optimizers(module.named_parameters(), config, lambda name: f"x.{name}")
    moments = optimizers.tensors()
    room = other.make_room({name: (moment.shape, moment.dtype) for name, moment in moments.items()})
    assert room.keys() == moments.keys() == other.tensors().keys()
    assert [group["lr"] for part in other.optimizers for group in part.param_groups] == [0.01, 0.5, 0.1, 0.2]
    with pytest.raises(RecipeError, match=r"^optimizer.lr_of: no parameter matches 'd.\*'"):
        Optimizers(module.named_parameters(), OptimizerConfig(lr_of={"d.*": 1.0}))


def test_a_pattern_that_matches_nothing_is_refused_with_what_was_meant(recipe: Make) -> None:
    with pytest.raises(RecipeError, match=r"^trainable: no parameter matches 'conector.\*'; did you mean connector.\*"):
        BagelTask(recipe(trainable=["latent_in.*", "conector.*"]))


@pytest.fixture
def stage(recipe: Make, tmp_path: Path) -> Callable[..., BagelRecipe]:
    """A recipe for training the connector alone, by its official name, on a model whose weights are not in bfloat16."""
    first = BagelTask(recipe(output=tmp_path / "first"))
    torch.nn.init.normal_(first.module.decoder.lm_head.weight, std=0.3)  # zero at first, which lets no gradient through
    scaled = {n: p.detach() * 1.01 for n, p in first.module.named_parameters()}
    first.write_weights(tmp_path / "first", {**first.module.state_dict(), **scaled})

    def make(**changes: Any) -> BagelRecipe:
        given = {"model": None, "autoencoder": None, "init": str(tmp_path / "first"), "trainable": ["connector.*"]}
        return recipe(**{**given, "data": {"mix": {"ask": 1.0}}, "steps": 4, "ema": 0.5, **changes})

    return make


def test_a_stage_of_the_connector_changes_only_the_connector(
    stage: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = stage()
    folder = train(made, BagelTask)
    before, after = (load_checkpoint(where, precision=torch.float32).model for where in (tmp_path / "first", folder))
    changed = {n for (n, p), q in zip(before.named_parameters(), after.parameters(), strict=True) if not p.equal(q)}
    assert changed == CONNECTOR
    state = checkpoints.load_latest(made.output)
    assert state is not None

    def names(kind: str) -> set[str]:
        return {name.removeprefix(kind) for name in state if name.startswith(kind)}

    assert names("ema.") == CONNECTOR
    assert names("module.") == CONNECTOR | {"latent_pos_embed", "vit_pos_embed"}
    assert {name.rpartition(".")[0] for name in names("optimizer.")} == CONNECTOR
    trained = sum(p.numel() for n, p in after.named_parameters() if n in CONNECTOR)
    whole = sum(p.numel() for p in after.parameters())
    assert f"training {trained:,} of {whole:,} parameters" in capsys.readouterr().out


def test_a_stage_is_resumed_exactly(stage: Make, tmp_path: Path) -> None:
    whole, parts = stage(output=tmp_path / "whole"), stage(output=tmp_path / "parts")
    train(whole, BagelTask)
    for stop_after in (1, 2, None):
        train(parts, BagelTask, stop_after=stop_after)
    runs = [Run(made, BagelTask) for made in (whole, parts)]
    for get in (lambda run: run.task.module.state_dict(), lambda run: run.ema.average):
        expected, got = (get(run) for run in runs)
        assert expected.keys() == got.keys()
        assert [name for name in expected if not torch.equal(expected[name], got[name])] == []
    with pytest.raises(RecipeError, match=r"trainable was \['connector.\*'\] and is now \['\*'\]"):
        train(stage(output=tmp_path / "parts", trainable=["*"]), BagelTask)


def test_weights_that_stay_train_the_others_as_they_are_written(stage: Make) -> None:
    """Rounded, as in a checkpoint: the same model is trained before and after a resumption."""
    task = BagelTask(stage())
    frozen: dict[str, Tensor] = {n: p for n, p in task.module.named_parameters() if n not in CONNECTOR}
    assert all(torch.equal(p, p.bfloat16().float()) for p in frozen.values())
