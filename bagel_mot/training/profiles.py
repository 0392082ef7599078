"""Loading a recipe for this machine: which of its profiles suits it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from bagel_mot.errors import RecipeError
from bagel_mot.training.recipe import AnyRecipe
from bagel_mot.training.recipe_files import AUTO, RecipeFile


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> AnyRecipe:
    """Reads a recipe, takes its profile, and applies `key=value` overrides.

    Raises:
        RecipeError: a file is missing or not YAML, a key is unknown, or a value is out of its range; or no profile
            fits this machine.
    """
    file = RecipeFile(path, overrides)
    if file.profile != AUTO:
        return file.recipe(file.profile)
    return choose_profile(file)


def choose_profile(file: RecipeFile) -> AnyRecipe:
    """The recipe with the first of its profiles that is made for a machine like this one.

    Raises:
        RecipeError: there is none, or the recipe is not valid.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    for name in file.profiles:
        recipe = file.recipe(name)
        if (recipe.device == "cpu") != torch.cuda.is_available() and processes == 1:
            return recipe
    raise RecipeError(f"{file.path}: no profile is made for this machine; there are {', '.join(file.profiles)}")
