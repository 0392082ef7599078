"""Adapters train alone, with the gradients that merged weights have; a run of them is small, and is resumed exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from bagel_mot.checkpoint.adapters import WEIGHTS_FILE, read_adapter
from bagel_mot.checkpoint.official import load_checkpoint
from bagel_mot.checkpoint.side_files import ADAPTER_FILE
from bagel_mot.errors import CheckpointError, RecipeError
from bagel_mot.inference.api import Bagel
from bagel_mot.model.attention import MaskedAttention
from bagel_mot.model.lora import adapted_layers
from bagel_mot.model.quant.linear import QuantisedLinear
from bagel_mot.parallel.ranks import Ranks
from bagel_mot.training import checkpoints
from bagel_mot.training.loop import train
from bagel_mot.training.objective import add_noise
from bagel_mot.training.recipe import BagelRecipe
from bagel_mot.training.run import Run
from bagel_mot.training.tasks.bagel import BagelTask

Make = Callable[..., BagelRecipe]


class Quiet(BagelTask):
    """Without sample sheets: they are not what is tested, and take longest."""

    def write_samples(self, path: Path, checkpoint: Path) -> None:
        pass


@pytest.fixture
def base(recipe: Make, tmp_path: Path) -> Path:
    """A tiny untrained checkpoint, whose heads are not zero: else no gradient would come through."""
    task = BagelTask(recipe(output=tmp_path / "first"))
    nn.init.normal_(task.module.decoder.lm_head.weight, std=0.3)
    nn.init.normal_(task.module.latent_out.weight, std=0.3)
    task.write_weights(tmp_path / "base", task.module.state_dict())
    return tmp_path / "base"


@pytest.fixture
def lora(recipe: Make, base: Path) -> Make:
    """A recipe that trains adapters on that checkpoint."""

    def make(**changes: Any) -> BagelRecipe:
        given = {"model": None, "autoencoder": None, "init": str(base), "trainable": "lora"}
        optimizer = {"name": "adamw", "lr": 1e-2, "muon_lr": 1.0}
        return recipe(**{**given, "optimizer": optimizer, "lora": {"rank": 4, "alpha": 8}, **changes})

    return make


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def _loss(task: BagelTask, run: Callable[[Any, Any, Any], tuple[Tensor, Tensor]]) -> Tensor:
    """A sum over all outputs of a pack of the data, whatever the network is."""
    batch = task.to_device(task.pack_stream(0, 1).next_batch())
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(batch.values.latents.shape, generator=generator)
    times = torch.rand(len(batch.layout.latent_grids), generator=generator)
    noised = add_noise(batch.layout, batch.values, times, noise)
    und, gen = run(batch.layout, noised.values, MaskedAttention(batch.layout))
    return und[batch.layout.ce_slots].square().sum() + gen[batch.layout.latent_slots].square().sum()


@pytest.mark.parametrize("rslora", [False, True])
def test_gradients_are_those_of_merged_weights(lora: Make, rslora: bool) -> None:
    task = BagelTask(
        lora(lora={"rank": 4, "alpha": 8, "use_rslora": rslora, "gen": {"rank": 2, "targets": ["q", "down"]}})
    )
    torch.manual_seed(3)
    for _, layer in adapted_layers(task.module):
        nn.init.normal_(layer.factors("default")[1], std=0.2)
    _loss(task, task.module).backward()
    trained = _trained(task.module)
    # The same with W + s·B·A in the place of every adapted matrix of a model without adapters.
    plain = load_checkpoint(Path(str(task.recipe.init)), precision=torch.float32).model
    leaves = {name: p.detach().clone().requires_grad_() for name, p in trained.items()}
    merged = {}
    for place, layer in adapted_layers(task.module):
        down, up = (leaves[f"{place}.lora_{part}.default.weight"] for part in "AB")
        scale = 8 / (len(down) ** 0.5 if rslora else len(down))
        merged[f"{place}.weight"] = layer.base_layer.weight.detach() + scale * up @ down
    _loss(task, lambda *inputs: functional_call(plain, merged, inputs)).backward()
    assert len(trained) == 2 * 2 * (7 + 2)
    for name, parameter in trained.items():
        expected = leaves[name].grad
        assert parameter.grad is not None
        assert expected is not None
        assert expected.norm() > 0
        assert (parameter.grad - expected).norm() <= 1e-5 * expected.norm(), name


@pytest.mark.parametrize("base_format", ["int8", "nf4", "int4"])
def test_gradients_on_a_quantised_base_are_those_of_its_values(recipe: Make, lora: Make, base_format: str) -> None:
    """QLoRA: the frozen matrices are never trained, moved or rounded again, and let the gradient through."""
    mini = {"init": "mini", "pack": {"rows": 1}, "lora": {"rank": 2, "alpha": 8, "base": base_format}}
    task = BagelTask(lora(**mini))
    plain = BagelTask(lora(**{**mini, "lora": {"rank": 2, "alpha": 8}}))
    torch.manual_seed(4)
    for (place, layer), (_, other) in zip(adapted_layers(task.module), adapted_layers(plain.module), strict=True):
        assert isinstance(layer.base_layer, QuantisedLinear), place
        other.base_layer.weight.data.copy_(layer.base_layer.matrix.dequantise(torch.float32))
        nn.init.normal_(layer.factors("default")[1], std=0.05)
        other.factors("default")[1].data.copy_(layer.factors("default")[1])
        other.factors("default")[0].data.copy_(layer.factors("default")[0])
    for one in (task, plain):
        _loss(one, one.module).backward()
    got, expected = _trained(task.module), _trained(plain.module)
    assert got.keys() == expected.keys()
    assert all(parameter.dtype == torch.float32 for parameter in got.values())
    for name, parameter in got.items():
        other = expected[name].grad
        assert other is not None
        assert parameter.grad is not None
        # INT4's kernel for few rows rounds its activations to bfloat16.
        assert (parameter.grad - other).norm() <= (0.05 if base_format == "int4" else 1e-3) * other.norm(), name


@pytest.mark.parametrize(
    "changes",
    [{}, {"use_dora": True, "dropout": 0.1}, {"base": "int8", "experts": ["gen"]}],
    ids=["lora", "dora", "qlora"],
)
def test_a_run_trains_adapters_alone_and_its_checkpoints_are_loaded_at_once(
    lora: Make, base: Path, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    made = lora(lora={"rank": 4, "alpha": 8, **changes}, steps=4, precision="bfloat16", keep=1)
    folder = train(made, Quiet)
    names = {path.name for path in folder.iterdir()}
    assert names == {ADAPTER_FILE, WEIGHTS_FILE, checkpoints.STATE_FILE, checkpoints.STATE_FOLDER}
    assert json.loads((folder / ADAPTER_FILE).read_text())["base_model_name_or_path"] == str(base)
    config = load_checkpoint(base).config
    adapter = read_adapter(folder, config)
    assert all(matrix.up.abs().max() > 0 for place, matrix in adapter.matrices.items() if ".gen." in place)
    assert f"training {adapter.parameters:,} of " in capsys.readouterr().out
    state = checkpoints.load_latest(made.output)
    assert state is not None
    kept, averages = ([t for n, t in state.items() if n.startswith(kind)] for kind in ("module.", "ema."))
    assert len(kept) == len(averages) == (3 if adapter.dora else 2) * len(adapter.matrices)
    assert all(tensor.dtype == torch.float32 for tensor in kept)
    # The averaged adapters are what is written.
    average = state["ema.decoder.layers.0.gen.q.lora_B.default.weight"]
    assert torch.equal(adapter.matrices["decoder.layers.0.gen.q"].up, average.bfloat16().float())
    for place in (folder, made.output):
        bagel = Bagel.from_pretrained(base, adapters=[place])
        assert bagel.adapters == {"run": 1.0}


def test_a_run_is_resumed_exactly(lora: Make, tmp_path: Path) -> None:
    changes = {"steps": 4, "lora": {"rank": 4, "alpha": 8, "use_dora": True, "dropout": 0.1, "base": "int8"}}
    whole, parts = lora(output=tmp_path / "whole", **changes), lora(output=tmp_path / "parts", **changes)
    train(whole, Quiet)
    for stop_after in (1, 2, None):
        train(parts, Quiet, stop_after=stop_after)
    runs = [Run(made, Quiet) for made in (whole, parts)]
    for get in (lambda run: run.task.kept_tensors(), lambda run: run.ema.average):
        expected, got = (get(run) for run in runs)
        assert expected.keys() == got.keys()
        assert [name for name in expected if not torch.equal(expected[name], got[name])] == []
    with pytest.raises(RecipeError, match=r"lora.rank was 4 and is now 8"):
        train(lora(output=tmp_path / "parts", **{**changes, "lora": {**changes["lora"], "rank": 8}}), Quiet)


def test_layers_that_are_computed_again_drop_the_same(lora: Make) -> None:
    gradients = []
    for again in ("none", "full"):
        task = BagelTask(lora(lora={"rank": 4, "dropout": 0.5}, parallel={"activation_checkpoint": again}))
        task.parallelise(Ranks.alone())
        torch.manual_seed(3)
        for _, layer in adapted_layers(task.module):
            nn.init.normal_(layer.factors("default")[1], std=0.2)
        batch = task.to_device(task.pack_stream(0, 1).next_batch())
        losses = task.losses(batch, torch.Generator().manual_seed(7))
        (losses["ce"] + losses["mse"]).backward()
        gradients.append([p.grad for p in _trained(task.module).values()])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_experts_have_ranks_and_learning_rates_of_their_own(lora: Make) -> None:
    made = lora(
        lora={"rank": 4, "alpha": 8, "und": {"rank": 2, "alpha": 1, "targets": ["q", "v"]}},
        optimizer={"name": "adamw", "lr": 1e-2, "muon_lr": 1.0, "lr_of": {"und": 1e-9}},
        steps=2,
    )
    adapter = read_adapter(train(made, Quiet), load_checkpoint(str(made.init)).config)
    und, gen = ({p: m for p, m in adapter.matrices.items() if f".{expert}." in p} for expert in ("und", "gen"))
    assert {(m.rank, m.alpha) for m in und.values()} == {(2, 1.0)}
    assert {(m.rank, m.alpha) for m in gen.values()} == {(4, 8.0)}
    assert {place.rpartition(".")[2] for place in und} == {"q", "v"}
    assert max(m.up.abs().max() for m in und.values()) < 1e-7 < min(m.up.abs().max() for m in gen.values())


def test_a_run_goes_on_from_an_adapter(lora: Make, tmp_path: Path) -> None:
    first = train(lora(output=tmp_path / "one", steps=2), Quiet)
    begun = Quiet(lora(output=tmp_path / "two", lora={"rank": 4, "alpha": 8, "init": str(first)}))
    adapter = read_adapter(first, begun.config)
    for place, layer in adapted_layers(begun.module):
        down, up = layer.factors("default")
        assert torch.equal(down, adapter.matrices[place].down)
        assert torch.equal(up, adapter.matrices[place].up)
    with pytest.raises(RecipeError, match=r"^lora.init: the adapter in .* is not what this recipe trains: the rank of"):
        Quiet(lora(output=tmp_path / "two", lora={"rank": 8, "init": str(first)}))
    with pytest.raises(CheckpointError, match=r"is not an adapter: there is no such folder"):
        Quiet(lora(output=tmp_path / "two", lora={"init": str(tmp_path / "nothing")}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainable": ["lora", "connector"]}, r"lora trains adapters alone, beside nothing else"),
        ({"trainable": "gen"}, r"lora is what `trainable: lora` trains; trainable is \['gen'\]"),
        ({"optimizer": {"name": "muon"}}, r"trainable is lora: optimizer.name must be 'adamw', not 'muon'"),
        ({"autoencoder": "mini"}, r"trainable is lora: adapters use the autoencoder of init"),
        ({"lora": 5}, r"lora is 5; it must be a section with keys of its own"),
        ({"lora": {"experts": []}}, r"lora.experts is \[\]; it must be a list of und and gen"),
        ({"lora": {"targets": ["q_proj"]}}, r"lora.targets is \['q_proj'\]; it must be a list of q, k, v, o, gate, up"),
        ({"lora": {"experts": ["gen"], "und": {"rank": 2}}}, r"und changes adapters of an expert that has none"),
        ({"lora": {"rank": 0}}, r"lora.rank is 0; it must be a whole number from 1"),
        ({"lora": {"base": "gguf"}}, r"lora.base is 'gguf'"),
        ({"lora": {"alhpa": 3}}, r"alhpa is not known; did you mean alpha"),
    ],
)
def test_what_does_not_go_together_is_refused(lora: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        lora(**changes)


def test_one_expert_and_one_matrix_need_no_list(lora: Make) -> None:
    adapters = lora(lora={"experts": "und", "targets": "q"}).adapters
    assert (adapters.experts, adapters.targets) == (("und",), ("q",))


def test_a_new_model_has_no_adapters(recipe: Make) -> None:
    with pytest.raises(RecipeError, match=r"trainable is lora: adapters belong to a trained model"):
        recipe(trainable="lora", optimizer={"name": "adamw"})
