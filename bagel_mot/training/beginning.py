"""The beginning of a run of the unified model: its model, autoencoder and tokenizer, and the files beside them."""

from __future__ import annotations

import io
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bagel_mot.checkpoint.official import Checkpoint, folder_of, load_autoencoder, load_checkpoint, open_parts
from bagel_mot.checkpoint.parts import ModelParts
from bagel_mot.checkpoint.side_files import DEFAULTS_FILE, PREVIEW_FILE, SCOPE_FILE, SETTINGS_FILES
from bagel_mot.config import BagelConfig
from bagel_mot.data.sources.base import Source
from bagel_mot.errors import CheckpointError, RecipeError
from bagel_mot.inference.defaults import Defaults, read_defaults, save_defaults
from bagel_mot.inference.loading import choose_device
from bagel_mot.model.bagel import BagelModel
from bagel_mot.parallel.launch import Launch
from bagel_mot.tokenizer import Tokenizer
from bagel_mot.training.checkpoints import checkpoint_folders, find, refuse_untrained
from bagel_mot.training.first_rows import check_first_rows
from bagel_mot.training.initial import InitialValues, initialise
from bagel_mot.training.lora import base_precision
from bagel_mot.training.open_data import open_data
from bagel_mot.training.recipe import BagelRecipe, NewModel
from bagel_mot.training.sizes import slots_to_share


@dataclass
class Beginning:
    """The model and the files that a run begins with.

    Attributes:
        checkpoint: the model, the autoencoder and the tokenizer.
        settings_files: the contents of the files with the model's default settings, by name.
        parts: the parts of the model's values that each process reads, or makes, where there are several; the model is
            on the meta device then. None where it has its values.
    """

    checkpoint: Checkpoint
    settings_files: dict[str, bytes]
    parts: ModelParts | InitialValues | None = None


def begin(recipe: BagelRecipe, source: Source, launch: Launch) -> Beginning:
    """The run's own newest checkpoint, else the checkpoint `init`, else a new model.

    Before a checkpoint is loaded for the first time, data that cannot train it and a division that does not fit it are
    refused; and so are data that cannot validate it, which are needed much later.

    In a launch of several processes none of them holds all values. A quantised base of adapters alone is whole in
    each: it is small, and worked out tensor by tensor.
    """
    parts: ModelParts | None = None
    begun = checkpoint_folders(recipe.output)
    if not begun and recipe.model is None:
        refuse_untrained(str(recipe.init), recipe.output)
        data = open_data(recipe, source)
        degrees = recipe.parallel.degrees(launch.world)
        degrees.check_decoder(data.config.decoder, slots_to_share(data.pack, degrees.context))
        check_first_rows(data, recipe.seed)
    if recipe.validation is not None:  # a run that goes on may have another one
        validation = recipe.validation.data.open(0)
        if recipe.model is None:
            check_first_rows(open_data(recipe, validation), 0)
    if not begun and recipe.model is not None:
        return _new(recipe, recipe.model, source, divided=launch.world > 1)
    # A run that has begun goes on with its own tokenizer and autoencoder, whatever it was made from.
    # One that trains adapters has nothing else of its own.
    if recipe.adapters is not None:
        where = find(str(recipe.init), recipe.output)
        if launch.world > 1 and recipe.adapters.base is None:
            loaded, parts = open_parts(where)
            loaded.model.to(recipe.dtype)
            return Beginning(loaded, _settings_files(folder_of(where)), parts)
        precision = base_precision(recipe.adapters, recipe.dtype)
        loaded = load_checkpoint(where, precision=precision, device=choose_device(recipe.device))
        return Beginning(loaded, _settings_files(folder_of(where)))
    where = begun[-1] if begun else find(str(recipe.init), recipe.output)
    if launch.world > 1:
        loaded, parts = open_parts(where)
    else:
        loaded = load_checkpoint(where, precision=torch.float32)
    if recipe.autoencoder is not None and not begun:
        loaded.autoencoder = load_autoencoder(find(recipe.autoencoder, recipe.output))
        ours, theirs = loaded.config.vae, loaded.autoencoder.config
        if (ours.z_channels, ours.downsample) != (theirs.z_channels, theirs.downsample):
            raise RecipeError(
                f"the autoencoder of {recipe.autoencoder} has {theirs.z_channels} latent channels, one for "
                f"{theirs.downsample} pixels a side; the model of {recipe.init} takes {ours.z_channels} and "
                f"{ours.downsample}"
            )
        loaded.config = replace(loaded.config, vae=theirs)
    files = _settings_files(folder_of(where))
    if SCOPE_FILE in files and not begun:  # which is what it will learn here, if that can be said
        del files[SCOPE_FILE]
        files |= _scope_file(source)
    return Beginning(loaded, files, parts)


def _new(recipe: BagelRecipe, shape: NewModel, source: Source, *, divided: bool) -> Beginning:
    """An untrained model on a trained autoencoder, with a tokenizer trained on the source's texts; where it is to be
    divided it has no values yet.
    """
    autoencoder = load_autoencoder(find(str(recipe.autoencoder), recipe.output))
    tokenizer = Tokenizer.train(source.texts(), shape.decoder.vocab_size)
    config = BagelConfig(
        decoder=replace(shape.decoder, vocab_size=-(-tokenizer.vocab_size // 64) * 64),
        vit=shape.vit,
        vae=autoencoder.config,
        max_latent_size=shape.max_latent_size,
        vit_max_num_patch_per_side=shape.vit.side,
    )
    with torch.device("meta" if divided else "cpu"):
        model = BagelModel(config)
    if not divided:
        initialise(model, recipe.seed)
    files: dict[str, bytes] = {}
    if (sheet := source.preview_images(config.vae.downsample * 8)) is not None:
        sheet.save(png := io.BytesIO(), "PNG", optimize=True)
        files[PREVIEW_FILE] = png.getvalue()
    parts = InitialValues(config, recipe.seed) if divided else None
    return Beginning(Checkpoint(config, model, autoencoder, tokenizer), files | _scope_file(source), parts)


def _scope_file(source: Source) -> dict[str, bytes]:
    """The content of the file that says what a model trained on the source knows, by its name; none where the source
    does not say.
    """
    scope = source.scope()
    return {} if scope is None else {SCOPE_FILE: scope.to_yaml().encode()}


def settle_defaults(files: dict[str, bytes], changes: dict[str, dict[str, Any]], config: BagelConfig) -> Defaults:
    """The trained model's default settings and transforms, as inference will read them.

    Args:
        files: contents of the files that hold them; changed where the recipe says so, and only there.
        changes: the recipe's `defaults`, by section.
        config: the model's configuration.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in files.items():
            (folder / file).write_bytes(content)
        try:
            defaults = read_defaults(folder, config)
            if changes:
                before = json.loads(files.get(DEFAULTS_FILE, b"{}"))
                merged = {section: {**before.get(section, {}), **values} for section, values in changes.items()}
                save_defaults(folder, config, {**before, **merged})
                files |= _settings_files(folder)
                defaults = read_defaults(folder, config)
            return defaults
        except CheckpointError as error:
            raise RecipeError(f"the trained model's {str(error).replace(f'{folder}/', '')}") from error


def _settings_files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in SETTINGS_FILES if (folder / name).exists()}
