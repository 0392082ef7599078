"""Recipes: what is refused and how, what a begun run may change, and that the packaged ones lead to one another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bagel_mot.errors import RecipeError
from bagel_mot.training.packaged import find_recipe, packaged_recipes
from bagel_mot.training.profiles import load_recipe
from bagel_mot.training.recipe import AutoencoderRecipe, BagelRecipe, compute_dtype
from bagel_mot.training.recipe_files import RecipeFile

RECIPES = [recipe.path for recipe in packaged_recipes().values()]
FURTHER = next(path for path in RECIPES if path.stem == "mini-bagel-further")
BAGEL = next(path for path in RECIPES if path.stem == "mini-bagel")
AUTOENCODER = next(path for path in RECIPES if path.stem == "mini-autoencoder")


@pytest.mark.parametrize(
    ("path", "override", "message"),
    [
        (AUTOENCODER, "optimizer.betas=[1.5,0.9]", r": optimizer.betas.0 is 1.5; it must be a number from 0 to less"),
        (AUTOENCODER, "optimizer.lr=.inf", r": optimizer.lr is inf; it must be a number above 0$"),
        (AUTOENCODER, "optimizer.lr=fast", r": optimizer.lr is 'fast'; it must be a number above 0$"),
        (AUTOENCODER, "optimizer.name=sgd", r": optimizer.name is 'sgd'; it must be 'adamw' or 'muon'$"),
        (AUTOENCODER, "compile=maybe", r": compile is 'maybe'; it must be true or false$"),
        (AUTOENCODER, "model.z_channels=0", r": model.z_channels is 0; it must be a whole number from 1"),
        (AUTOENCODER, "model.ch_mult=[]", r": model.ch_mult is \[\]; it must be a list of whole numbers above 0$"),
        (AUTOENCODER, "model.ch_mult=[1,0]", r": model.ch_mult is \[1, 0\]; it must be a list of whole numbers"),
        (AUTOENCODER, "model.ch=0", r": model.ch is 0; it must be a whole number from 1"),
        (AUTOENCODER, "model.num_res_blocks=0", r": model.num_res_blocks is 0; it must be a whole number"),
        (AUTOENCODER, "data.side=100", r": data: picture side is 100; it must be a multiple of 64"),
        (AUTOENCODER, "mask_weight=0.5", r": mask_weight is 0.5; it must be a number of 1 or more$"),
        (AUTOENCODER, "seed=-1", r": seed is -1; it must be a whole number from 0 to"),
        (AUTOENCODER, "seed=36893488147419103232", r": seed is 36893488147419103232; it must be a whole number"),
        (AUTOENCODER, "steps=", r": steps is missing; it must be a whole number from 1"),
        (AUTOENCODER, "kind=[bagel]", r": kind is \['bagel'\]; did you mean bagel\?$"),
        (AUTOENCODER, "kind=autoencode", r": kind is 'autoencode'; did you mean autoencoder\?$"),
        (BAGEL, "model.decoder.num_heads=0", r": model.decoder.num_heads is 0; it must be a whole number from 1"),
        (
            BAGEL,
            "model.decoder.num_heads=6",
            r": model.decoder: hidden_size is 256; it must be a multiple of num_heads",
        ),
        (BAGEL, "model.decoder.num_heads=256", r": model.decoder: head_dim is 1; rotary embeddings need an even one$"),
        (BAGEL, "model.decoder.num_kv_heads=3", r": model.decoder: num_heads is 4; it must be a multiple of num_kv_h"),
        (BAGEL, "model.decoder.hidden_size=250", r": model.decoder: hidden_size is 250; it must be a multiple of num"),
        (BAGEL, "model.decoder.num_layers=0", r": model.decoder.num_layers is 0; it must be a whole number"),
        (BAGEL, "model.decoder.num_layer=2", r": model.decoder: num_layer is not known; did you mean num_layers\?$"),
        (BAGEL, "model.decoder.vocab_size=300", r": model: decoder.vocab_size is 300; it must be above 300"),
        (BAGEL, "model.vit.hidden_size=0", r": model.vit.hidden_size is 0; it must be a whole number"),
        (BAGEL, "model.vit.num_heads=5", r": model.vit: hidden_size is 192; it must be a multiple of num_heads, 5$"),
        (BAGEL, "model.vit.patch_size=0", r": model.vit.patch_size is 0; it must be a whole number"),
        (BAGEL, "model.max_latent_size=0", r": model.max_latent_size is 0; it must be a whole number"),
        (BAGEL, "model.timestep_shift=1", r": model: timestep_shift is not known; "),
        (BAGEL, "stepz=7", r": stepz is not known; did you mean steps\?$"),
        (BAGEL, "timestep_shift=0", r": timestep_shift is 0; it must be a number above 0$"),
        (BAGEL, "trainable=5", r": trainable is 5; it must be all, und, gen, vit, connector, lora, or a list of these"),
        (BAGEL, "dropout.vit=2", r": dropout.vit is 2; it must be a number from 0 to 1$"),
        (BAGEL, "pack.und=0", r": pack.und is 0; it must be a whole number from 1"),
        (BAGEL, "data=3", r": data: it is 3; it must be a section with a kind, one of folder, "),
        (BAGEL, "data.kind=minni", r": data: kind is 'minni', which no source of data has; did you mean mini\?$"),
        (BAGEL, "data.kind=", r": data: kind is None, which no source of data has; "),
        (BAGEL, "data.sied=64", r": data: sied is not known; did you mean side\?$"),
        (BAGEL, "data.side=32", r": data: picture side is 32; it must be a multiple of 64"),
        (BAGEL, "data.mix.sing=1", r": data: the mix names sing; the tasks are draw"),
        (BAGEL, "data.mix.draw=-1", r": data.mix.draw is -1; it must be a number of 0 or more$"),
        (BAGEL, "data.mix={draw: 0}", r": data: .*one above 0"),
        (BAGEL, "data.mix.draw=.nan", r": data.mix.draw is nan; it must be a number of 0 or more$"),
        (BAGEL, "init=mini", r": either init .* or model .* is needed, and not both$"),
        (BAGEL, "model=", r": either init .* or model .* is needed, and not both$"),
        (BAGEL, "autoencoder=", r": a new model needs autoencoder: "),
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
        (FURTHER, "init=elsewhere"),
        (AUTOENCODER, "trainable=[encoder.*]"),
        (AUTOENCODER, "data.side=128"),
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


def test_numbers_may_be_written_as_elsewhere(tmp_path: Path) -> None:
    """YAML alone takes 1e-3 for a text."""
    path = tmp_path / "recipe.yaml"
    path.write_text(AUTOENCODER.read_text().replace("lr: 1.0e-3", "lr: 2e-3"))
    assert load_recipe(path).optimizer.lr == 2e-3
    assert load_recipe(path, ["optimizer.lr=4E-2", "optimizer.eps=1e-9"]).optimizer.lr == 4e-2


@pytest.mark.parametrize("name", ["2026-11-28", "20261128", "007", "1e5", "0x1f", "true", "12:30:00", "a: b", "[x]"])
def test_names_stay_as_they_are_written(tmp_path: Path, name: str) -> None:
    loaded = load_recipe(FURTHER, [f"output={name}", f"init={name}"])
    assert (loaded.output, loaded.init) == (Path(name), name)
    if name.isascii() and not set(name) & set(":["):
        path = tmp_path / "recipe.yaml"
        path.write_text(FURTHER.read_text().replace("output: runs/mini-bagel-further", f"output: {name}"))
        assert load_recipe(path).output == Path(name)
    with pytest.raises(RecipeError, match=r"steps is \[1\]; it must be a whole number"):
        load_recipe(FURTHER, ["steps=[1]"])  # others are YAML as before


def test_a_key_without_a_value_is_no_text(tmp_path: Path) -> None:
    for override in ("output=", "output=null"):
        with pytest.raises(RecipeError, match="output is missing; it must be the name of a folder"):
            load_recipe(FURTHER, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 1\nsteps: 2\n", "steps is there twice, in line 1 and in line 2"),
        ("optimizer:\n  lr: 1\n  eps: 1\n  lr: 2\n", "lr is there twice, in line 2 and in line 4"),
        ("data: {side: 64, side: 128}\n", "side is there twice, in line 1 and in line 1"),
    ],
)
def test_doubled_keys_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "doubled.yaml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(tmp_path / "doubled.yaml")


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_bytes(b"\xef\xbb\xbf" + FURTHER.read_bytes())  # as Windows' editor saves it
    assert find_recipe("~/mine.yaml") == tmp_path / "mine.yaml"
    assert load_recipe("~/mine.yaml", ["output=~/runs/try"]).output == tmp_path / "runs" / "try"
    (tmp_path / "inner.yaml").write_text(FURTHER.read_text().replace("output: runs", "output: ~/runs"))
    assert load_recipe(tmp_path / "inner.yaml").output == tmp_path / "runs" / "mini-bagel-further"
    with pytest.raises(RecipeError, match=r"output: '~nobody7/x' begins with ~nobody7, which is nobody's home here"):
        load_recipe(FURTHER, ["output=~nobody7/x"])
    with pytest.raises(RecipeError, match=r"output: '.*…' cannot be a path: it is too long"):
        load_recipe(FURTHER, [f"output={'x' * 5000}"])


def test_a_run_of_another_kind_is_refused() -> None:
    with pytest.raises(RecipeError, match="kind was 'bagel' and is now 'autoencoder'"):
        load_recipe(AUTOENCODER).check_resumes(load_recipe(BAGEL).stored())


@pytest.mark.parametrize(
    ("path", "overrides"),
    [
        (AUTOENCODER, ["l1_weight=2", "mse_weight=2", "peak_weight=2", "kl_weight=2", "latent_noise=1"]),
        (AUTOENCODER, ["mask_weight=9", "output=elsewhere", "keep=9", "ema=0.5"]),
        (BAGEL, ["steps=9", "precision=float32", "device=cpu", "compile=false", "threads=1"]),
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


def test_a_recipe_is_found_by_its_path_and_a_packaged_one_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_recipe("mini-bagel-further") == FURTHER
    own = tmp_path / "mini-bagel"
    own.write_text("kind: bagel")
    assert find_recipe("mini-bagel").resolve() == own, "a file comes before a packaged recipe of its name"
    assert find_recipe("~/mini-bagel") == own
    for given in ("recipes/mini-bagel.yaml", "mini-bagel.yaml", "mini-bagle", "../recipes/mini-bagel"):
        with pytest.raises(RecipeError, match=rf"no file {given}.*did you mean mini-bagel\?") as caught:
            find_recipe(given)
        assert "--list" in str(caught.value)


def test_each_packaged_recipe_says_in_one_line_what_it_trains() -> None:
    recipes = packaged_recipes()
    assert [recipes[name].path for name in ("mini-bagel", "mini-bagel-further")] == [BAGEL, FURTHER]
    assert all(40 < len(recipe.line) < 120 and recipe.line.endswith(".") for recipe in recipes.values())


def _own_data(path: Path) -> list[str]:
    """Overrides that a recipe for one's own data cannot do without."""
    return {"finetune": ["data.path=my_data"], "official": ["profile=8x80GB"]}.get(path.parent.name, [])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_a_recipe_starts_from_is_the_output_of_another_or_published(path: Path) -> None:
    outputs = {recipe.content["output"] for recipe in packaged_recipes().values() if recipe.path != path}
    recipe = load_recipe(path, _own_data(path))
    assert isinstance(recipe, AutoencoderRecipe | BagelRecipe)
    sources = [recipe.init, recipe.autoencoder] if isinstance(recipe, BagelRecipe) else [recipe.init]
    given = {"mini", "ByteDance-Seed/BAGEL-7B-MoT", "checkpoints/qwen2.5-7b-siglip"}
    assert {source for source in sources if source is not None} <= {*outputs, *given}


