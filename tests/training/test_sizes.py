"""Sizes that follow the checkpoint: images are limited, and packs hold as many of them as a recipe says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bagel_mot.errors import RecipeError
from bagel_mot.images import VAE_TRANSFORM, VIT_TRANSFORM, ImageTransform
from bagel_mot.training.recipe import BagelRecipe
from bagel_mot.training.sizes import MaxSides, PackForImages, most_tokens, pack_config
from bagel_mot.training.tasks.bagel import BagelTask


def test_images_are_limited_where_the_checkpoint_allows_more() -> None:
    vae, vit = MaxSides(vae=518, vit=518).limited(VAE_TRANSFORM, VIT_TRANSFORM)
    assert (vae.max_size, vae.min_size, vit.max_size, vit.min_size) == (512, 512, 518, 224)
    small = ImageTransform(64, 64, 16), ImageTransform(64, 64, 16)
    assert MaxSides(vae=512, vit=518).limited(*small) == small
    assert MaxSides().limited(VAE_TRANSFORM, VIT_TRANSFORM) == (VAE_TRANSFORM, VIT_TRANSFORM)


@pytest.mark.parametrize("transform", [VAE_TRANSFORM, VIT_TRANSFORM, ImageTransform(64, 64, 16)])
def test_no_image_has_more_tokens_than_the_most(transform: ImageTransform) -> None:
    most, stride = most_tokens(transform), transform.stride
    sides = (1, 63, 64, 200, 511, 700, 1024, 1500, 4000)
    found = [
        width // stride * (height // stride) for w in sides for h in sides for width, height in [transform.size(w, h)]
    ]
    assert max(found) == most


def test_a_pack_in_images_has_room_for_that_many_of_the_largest(recipe: Callable[..., BagelRecipe]) -> None:
    pack = PackForImages(rows=3, latents=2, seen=1, text=100, buffer=7)
    vae, vit = MaxSides(vae=512, vit=518).limited(VAE_TRANSFORM, VIT_TRANSFORM)
    sized = pack_config(pack, vae, vit)
    assert (sized.rows, sized.und, sized.gen, sized.buffer) == (3, 100 + 4 + 37**2 + 2, 2 * 32**2, 7)
    defaults: dict[str, Any] = {"vae_transform": {"max_size": 64, "min_size": 64}}
    task = BagelTask(recipe(pack=pack, defaults=defaults, max_sides={"vae": 32, "vit": 512}))
    assert (task.pack.gen, task.builder.vae_transform.max_size) == (2 * 4, 32)
    task.close()


def test_a_pack_is_given_in_one_way(recipe: Callable[..., BagelRecipe]) -> None:
    with pytest.raises(RecipeError, match="pack: und is not known; "):
        recipe(pack={"text": 100})
