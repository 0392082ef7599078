"""The recipes that come with the package: listed, and found by their names.

They are YAML files in `bagel_mot/recipes` and its folders; the first line of each is a comment that says what the
recipe trains. Files that begin with an underscore are extended by others, and no recipes themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bagel_mot.errors import RecipeError, did_you_mean
from bagel_mot.files import user_path

FOLDER = Path(__file__).parent.parent / "recipes"


@dataclass(frozen=True)
class PackagedRecipe:
    """A recipe of the package.

    Attributes:
        name: the name, such as finetune/t2i.
        path: its file.
        line: one line that says what it trains.
    """

    name: str
    path: Path
    line: str

    @property
    def content(self) -> dict[str, Any]:
        """The file's own content, without what it extends."""
        content: dict[str, Any] = yaml.safe_load(self.path.read_text(encoding="utf-8"))
        return content


def packaged_recipes() -> dict[str, PackagedRecipe]:
    """The packaged recipes by name, those of a folder together."""
    recipes = {}
    for path in sorted(FOLDER.rglob("[!_]*.yaml"), key=lambda path: (len(path.parts), path)):
        name = path.relative_to(FOLDER).with_suffix("").as_posix()
        with path.open(encoding="utf-8") as file:
            recipes[name] = PackagedRecipe(name, path, file.readline().removeprefix("#").strip())
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
    recipes = packaged_recipes()
    if recipe in recipes:
        return recipes[recipe].path
    meant = recipe if recipe.partition("/")[0] in {name.partition("/")[0] for name in recipes} else path.stem
    raise RecipeError(
        f"there is no file {recipe}, and no packaged recipe has this name: "
        f"{did_you_mean(meant, recipes)} (bagel train --list)"
    )


def maker_of(output: Path) -> str | None:
    """The name of the packaged recipe whose run has this folder; None without one."""
    for name, recipe in packaged_recipes().items():
        if Path(recipe.content["output"]) == output:
            return name
    return None
