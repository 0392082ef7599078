"""Loading a recipe for this machine: which of its profiles suits it, and what to say where none does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bagel_mot.errors import RecipeError
from bagel_mot.files import size_text
from bagel_mot.training.checkpoints import checkpoint_folders, read_state
from bagel_mot.training.plan import MachineShape, TrainingPlan, plan, this_machine
from bagel_mot.training.recipe import AnyRecipe, BagelRecipe
from bagel_mot.training.recipe_files import AUTO, RecipeFile


def load_recipe(path: Path | str, overrides: Sequence[str] = (), *, machine: MachineShape | None = None) -> AnyRecipe:
    """Reads a recipe, takes its profile, and applies `key=value` overrides.

    Args:
        path: the recipe's file.
        overrides: the changes.
        machine: the machine that a profile is chosen for; by default this one.

    Raises:
        RecipeError: a file is missing or not YAML, a key is unknown, or a value is out of its range; or no profile
            fits the machine.
        CheckpointError: the checkpoint to start from, which profiles are compared for, is not there.
    """
    file = RecipeFile(path, overrides)
    if file.profile != AUTO:
        return file.recipe(file.profile)
    return _choose(file, machine or this_machine())


def _choose(file: RecipeFile, machine: MachineShape) -> AnyRecipe:
    """The recipe with the profile that its run has begun with, else with the first one that fits a machine, else with
    the one that needs the least. Profiles that the changes of values do not go with are left out.
    """
    recipes, refused = _of_profiles(file)
    if not recipes:
        raise refused[-1]  # that of the profile for the smallest machine
    if (begun := _begun(next(iter(recipes.values())).output)) in recipes:
        return recipes[begun]
    suited = [recipe for recipe in recipes.values() if machine.suits(recipe)]
    if not suited:
        if refused:
            raise refused[-1]
        _check_degrees(recipes.values(), machine)
        raise RecipeError(
            f"{file.path}: no profile is made for {machine.words}; there are {', '.join(recipes)}: choose one "
            "with --profile"
        )
    plans: list[TrainingPlan] = []
    for recipe in suited:
        if len(suited) == 1 or not isinstance(recipe, BagelRecipe):  # nothing is predicted of other kinds
            return recipe
        plans.append(plan(recipe, machine))
        if plans[-1].fits:
            return recipe
    return min(plans, key=lambda found: found.memory.total).recipe


def _of_profiles(file: RecipeFile) -> tuple[dict[str, AnyRecipe], list[RecipeError]]:
    """The recipe with each of its profiles, by name, and why it cannot have the others."""
    recipes: dict[str, AnyRecipe] = {}
    refused: list[RecipeError] = []
    for name in file.profiles:
        try:
            recipes[name] = file.recipe(name)
        except RecipeError as error:
            refused.append(error)
    return recipes, refused


def _check_degrees(recipes: Iterable[AnyRecipe], machine: MachineShape) -> None:
    """Checks that the parallel degrees of any profile fit the processes: where none do, the degrees are at fault.

    Raises:
        RecipeError: none do.
    """
    refusals = []
    for recipe in recipes:
        if (recipe.device == "cpu") == machine.gpus:
            continue
        try:
            recipe.parallel.degrees(machine.processes)
        except RecipeError as error:
            refusals.append(error)
        else:
            return
    if refusals:
        raise refusals[0]


def _begun(output: Path) -> str | None:
    """The profile of a run that has begun in a folder; None without one."""
    folders = checkpoint_folders(output)
    return read_state(folders[-1])["recipe"].get("profile") if folders else None


def check_fits(path: Path | str, overrides: Sequence[str], planned: TrainingPlan, machine: MachineShape) -> None:
    """Checks that a planned run fits a machine.

    Args:
        path, overrides: the arguments of `load_recipe`.
        planned: the plan.
        machine: the machine.

    Raises:
        RecipeError: it does not; the sentence names the nearest profile that does.
    """
    if planned.fits:
        return
    others = []
    for name, recipe in _of_profiles(RecipeFile(path, overrides))[0].items():
        if name != planned.recipe.profile and machine.suits(recipe) and isinstance(recipe, BagelRecipe):
            others.append(plan(recipe, machine))
    fitting = [other for other in others if other.fits]
    if fitting:
        best = max(fitting, key=lambda other: other.memory.total)
        advice = f"take --profile {best.recipe.profile}, which needs {size_text(best.memory.total)}"
    elif others:
        least = min([planned, *others], key=lambda other: other.memory.total)
        advice = f"no profile fits; {least.recipe.profile} needs the least, {size_text(least.memory.total)}"
    else:
        advice = "make pack.rows, pack.latents or max_sides smaller, or train adapters (trainable=lora)"
    raise RecipeError(f"{planned.sentence()}: {advice}")