@pytest.mark.parametrize("path", [path for path in RECIPES if path.parent.name == "finetune"], ids=lambda p: p.stem)
def test_recipes_for_own_data_have_every_profile_and_need_a_path_alone(path: Path) -> None:
    file = RecipeFile(path, _own_data(path))
    assert file.profiles.keys() == {"multi-node", "8x80GB", "80GB", "40GB", "24GB", "CPU"}
    for name in file.profiles:
        recipe = file.recipe(name)
        assert isinstance(recipe, BagelRecipe)
        assert recipe.profile == name
        assert (recipe.timestep_shift, recipe.ema) == (4.0, 0.995)
        assert (recipe.device == "cpu") == (name == "CPU")
    with pytest.raises(RecipeError, match=r"data: path is missing|data\.path is missing"):
        load_recipe(path)


def _files(folder: Path, **contents: str) -> Path:
    for name, content in contents.items():
        (folder / f"{name}.yaml").write_text(content)
    return folder / "own.yaml"


_BASE = """kind: bagel
output: runs/a
init: mini
steps: 5
data: {kind: mini, side: 64, target_copies: 2}
pack: {und: 100, gen: 50}
optimizer: {lr: 1.0e-3}
"""


def test_later_changes_win_what_is_extended_the_recipe_its_profile_the_overrides(tmp_path: Path) -> None:
    path = _files(
        tmp_path,
        base=_BASE,
        own="extends: base\noutput: 007\nsteps: 6\npack: {und: 200}\n"
        "profiles:\n  small: {steps: 7, init: 1e5, optimizer: {clip: 0.5}}\n  large: {steps: 9}\n",
    )
    recipe = load_recipe(path, ["profile=small", "pack.gen=80"])
    assert isinstance(recipe, BagelRecipe)
    assert (recipe.profile, recipe.steps, str(recipe.output), recipe.init) == ("small", 7, "007", "1e5")
    assert (recipe.pack.und, recipe.pack.gen, recipe.optimizer.lr, recipe.optimizer.clip) == (200, 80, 1e-3, 0.5)
    assert load_recipe(path, ["steps=8", "profile=large"]).steps == 8
    with pytest.raises(RecipeError, match=r"profile is 'smal'; did you mean small\?$"):
        load_recipe(path, ["profile=smal"])


