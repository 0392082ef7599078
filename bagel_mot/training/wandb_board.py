"""Weights & Biases: a run's numbers and samples, where its recipe asks for that. Offline it needs no network: `wandb
sync FOLDER` sends what was written.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass

from bagel_mot.config import Flag, Section
from bagel_mot.errors import RecipeError, TrainingError
from bagel_mot.files import write_text
from bagel_mot.installation import install_command

_ID_FILE = "wandb-id"


@dataclass(frozen=True, kw_only=True)
class WandbConfig(Section):
    """The `wandb` section of a recipe.

    Attributes:
        project: the project.
        name: the run's name; by default that of its folder.
        entity: the user or team; by default that of the account.
        offline: write into the run's folder alone.
        tags: words to find the run by.
    """

    project: str = "bagel"
    name: str | None = None
    entity: str | None = None
    offline: Flag = False
    tags: tuple[str, ...] = ()

    def check(self) -> None:
        """Checks that the package is there.

        Raises:
            RecipeError: it is not.
        """
        _package()


class WandbBoard:
    """One run there, which a resumed run goes on with: its id is kept in the run's folder."""

    def __init__(self, config: WandbConfig, folder: Path, recipe: Mapping[str, Any]) -> None:
        """Begins, or goes on with, the run.

        Args:
            config: the recipe's section.
            folder: the run's folder.
            recipe: the recipe as JSON, which is shown beside the numbers.

        Raises:
            TrainingError: the service cannot be reached, or refuses.
        """
        wandb = _package()
        try:
            self._run: Any = wandb.init(
                project=config.project,
                name=config.name or folder.name,
                entity=config.entity,
                tags=list(config.tags),
                id=_run_id(folder),
                resume="allow",
                mode="offline" if config.offline else "online",
                dir=str(folder),
                config=dict(recipe),
                settings=wandb.Settings(silent=True, disable_git=True, console="off"),
            )
        except wandb.Error as error:
            reason = " ".join(str(error).split())
            raise TrainingError(
                f"Weights & Biases cannot be used ({reason}): log in with `wandb login`, or set wandb.offline=true"
            ) from error
        self._image = wandb.Image
        self._run.define_metric("step")  # a resumed run does steps again, which the service's own counter forbids
        self._run.define_metric("*", step_metric="step")

    def add_scalars(self, numbers: Mapping[str, float], step: int) -> None:
        """Sends numbers of a step."""
        self._run.log({"step": step, **numbers})

    def add_sheet(self, sheet: Path, step: int) -> None:
        """Sends a PNG file, if it is there."""
        if sheet.is_file():
            self._run.log({"step": step, "samples": self._image(str(sheet))})

    def close(self) -> None:
        """Waits until all is sent."""
        self._run.finish()


def _package() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise RecipeError(f"wandb: the package is missing: run {install_command('wandb')}") from error
    return wandb


def _run_id(folder: Path) -> str:
    """The id of the run in a folder, made when it begins."""
    path = folder / _ID_FILE
    if not path.is_file():
        write_text(path, uuid.uuid4().hex[:12])
    return path.read_text(encoding="utf-8").strip()
