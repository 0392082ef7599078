"""Training the unified model."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from bagel_mot.checkpoint.official import (
    folder_of,
    load_autoencoder,
    load_checkpoint,
    save_checkpoint,
)
from bagel_mot.checkpoint.side_files import DEFAULTS_FILE, PREVIEW_FILE
from bagel_mot.config import BagelConfig, DecoderConfig, VaeConfig, VitConfig
from bagel_mot.data.documents import Builder, Dropout, PendingLatent
from bagel_mot.data.loader import Prefetcher
from bagel_mot.data.packer import PackShape, PackStream, RawPack, pack_gauges
from bagel_mot.data.sources.mini import MiniSource
from bagel_mot.errors import RecipeError
from bagel_mot.images import ImageTransform, latent_to_tokens
from bagel_mot.inference.defaults import save_defaults
from bagel_mot.inference.loading import choose_device
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.vae import Autoencoder
from bagel_mot.sequence import PackSpec, Sample, TrainingLayout, Values, pack
from bagel_mot.tokenizer import Tokenizer
from bagel_mot.training.activations import attention_of, checkpoint_activations
from bagel_mot.training.checkpoints import checkpoint_folders, find
from bagel_mot.training.initialise import initialise
from bagel_mot.training.loop import DTYPES, Task
from bagel_mot.training.objective import add_noise, compute_losses, draw_timesteps
from bagel_mot.training.recipe import BagelModelRecipe, BagelRecipe
from bagel_mot.training.samples import write_sheet
from bagel_mot.worlds.mini.draw import draw
from bagel_mot.worlds.mini.sampling import sample_scene
from bagel_mot.worlds.mini.scene import WORLD
from bagel_mot.worlds.mini.training_examples import corpus

_ENCODE_BATCH = 32
_TOKENIZER_TEXTS = 60_000


class Batch(NamedTuple):
    """A pack on the device, with clean latents."""

    layout: TrainingLayout
    values: Values


class BagelTask(Task[BagelModel, Batch]):
    """Both losses over packs of documents."""

    def __init__(self, recipe: BagelRecipe) -> None:
        self.recipe = recipe
        self.device = choose_device(recipe.device)
        torch.manual_seed(recipe.seed)
        config, self.module, self.autoencoder, self.tokenizer = _build(recipe)
        self._defaults = _defaults_of_beginning(recipe)
        shift = config.timestep_shift if recipe.timestep_shift is None else recipe.timestep_shift
        self.config = replace(config, timestep_shift=shift)
        self.module.to(self.device).train().requires_grad_(True)
        self.autoencoder.to(self.device).eval().requires_grad_(False)
        special = self.tokenizer.special
        self.spec = PackSpec.of(self.config, special)
        self.loss_weights = {"ce": recipe.ce_weight, "mse": recipe.mse_weight}
        data, shape = recipe.data, recipe.pack
        stride, patch = self.config.latent_stride, self.config.vit.patch_size
        builder = Builder(
            self.tokenizer,
            special,
            ImageTransform(data.side, data.side, stride),
            ImageTransform(data.side, data.side, patch),
            stride,
            patch,
            Dropout(**recipe.dropout.model_dump()),
        )
        source = MiniSource(recipe.seed, side=data.side, mix=data.mix, copies=data.target_copies)
        self.stream = PackStream(
            source, builder, PackShape(shape.rows, shape.und, shape.gen, shape.buffer), recipe.seed
        )
        self._prefetcher = Prefetcher(self.stream)
        # The frozen encoder runs in the run's precision; what is saved keeps its own.
        self._encoder = copy.deepcopy(self.autoencoder).to(DTYPES[recipe.precision])
        self._encode = self._encoder.encode
        self._attention = attention_of(recipe.attention, self.device)
        if recipe.activation_checkpointing:
            checkpoint_activations(self.module)
        if recipe.compile:
            self._encode = torch.compile(self._encode, dynamic=False)
            for layer in self.module.decoder.layers:
                layer.compile(dynamic=False)

    # ------------------------------------------------------------------------------------------------------------ data

    def next_batch(self) -> Batch:
        layout, values = self._pack(self._prefetcher.next_batch())
        return Batch(layout.to(self.device), values.to(self.device))

    def _pack(self, raw: RawPack) -> Batch:
        """Encodes the images of a pack, each once, and lays the samples out."""
        images: dict[int, Tensor] = {}
        for row in raw.rows:
            for sample in row:
                for segment in sample.segments:
                    if isinstance(segment, PendingLatent):
                        images[id(segment.pixels)] = segment.pixels
        latents = dict(zip(images, self.encode(list(images.values())), strict=True))
        rows = []
        for row in raw.rows:
            samples = []
            for sample in row:
                segments = (
                    s.with_latent(latents[id(s.pixels)]) if isinstance(s, PendingLatent) else s for s in sample.segments
                )
                samples.append(Sample(tuple(segments)))
            rows.append(samples)
        shape = self.recipe.pack
        layout = pack(rows, self.spec, und_len=shape.und, gen_len=shape.gen)
        return Batch(layout, Values.of(chain(*rows), self.spec))

    @torch.no_grad()
    def encode(self, images: list[Tensor]) -> list[Tensor]:
        """Latent tokens (rows·columns, latent_dim) on the CPU of images (3, H, W), each at its own size.

        Images of one size run in batches of a fixed number, the last one filled up: a compiled encoder keeps its
        shape.
        """
        tokens: list[Tensor] = [torch.empty(0)] * len(images)
        by_size: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            by_size.setdefault(tuple(image.shape), []).append(index)
        for indices in by_size.values():
            for start in range(0, len(indices), _ENCODE_BATCH):
                chosen = indices[start : start + _ENCODE_BATCH]
                batch = torch.stack([images[i] for i in chosen])
                filled = torch.cat([batch, batch[:1].expand(_ENCODE_BATCH - len(chosen), -1, -1, -1)])
                latent = self._encode(filled.to(self.device, DTYPES[self.recipe.precision])).float().cpu()
                for i, one in zip(chosen, latent, strict=False):
                    tokens[i] = latent_to_tokens(one, self.config.latent_patch_size)
        return tokens

    def gauges(self) -> dict[str, float]:
        return pack_gauges(self._prefetcher.state_dict())

    def data_state(self) -> Any:
        return self._prefetcher.state_dict()

    def load_data_state(self, state: Any) -> None:
        self._prefetcher.load_state_dict(state)

    def close(self) -> None:
        self._prefetcher.close()

    # ---------------------------------------------------------------------------------------------------------- losses

    def counts(self, batch: Batch) -> dict[str, float]:
        layout = batch.layout
        ce = float(layout.ce_weights.sum()) if self.recipe.ce_reweight else float(layout.ce_slots.numel())
        return {"ce": ce, "mse": float(layout.noised[layout.latent_image].sum())}

    def tokens(self, batch: Batch) -> int:
        return batch.layout.num_tokens

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        layout, values = batch
        images = len(layout.latent_grids)
        timesteps = draw_timesteps(images, self.config.timestep_shift, generator).to(self.device)
        noise = torch.randn(values.latents.shape, generator=generator).to(self.device)
        noised = add_noise(layout, values, timesteps, noise)
        losses = compute_losses(self.module, noised, self._attention(noised.layout))
        return {"ce": losses.ce_sum(self.recipe.ce_reweight), "mse": losses.mse_sum()}

    # ---------------------------------------------------------------------------------------------------------- output

    def write_weights(self, folder: Path, weights: dict[str, Tensor]) -> None:
        tables = dict(self.module.named_buffers())
        save_checkpoint(
            folder,
            self.config,
            model={**weights, **tables},
            autoencoder=self.autoencoder.state_dict(),
            tokenizer=self.tokenizer,
        )
        write_defaults(folder, self.config, self.recipe.data.side, self._defaults)
        write_preview_images(folder, self.config)

    def write_samples(self, path: Path, checkpoint: Path) -> None:
        write_sheet(path, checkpoint, self.recipe.data.side, str(self.device))


def write_preview_images(folder: Path, config: BagelConfig) -> None:
    """The sheet of typical images that previews are fitted to: 8 × 8 of the image world."""
    side, rng = config.vae.downsample * 8, random.Random(0)
    if side % WORLD:
        return
    sheet = Image.new("RGB", (8 * side, 8 * side))
    for i in range(64):
        sheet.paste(draw(sample_scene(rng), side), (i % 8 * side, i // 8 * side))
    sheet.save(folder / PREVIEW_FILE, optimize=True)


def write_defaults(folder: Path, config: BagelConfig, side: int, before: Mapping[str, Any]) -> None:
    """The settings that suit a model trained on images of one size, for `Bagel` to read.

    Args:
        folder: the checkpoint's folder.
        config: the model's configuration.
        side: the side of its images in pixels.
        before: the settings of the checkpoint that the run began with, which stay.
    """
    transform = {"max_size": side, "min_size": side}
    content = {
        **before,
        "generate": {**before.get("generate", {}), "size": [side, side]},
        "vae_transform": transform,
        "vit_transform": transform,
    }
    save_defaults(folder, config, content)


def _beginning(recipe: BagelRecipe) -> Path | None:
    """The checkpoint that a run goes on from: its own newest, or that of `init`; None for a new model."""
    begun = checkpoint_folders(recipe.output)
    if begun:
        return begun[-1]
    return None if recipe.init is None else find(recipe.init)


def _defaults_of_beginning(recipe: BagelRecipe) -> dict[str, Any]:
    """The settings of the checkpoint that a run goes on from, as they stand there; none for a new model."""
    beginning = _beginning(recipe)
    if beginning is None:
        return {}
    path = folder_of(beginning) / DEFAULTS_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} could not be read as JSON: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(value, dict) for value in found.values()):
        raise RecipeError(f"{path} must hold an object of objects")
    return found


def _build(recipe: BagelRecipe) -> tuple[BagelConfig, BagelModel, Autoencoder, Tokenizer]:
    """Network, autoencoder and tokenizer: from a checkpoint, or new."""
    if (recipe.init is None) == (recipe.model is None):
        raise RecipeError("a bagel recipe needs either init (a checkpoint to start from) or model (a new one)")
    beginning = _beginning(recipe)
    if beginning is not None:
        # A run that has begun goes on with its own tokenizer and autoencoder, whatever it was made from.
        loaded = load_checkpoint(beginning, precision=torch.float32)
        if recipe.autoencoder is None or checkpoint_folders(recipe.output):
            return loaded.config, loaded.model, loaded.autoencoder, loaded.tokenizer
        autoencoder = load_autoencoder(find(recipe.autoencoder))
        ours, theirs = loaded.config.vae, autoencoder.config
        if (ours.z_channels, ours.downsample) != (theirs.z_channels, theirs.downsample):
            raise RecipeError(
                f"the autoencoder of {recipe.autoencoder} has {theirs.z_channels} latent channels, one for "
                f"{theirs.downsample} pixels a side; the model of {recipe.init} takes {ours.z_channels} and "
                f"{ours.downsample}"
            )
        return replace(loaded.config, vae=theirs), loaded.model, autoencoder, loaded.tokenizer
    assert recipe.model is not None
    if recipe.autoencoder is None:
        raise RecipeError("a new model needs autoencoder: the folder of a trained one (config.json and ae.safetensors)")
    autoencoder = load_autoencoder(find(recipe.autoencoder))
    vae = autoencoder.config
    tokenizer = Tokenizer.train(corpus(_TOKENIZER_TEXTS, recipe.seed), recipe.model.vocab_size)
    config = _config(recipe.model, vae, tokenizer)
    model = BagelModel(config)
    initialise(model, torch.Generator().manual_seed(recipe.seed))
    return config, model, autoencoder, tokenizer


def _config(recipe: BagelModelRecipe, vae: VaeConfig, tokenizer: Tokenizer) -> BagelConfig:
    vocab = -(-tokenizer.vocab_size // 64) * 64
    vit = recipe.vit
    return BagelConfig(
        decoder=DecoderConfig(**recipe.decoder.model_dump(), vocab_size=vocab),
        vit=VitConfig(**vit.model_dump(), image_size=vit.patch_size * recipe.max_latent_size),
        vae=vae,
        max_latent_size=recipe.max_latent_size,
        vit_max_num_patch_per_side=recipe.max_latent_size,
    )
