"""The data of a recipe as a run reads them, without the weights of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bagel_mot.checkpoint.official import folder_of
from bagel_mot.config import BagelConfig
from bagel_mot.data.documents import SampleBuilder
from bagel_mot.data.packer import AnyPackConfig
from bagel_mot.data.sources.base import Source
from bagel_mot.data.supply import SampleGroup, check_groups
from bagel_mot.errors import RecipeError
from bagel_mot.images import ImageTransform
from bagel_mot.inference.describe import described
from bagel_mot.sequence import PackSpec
from bagel_mot.tokenizer import Tokenizer
from bagel_mot.training.checkpoints import checkpoint_folders, find
from bagel_mot.training.recipe import AutoencoderRecipe, BagelRecipe
from bagel_mot.training.sizes import pack_config
from bagel_mot.training.start import start_shape


@dataclass(frozen=True)
class OpenData:
    """The data of a recipe, as a run would read them, without the weights of a model.

    Attributes:
        source: the source.
        groups: its groups.
        config: the model's configuration.
        builder: makes samples of documents.
        spec: the packing facts of the model.
        pack: the size of a pack.
        tokenizer: the model's tokenizer.
    """

    source: Source
    groups: Sequence[SampleGroup]
    config: BagelConfig
    builder: SampleBuilder
    spec: PackSpec
    pack: AnyPackConfig
    tokenizer: Tokenizer


def open_data(recipe: BagelRecipe | AutoencoderRecipe, source: Source | None = None) -> OpenData:
    """Opens the data of a recipe.

    Args:
        recipe: the recipe.
        source: its source, where that is open already.

    Raises:
        RecipeError: the recipe trains an autoencoder.
        DataError: there are no data, or a file cannot be used.
        CheckpointError, TokenizerError: the checkpoint lacks what is needed.
    """
    if isinstance(recipe, AutoencoderRecipe):
        raise RecipeError("the recipe trains an autoencoder, whose data are images alone: give one of the model itself")
    source = source or recipe.data.open(recipe.seed)
    shape = start_shape(recipe)
    if recipe.model is not None:
        tokenizer = Tokenizer.train(source.texts(), recipe.model.decoder.vocab_size)
    else:
        begun = checkpoint_folders(recipe.output)
        init = begun[-1] if begun and recipe.adapters is None else recipe.init
        local = Path(str(init)).expanduser()
        folder = described(str(find(str(init), recipe.output)) if local.is_dir() else str(init))[2]
        tokenizer = Tokenizer.from_folder(folder_of(folder))
    return data_for(recipe, source, shape.config, tokenizer, shape.vae, shape.vit)


def data_for(
    recipe: BagelRecipe,
    source: Source,
    config: BagelConfig,
    tokenizer: Tokenizer,
    vae: ImageTransform,
    vit: ImageTransform,
) -> OpenData:
    """The data of an open source for a model.

    Args:
        recipe: the recipe.
        source: the source.
        config: the model's configuration.
        tokenizer: its tokenizer.
        vae, vit: the transforms of its images, within the recipe's limits.

    Raises:
        DataError: there are no data, or an image size does not fit the model.
    """
    groups = source.groups()
    check_groups(groups)
    builder = SampleBuilder(tokenizer, vae, vit, config.latent_stride, config.vit.patch_size, recipe.dropout)
    spec = PackSpec.of(config, tokenizer.special)
    for group in groups:
        group.supply.check_sizes(builder, spec)
    return OpenData(source, groups, config, builder, spec, pack_config(recipe.pack, vae, vit), tokenizer)
