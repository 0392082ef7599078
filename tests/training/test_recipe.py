"""Recipes: what is refused and how, what a begun run may change, and that those in recipes/ lead to one another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bagel_mot.errors import RecipeError
from bagel_mot.training.recipe import AutoencoderRecipe, BagelRecipe, load_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
BAGEL = next(path for path in RECIPES if path.stem == "mini-bagel")
AUTOENCODER = next(path for path in RECIPES if path.stem == "mini-autoencoder")


@pytest.mark.parametrize(
    ("path", "override", "message"),
    [
        (AUTOENCODER, "optimizer.betas=[1.5,0.9]", r"optimizer.betas.0: .*less than 1 \(given: 1.5\)"),
        (AUTOENCODER, "optimizer.lr=.inf", r"optimizer.lr: .*finite number"),
        (AUTOENCODER, "model.z_channels=0", r"model.z_channels: .*greater than 0 \(given: 0\)"),
        (AUTOENCODER, "model.ch_mult=[]", r"model.ch_mult: .*at least 1 item"),
        (AUTOENCODER, "model.ch_mult=[1,0]", r"model.ch_mult.1: .*greater than 0"),
        (AUTOENCODER, "model.ch=0", r"model.ch: .*greater than 0"),
        (AUTOENCODER, "model.num_res_blocks=0", r"model.num_res_blocks: .*greater than 0"),
        (AUTOENCODER, "side=100", r": side: picture side is 100; it must be a multiple of 64"),
        (AUTOENCODER, "seed=-1", r"seed: .*greater than or equal to 0"),
        (AUTOENCODER, "seed=36893488147419103232", r"seed: .*less than"),
        (AUTOENCODER, "kind=[bagel]", r"kind is \['bagel'\]"),
        (BAGEL, "model.decoder.num_heads=0", r"model.decoder.num_heads: .*greater than 0"),
        (BAGEL, "model.decoder.num_heads=3", r"model.decoder: hidden_size is 256, .*twice num_heads, 3"),
        (BAGEL, "model.decoder.num_heads=256", r"model.decoder: hidden_size is 256, .*twice num_heads, 256"),
        (BAGEL, "model.decoder.num_kv_heads=3", r"model.decoder: num_heads is 4, .*multiple of num_kv_heads, 3"),
        (BAGEL, "model.decoder.hidden_size=250", r"model.decoder.hidden_size: .*multiple of 4"),
        (BAGEL, "model.decoder.num_layers=0", r"model.decoder.num_layers: .*greater than 0"),
        (BAGEL, "model.vit.hidden_size=0", r"model.vit.hidden_size: .*greater than 0"),
        (BAGEL, "model.vit.num_heads=5", r"model.vit: hidden_size is 192, .*multiple of num_heads, 5"),
        (BAGEL, "model.vit.patch_size=0", r"model.vit.patch_size: .*greater than 0"),
        (BAGEL, "model.max_latent_size=0", r"model.max_latent_size: .*greater than 0"),
        (BAGEL, "model.timestep_shift=1", r"model.timestep_shift: Extra"),
        (BAGEL, "timestep_shift=0", r"timestep_shift: .*greater than 0"),
        (BAGEL, "data.side=32", r"data.side: picture side is 32; it must be a multiple of 64"),
        (BAGEL, "data.mix.sing=1", r"data.mix: the mix names sing; the tasks are draw"),
        (BAGEL, "data.mix.draw=-1", r"data.mix: .*weights must be 0 or more"),
        (BAGEL, "data.mix={draw: 0}", r"data.mix: .*one above 0"),
        (BAGEL, "data.mix.draw=.nan", r"data.mix.draw: .*finite number"),
    ],
    ids=lambda value: value if isinstance(value, str) and "=" in value else "",
)
def test_a_value_out_of_range_is_refused_in_a_sentence_that_names_its_key(
    path: Path, override: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path, [override])
    assert "\n" not in str(caught.value)
    assert "Value error" not in str(caught.value)


def test_a_file_that_is_not_yaml_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("steps: [1\nkind: autoencoder\n")
    with pytest.raises(RecipeError, match="broken.yaml could not be read as a YAML recipe") as caught:
        load_recipe(tmp_path / "broken.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "override"),
    [
        (AUTOENCODER, "seed=9"),
        (AUTOENCODER, "init=mini"),
        (AUTOENCODER, "freeze_encoder=true"),
        (AUTOENCODER, "side=128"),
        (AUTOENCODER, "batch_size=8"),
        (AUTOENCODER, "model.ch_mult=[1,2]"),
        (BAGEL, "autoencoder=mini"),
        (BAGEL, "model.vit.num_layers=2"),
        (BAGEL, "data.side=128"),
        (BAGEL, "data.target_copies=1"),
        (BAGEL, "data.mix.draw=0.5"),
        (BAGEL, "data.mix={draw: 1}"),
        (BAGEL, "pack.buffer=1"),
        (BAGEL, "dropout.vit=0.5"),
        (BAGEL, "optimizer.name=adamw"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_begun_run_cannot_change_is_refused(path: Path, override: str) -> None:
    begun = load_recipe(path)
    key = "data.mix" if override.startswith("data.mix") else override.partition("=")[0]
    with pytest.raises(RecipeError, match=rf"begun with another recipe \({key} was .* and is now .*\): "):
        load_recipe(path, [override]).check_resumes(begun.stored())
    load_recipe(path).check_resumes(begun.stored())


def test_a_run_of_another_kind_is_refused() -> None:
    with pytest.raises(RecipeError, match="kind was 'bagel' and is now 'autoencoder'"):
        load_recipe(AUTOENCODER).check_resumes(load_recipe(BAGEL).stored())


@pytest.mark.parametrize(
    ("path", "overrides"),
    [
        (AUTOENCODER, ["l1_weight=2", "mse_weight=2", "peak_weight=2", "kl_weight=2", "latent_noise=1"]),
        (AUTOENCODER, ["thing_weight=9", "output=elsewhere", "keep=9", "ema=0.5"]),
        (BAGEL, ["steps=9", "accumulate=2", "precision=float32", "device=cpu", "compile=false", "threads=1"]),
        (BAGEL, ["optimizer.lr=1", "optimizer.muon_lr=1", "optimizer.eps=1", "optimizer.betas=[0,0]"]),
        (BAGEL, ["schedule.name=constant", "schedule.warmup=7", "log_every=3", "save_every=3", "sample_every=3"]),
        (BAGEL, ["ce_weight=9", "mse_weight=9", "ce_reweight=true", "timestep_shift=2"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_a_begun_run_may_change_is_taken(path: Path, overrides: list[str]) -> None:
    load_recipe(path, overrides).check_resumes(load_recipe(path).stored())


def test_keys_that_a_stored_recipe_lacks_or_has_beyond_are_not_compared() -> None:
    stored = load_recipe(BAGEL).stored()
    older: dict[str, Any] = {**stored, "gone": 1, "model": {**stored["model"], "gone": 1}}
    del older["dropout"], older["model"]["max_latent_size"]
    load_recipe(BAGEL, ["dropout.vit=0.5", "model.max_latent_size=9"]).check_resumes(older)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_what_a_recipe_starts_from_is_the_output_of_another(path: Path) -> None:
    outputs = {str(load_recipe(other).output) for other in RECIPES if other != path}
    recipe = load_recipe(path)
    assert isinstance(recipe, AutoencoderRecipe | BagelRecipe)
    sources = [recipe.init, recipe.autoencoder] if isinstance(recipe, BagelRecipe) else [recipe.init]
    assert {source for source in sources if source is not None} <= {*outputs, "mini"}
