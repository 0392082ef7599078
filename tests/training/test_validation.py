"""Validation losses are those of the same packs with the same noise each time, and change with the weights alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from bagel_mot.errors import DataError
from bagel_mot.parallel.ranks import Ranks
from bagel_mot.training.breakdown import with_ratios
from bagel_mot.training.recipe import BagelRecipe
from bagel_mot.training.tasks.bagel import BagelTask


def test_validation_repeats_itself_until_the_weights_change(recipe: Callable[..., BagelRecipe], tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (80 * number, 0, 0)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a red car")
    validation = {"data": {"kind": "folder", "path": str(folder)}, "every": 2, "packs": 2}
    task = BagelTask(recipe(validation=validation))
    task.parallelise(Ranks.alone())

    def losses() -> dict[str, float]:
        return with_ratios({name: float(value) for name, value in task.validation().items()})

    first = losses()
    assert first.keys() == {"validation/mse"}, "captions are not learnt"
    assert losses() == first
    with torch.no_grad():
        task.module.latent_out.bias.add_(1.0)
    assert losses() != first
    assert task.module.training
    task.close()


def test_data_that_cannot_validate_are_refused_before_a_model_is_loaded(
    recipe: Callable[..., BagelRecipe], tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    validation = {"data": {"kind": "folder", "task": "t2i", "path": str(folder)}}
    with pytest.raises(DataError, match="does not exist"):
        BagelTask(recipe(validation=validation))
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    pack = {"rows": 1, "und": 300, "gen": 128}
    with pytest.raises(DataError, match=r"there is no a\.txt"):
        BagelTask(recipe(model=None, autoencoder=None, init="mini", pack=pack, validation=validation))
