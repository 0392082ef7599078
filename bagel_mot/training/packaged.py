"""The recipes that come with the package: listed, and found by their names.

They are YAML files in `bagel_mot/recipes`; the first line of each is a comment that says what the recipe trains.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from bagel_mot.errors import RecipeError, did_you_mean
from bagel_mot.files import user_path

FOLDER = Path(__file__).parent.parent / "recipes"


def packaged_recipes() -> dict[str, str]:
    """Lists the packaged recipes: name → one line that says what the recipe trains."""
    recipes = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        with path.open(encoding="utf-8") as file:
            recipes[path.stem] = file.readline().removeprefix("#").strip()
    return recipes


def find_recipe(recipe: str) -> Path:
    """The file of a recipe that is given by its path, or by the name of a packaged one.

    A file that exists is taken before a packaged recipe of the same name.

    Raises:
        RecipeError: there is no such file and no such name.
    """
    path = user_path(recipe, RecipeError)
    if path.is_file():
        return path
    if (packaged := FOLDER / f"{recipe}.yaml").parent == FOLDER and packaged.is_file():
        return packaged
    raise RecipeError(
        f"there is no file {recipe}, and no packaged recipe has this name: "
        f"{did_you_mean(path.stem, packaged_recipes())} (bagel train --list)"
    )


def maker_of(output: Path) -> str | None:
    """The name of the packaged recipe whose run has this folder; None without one."""
    for name in packaged_recipes():
        content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
        if Path(content["output"]) == output:
            return name
    return None
