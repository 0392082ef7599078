"""From a recipe to a run."""

from __future__ import annotations

from pathlib import Path

from bagel.training.loop import train
from bagel.training.recipe import AutoencoderRecipe, BagelRecipe


def run_recipe(recipe: AutoencoderRecipe | BagelRecipe, *, stop_after: int | None = None) -> Path | None:
    """Runs, or resumes, a recipe; returns the newest checkpoint's folder.

    Args:
        recipe: from `load_recipe`.
        stop_after: end after this many steps in this call, saved and resumable.
    """
    if isinstance(recipe, AutoencoderRecipe):
        from bagel.training.autoencoder import AutoencoderTask

        return train(recipe, AutoencoderTask(recipe), stop_after=stop_after)
    from bagel.training.unified import BagelTask

    return train(recipe, BagelTask(recipe), stop_after=stop_after)