def test_a_section_of_another_kind_keeps_nothing_of_the_one_before(tmp_path: Path) -> None:
    path = _files(tmp_path, base=_BASE, own="extends: base\ndata: {kind: other}\n")
    with pytest.raises(RecipeError, match="kind is 'other', which no source"):
        load_recipe(path)
    path = _files(tmp_path, base=_BASE, own="extends: base\ndata: {side: 128}\n")
    assert load_recipe(path).stored()["data"]["target_copies"] == 2


def test_what_cannot_be_extended_or_chosen_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = _files(tmp_path, own="extends: own\n")
    with pytest.raises(RecipeError, match="extends own, which extends it in turn$"):
        load_recipe(path)
    path = _files(tmp_path, own="extends: mini-bagle\n")
    with pytest.raises(RecipeError, match=r"did you mean mini-bagel\?"):
        load_recipe(path)
    path = _files(tmp_path, own=_BASE + "profiles: [24GB]\n")
    with pytest.raises(RecipeError, match="profiles must be a mapping"):
        load_recipe(path)
    path = _files(tmp_path, own=_BASE)
    with pytest.raises(RecipeError, match="profile is '24GB'; it has no profiles$"):
        load_recipe(path, ["profile=24GB"])


def test_the_type_to_compute_in_follows_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    for expected in (torch.bfloat16, torch.float32):
        monkeypatch.setattr(
            "bagel_mot.training.recipe.product_dtype",
            lambda dtype, device, cpu=expected: cpu if device == "cpu" else dtype,
        )
        assert compute_dtype("auto", "cpu") == expected
        assert compute_dtype("auto", "cuda") == torch.bfloat16
        assert compute_dtype("bfloat16", "cpu") == torch.bfloat16
        assert compute_dtype("float32", "cuda") == torch.float32
        recipe = load_recipe(find_recipe("finetune/t2i"), ["profile=CPU", "data.path=my_data"])
        assert recipe.dtype == expected, "the profile for processors leaves it to the processor"
