"""From a recipe to a run."""

from __future__ import annotations

from pathlib import Path

from bagel.training.loop import train
from bagel.training.recipe import AutoencoderRecipe, BagelRecipe


def run_recipe(recipe: AutoencoderRecipe | BagelRecipe) -> Path:
    """Runs, or resumes, a recipe from `load_recipe`; returns the newest checkpoint's folder. Raises as `train`."""
    if isinstance(recipe, AutoencoderRecipe):
        from bagel.training.autoencoder import AutoencoderTask

        return train(recipe, AutoencoderTask)
    from bagel.training.unified import BagelTask

    return train(recipe, BagelTask)
