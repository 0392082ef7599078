"""The model that a run starts from, before its weights are read: its configuration, and how its images are resized."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from bagel_mot.checkpoint.official import folder_of
from bagel_mot.config import NAMED_CONFIGS, BagelConfig, load_config
from bagel_mot.errors import CheckpointError
from bagel_mot.images import ImageTransform
from bagel_mot.inference.defaults import official_defaults, read_defaults
from bagel_mot.inference.describe import described
from bagel_mot.tokenizer import Tokenizer
from bagel_mot.training.checkpoints import checkpoint_folders, find
from bagel_mot.training.recipe import BagelRecipe


@dataclass(frozen=True)
class StartShape:
    """The model that a run starts from, without its weights.

    Attributes:
        config: its configuration.
        vae, vit: the transforms of its images.
        tokenizer: its tokenizer; None where it is not there yet.
    """

    config: BagelConfig
    vae: ImageTransform
    vit: ImageTransform
    tokenizer: Tokenizer | None = None


def start_shape(recipe: BagelRecipe) -> StartShape:
    """The model that a run starts from. Of a checkpoint on the hub only configuration files are fetched.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    if recipe.model is not None:
        return _new_shape(recipe)
    begun = checkpoint_folders(recipe.output)
    name = str(begun[-1] if begun and recipe.adapters is None else recipe.init)
    if name in NAMED_CONFIGS and not Path(name).is_dir():
        config, tokenizer = NAMED_CONFIGS[name], None
        defaults = official_defaults(config)
    else:
        config, _, place = described(name if begun else str(_local(name, recipe.output)))
        folder = folder_of(place)
        defaults, tokenizer = read_defaults(folder, config), _tokenizer(folder)
    changes = recipe.defaults
    vae = replace(defaults.vae_transform, **changes.get("vae_transform", {}))
    vit = replace(defaults.vit_transform, **changes.get("vit_transform", {}))
    return StartShape(config, *recipe.max_sides.limited(vae, vit), tokenizer)


def _tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a checkpoint, of which perhaps the configuration alone was fetched."""
    try:
        return Tokenizer.from_folder(folder)
    except CheckpointError:
        return None


def _local(name: str, output: Path) -> Path | str:
    """The newest checkpoint of a run that is named, else the name."""
    place = Path(name).expanduser()
    return find(name, output) if place.is_dir() else name


def _new_shape(recipe: BagelRecipe) -> StartShape:
    """The shape of a new model on the autoencoder of a checkpoint."""
    assert recipe.model is not None
    vae = load_config(folder_of(find(str(recipe.autoencoder), recipe.output))).vae
    config = BagelConfig(
        decoder=recipe.model.decoder,
        vit=recipe.model.vit,
        vae=vae,
        max_latent_size=recipe.model.max_latent_size,
        vit_max_num_patch_per_side=recipe.model.vit.side,
    )
    defaults, changes = official_defaults(config), recipe.defaults
    transforms = (
        replace(defaults.vae_transform, **changes.get("vae_transform", {})),
        replace(defaults.vit_transform, **changes.get("vit_transform", {})),
    )
    return StartShape(config, *recipe.max_sides.limited(*transforms))
