"""Plans: what is counted is what trains, what fits is chosen, and what does not is refused with what would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from bagel_mot.checkpoint.official import load_checkpoint
from bagel_mot.errors import BagelError, RecipeError
from bagel_mot.inference.loading import find_checkpoint
from bagel_mot.training.lora import add_adapters
from bagel_mot.training.packaged import find_recipe
from bagel_mot.training.plan import MachineShape, plan
from bagel_mot.training.profiles import check_fits, load_recipe
from bagel_mot.training.recipe import BagelRecipe
from bagel_mot.training.recipe_files import RecipeFile
from bagel_mot.training.trainable import select_trainable

GB = 10**9
DRAWN = ["data={kind: mini}", "init=7b-mot", "replay="]
NAMES = ["t2i", "edit", "chat", "unified", "thinking"]


def _recipe(*overrides: str, name: str = "t2i", profile: str = "CPU") -> BagelRecipe:
    recipe = RecipeFile(find_recipe(f"finetune/{name}"), [*DRAWN, *overrides]).recipe(profile)
    assert isinstance(recipe, BagelRecipe)
    return recipe


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(12):
        Image.new("RGB", (64, 64)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a red car in the top left")
    return folder


@pytest.mark.parametrize(
    "overrides",
    [
        ["lora.rank=3"],
        ["lora={experts: [und, gen], rank: 4, targets: [q, down], und: {rank: 2}, use_dora: true}"],
        ["trainable=gen", "lora="],
        ["trainable=[connector]", "lora="],
    ],
)
def test_the_parameters_that_train_are_those_of_the_network(overrides: list[str]) -> None:
    recipe = _recipe("init=mini", *overrides)
    model = load_checkpoint(find_checkpoint("mini"), precision=torch.float32).model
    whole = sum(parameter.numel() for parameter in model.parameters())
    if recipe.adapters is not None:
        add_adapters(model, recipe.adapters)
    else:
        select_trainable(model, recipe.trainable)
    planned = plan(recipe, MachineShape(False, 1, 16 * GB))
    assert planned.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert planned.parameters == whole + (planned.trained if recipe.adapters is not None else 0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("profile", "processes", "memory"),
    [("24GB", 1, 24), ("40GB", 1, 40), ("80GB", 1, 80), ("8x80GB", 8, 80), ("multi-node", 16, 80)],
)
def test_each_profile_fits_the_cards_it_is_named_for_and_is_chosen_there(
    name: str, profile: str, processes: int, memory: int
) -> None:
    machine = MachineShape(True, processes, memory * GB)
    planned = plan(_recipe(name=name, profile=profile), machine)
    assert planned.fits, planned.sentence()
    assert load_recipe(find_recipe(f"finetune/{name}"), DRAWN, machine=machine).profile == profile


def test_what_does_not_fit_is_refused_with_the_nearest_profile_that_does() -> None:
    machine, path = MachineShape(True, 1, 24 * GB), find_recipe("finetune/t2i")
    planned = plan(_recipe(profile="80GB"), machine)
    with pytest.raises(RecipeError, match=r"^profile 80GB needs .* GB, and the machine has .*: take --profile 24GB"):
        check_fits(path, DRAWN, planned, machine)
    small = MachineShape(True, 1, 8 * GB)
    with pytest.raises(RecipeError, match=r"no profile fits; 24GB needs the least, "):
        check_fits(path, DRAWN, plan(_recipe(profile="80GB"), small), small)
    with pytest.raises(RecipeError, match=r"no profile is made for 3 processes with a GPU each"):
        load_recipe(path, DRAWN, machine=MachineShape(True, 3, 80 * GB))
    degrees = [*DRAWN, "parallel.data_parallel_shard_degree=3"]
    with pytest.raises(RecipeError, match=r"^this run has 2 processes, but its parallel section needs 3 "):
        load_recipe(path, degrees, machine=MachineShape(False, 2, 80 * GB))


@pytest.mark.parametrize(
    ("override", "processes", "message"),
    [
        (
            "parallel.tensor_parallel_degree=3",
            3,
            r"tensor_parallel_degree is 3, which does not divide the model's \d+ ",
        ),
        ("packs_per_step=3", 2, "packs_per_step is 3, which 2 data-parallel processes cannot share"),
        (
            "validation.data={kind: folder, path: nowhere}",
            1,
            "nowhere does not exist; a folder with images",
        ),
    ],
)
def test_a_plan_refuses_what_the_run_would_refuse(override: str, processes: int, message: str) -> None:
    with pytest.raises(BagelError, match=message):
        plan(_recipe("init=mini", override), MachineShape(False, processes, 16 * GB))


def test_profiles_that_do_not_go_with_a_changed_value_are_left_out() -> None:
    path = find_recipe("finetune/t2i")
    for gpus, memory, profile in ((False, 16, "CPU"), (True, 40, "40GB")):
        found = load_recipe(path, [*DRAWN, "lora.rank=8"], machine=MachineShape(gpus, 1, memory * GB))
        assert found.profile == profile
    with pytest.raises(RecipeError, match=r"lora is what `trainable: lora` trains"):
        load_recipe(path, [*DRAWN, "lora.rank=8"], machine=MachineShape(True, 16, 80 * GB))
    with pytest.raises(RecipeError, match=r"lora\.rank is 0"):
        load_recipe(path, [*DRAWN, "lora.rank=0"], machine=MachineShape(False, 1, 16 * GB))


def test_without_gpus_several_processes_take_the_profile_of_one() -> None:
    for processes in (1, 2, 3):
        machine = MachineShape(False, processes, 4 * GB)
        assert load_recipe(find_recipe("finetune/t2i"), DRAWN, machine=machine).profile == "CPU"


def test_steps_of_an_epoch_follow_from_the_rows_of_the_data(images: Path) -> None:
    data = f"data={{kind: folder, path: {images}}}"
    planned = plan(_recipe("init=mini", data, "pack.latents=16", "packs_per_step=2"), MachineShape(False, 1, 16 * GB))
    # A row has room for 16 images of 16 latent tokens: two packs hold 32 samples, more than there are.
    assert (planned.rows, planned.samples, planned.steps_per_epoch) == (12, 16, 1)
    replayed: list[Any] = ["init=mini", data, "pack.latents=16", "replay={weight: 3.0}"]
    assert plan(_recipe(*replayed), MachineShape(False, 1, 16 * GB)).steps_per_epoch == 3
    assert plan(_recipe("init=mini"), MachineShape(False, 1, 16 * GB)).rows is None, "mini draws without end"
