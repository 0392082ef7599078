"""The tasks: what is trained, and on what."""

from __future__ import annotations

from pathlib import Path

from bagel_mot.training.loop import train
from bagel_mot.training.recipe import AutoencoderRecipe, BagelRecipe


def run_recipe(recipe: AutoencoderRecipe | BagelRecipe) -> Path:
    """Runs, or resumes, a recipe from `load_recipe`; returns the newest checkpoint's folder. Raises as `train`."""
    if isinstance(recipe, AutoencoderRecipe):
        from bagel_mot.training.tasks.autoencoder import AutoencoderTask

        return train(recipe, AutoencoderTask)
    from bagel_mot.training.tasks.bagel import BagelTask

    return train(recipe, BagelTask)
