"""Training the autoencoder on images of the mini world."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from bagel_mot.checkpoint.official import load_autoencoder, save_checkpoint
from bagel_mot.config import BagelConfig, VaeConfig
from bagel_mot.errors import RecipeError
from bagel_mot.images import to_pixels, to_uint8
from bagel_mot.inference.loading import choose_device
from bagel_mot.model.vae import Autoencoder
from bagel_mot.training.checkpoints import checkpoint_folders, find
from bagel_mot.training.loop import Task
from bagel_mot.training.recipe import AutoencoderModelRecipe, AutoencoderRecipe
from bagel_mot.worlds.mini.draw import background, draw_array
from bagel_mot.worlds.mini.sampling import sample_scene
from bagel_mot.worlds.mini.scene import MAX_THINGS

_STATISTICS_IMAGES = 512
_UNSEEN = 0.08
"""An error, averaged over 3 × 3 pixels, that nobody notices; of a range of 2."""


def _new(recipe: AutoencoderRecipe) -> Autoencoder:
    """An untrained autoencoder whose latent is not scaled yet."""
    shape = recipe.model or AutoencoderModelRecipe()
    config = VaeConfig(resolution=recipe.side, **shape.model_dump(), scale_factor=1.0, shift_factor=0.0)
    module = Autoencoder(config)
    # Begin with little noise in the posterior: at unit variance it drowns the signal, and the decoder learns to
    # ignore it.
    bias = module.encoder.conv_out.bias
    assert bias is not None
    with torch.no_grad():
        bias[config.z_channels :] = -5.0
    return module


@torch.no_grad()
def widen_latent(module: Autoencoder, z_channels: int) -> Autoencoder:
    """A copy with further latent channels, which begin by carrying what a random projection sees of the image.

    The decoder hears them softly at first, so that the copy reconstructs nearly what the original did.

    Raises:
        RecipeError: if there would be fewer channels than there are.
    """
    old = module.config.z_channels
    if z_channels < old:
        raise RecipeError(f"model.z_channels is {z_channels}, but the autoencoder of init has {old}: it cannot shrink")
    wide = Autoencoder(replace(module.config, z_channels=z_channels, scale_factor=1.0, shift_factor=0.0))
    state = {name: value for name, value in module.state_dict().items() if "encoder.conv_out" not in name}
    conv_in = wide.decoder.conv_in.weight.mul(0.1)
    conv_in[:, :old] = state.pop("decoder.conv_in.weight")
    wide.load_state_dict(state, strict=False)
    wide.decoder.conv_in.weight.copy_(conv_in)
    theirs, ours = module.encoder.conv_out, wide.encoder.conv_out
    assert theirs.bias is not None
    assert ours.bias is not None
    for part in range(2):  # means, then log-variances
        here = slice(part * z_channels, part * z_channels + old)
        ours.weight[here] = theirs.weight[part * old : (part + 1) * old]
        ours.bias[here] = theirs.bias[part * old : (part + 1) * old]
    ours.weight[z_channels + old :] = 0
    ours.bias[z_channels + old :] = theirs.bias[old:].mean()
    return wide


@torch.no_grad()
def scale_channels(module: Autoencoder, gains: Tensor) -> None:
    """Multiplies each latent channel by its gain (z_channels,), in place; what is reconstructed does not change.

    The published format has one scale for all channels. A channel that is small beside the others counts for little in
    the objective of the unified model, though the decoder may rest on it.
    """
    conv_out, conv_in = module.encoder.conv_out, module.decoder.conv_in
    assert conv_out.bias is not None
    channels = len(gains)
    conv_out.weight[:channels] *= gains[:, None, None, None]
    conv_out.bias[:channels] *= gains
    conv_out.bias[channels:] += 2 * gains.log()  # the posterior's log-variance
    conv_in.weight /= gains[None, :, None, None]


def _initial(recipe: AutoencoderRecipe) -> Autoencoder:
    begun = checkpoint_folders(recipe.output)
    if begun:
        # A run that has begun goes on with its own scale and shift, whatever it was made from.
        return load_autoencoder(begun[-1])
    if recipe.init is None:
        return _new(recipe)
    module = load_autoencoder(find(recipe.init))
    asked = {} if recipe.model is None else recipe.model.model_dump(include=recipe.model.model_fields_set)
    channels = asked.pop("z_channels", module.config.z_channels)
    for name, value in asked.items():
        if value != (there := getattr(module.config, name)):
            raise RecipeError(f"model.{name} is {value}, but the autoencoder of init, {recipe.init}, has {there}")
    if channels == module.config.z_channels:
        return module
    if recipe.freeze_encoder:
        raise RecipeError(
            f"model.z_channels is {channels}, but an encoder that is frozen keeps its {module.config.z_channels}"
        )
    return widen_latent(module, channels)


def to_tensor(images: list[np.ndarray]) -> Tensor:
    """uint8 (H, W, 3) images -> (B, 3, H, W) float32 in [-1, 1]."""
    return torch.stack([to_pixels(image) for image in images])


class Batch(NamedTuple):
    """Pictures (B, 3, H, W) in [-1, 1] and the weight of each pixel's error (B, 1, H, W)."""

    pixels: Tensor
    weights: Tensor


class AutoencoderTask(Task[Autoencoder, Batch]):
    """Reconstruction, weighted by pixel (L1, squared error, squared excess of local error), with a KL term that keeps
    the latent smooth.

    With `latent_noise` the decoder learns to draw cleanly from latents that are a little off, as drawn ones are, and
    the encoder to spread what it says over all channels; each image has its own level of noise from 0 upwards.
    Things fill a small part of an image and hold most of what it says, so their pixels may weigh more
    (`thing_weight`), and half of the images are full ones.
    """

    loss_weights: dict[str, float]

    def __init__(self, recipe: AutoencoderRecipe) -> None:
        self.recipe = recipe
        self.device = choose_device(recipe.device)
        torch.manual_seed(recipe.seed)
        self.module = _initial(recipe).to(self.device)
        self.module.train().requires_grad_(True)
        self.module.encoder.requires_grad_(not recipe.freeze_encoder)
        self.loss_weights = {
            "l1": recipe.l1_weight,
            "mse": recipe.mse_weight,
            "peak": recipe.peak_weight,
            "kl": recipe.kl_weight,
        }
        self.rng = random.Random(recipe.seed)
        self._losses = torch.compile(self._losses_eager) if recipe.compile else self._losses_eager

    def next_batch(self) -> Batch:
        side = self.recipe.side
        images, masks = [], []
        for number in range(self.recipe.batch_size):
            scene = sample_scene(self.rng, things=MAX_THINGS if number % 2 else None)
            image = draw_array(scene, side)
            images.append(image)
            masks.append((image != np.asarray(background(scene.background, side))).any(axis=2))
        mask = torch.from_numpy(np.stack(masks))[:, None].float()
        return Batch(to_tensor(images), 1 + (self.recipe.thing_weight - 1) * mask)

    def counts(self, batch: Batch) -> dict[str, float]:
        weight = float(batch.weights.sum()) * 3
        return {"l1": weight, "mse": weight, "peak": weight, "kl": float(len(batch.pixels))}

    def tokens(self, batch: Batch) -> int:
        return len(batch.pixels)

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        scale = self.module.config.downsample
        images, _, height, width = batch.pixels.shape
        noise = torch.randn(images, self.module.config.z_channels, height // scale, width // scale, generator=generator)
        level = torch.rand(images, 1, 1, 1, generator=generator) * self.recipe.latent_noise
        parts = self._losses(*(part.to(self.device) for part in (*batch, noise, level)))
        return dict(zip(("l1", "mse", "peak", "kl"), parts, strict=True))

    def _losses_eager(self, pixels: Tensor, weights: Tensor, noise: Tensor, level: Tensor) -> tuple[Tensor, ...]:
        mean, logvar = self.module.posterior(pixels)
        mean, logvar = mean.float(), logvar.float()
        # Relative to the spread of the latents, which could otherwise outgrow the noise.
        extra = level * mean.detach().std(dim=(0, 2, 3), keepdim=True)
        decoded = self.module.decoder(mean + noise * (logvar.exp() + extra.square()).sqrt()).float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum()
        error = decoded - pixels
        # A image is spoilt by the few places that are far off, which a mean hardly notices.
        peak = (F.avg_pool2d(error, 3, stride=1, padding=1).abs() - _UNSEEN).clamp_min(0).square()
        return (error.abs() * weights).sum(), (error.square() * weights).sum(), (peak * weights).sum(), kl

    def data_state(self) -> Any:
        return self.rng.getstate()

    def load_data_state(self, state: Any) -> None:
        version, internal, gauss = state
        self.rng.setstate((version, tuple(internal), gauss))

    @torch.no_grad()
    def write_weights(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Writes the weights with a latent of unit variance: each channel's, and by scale and shift the whole's."""
        if self.recipe.freeze_encoder:
            save_checkpoint(folder, BagelConfig(vae=self.module.config), autoencoder=weights)
            return
        rng = random.Random(self.recipe.seed + 1)
        images = [draw_array(sample_scene(rng), self.recipe.side) for _ in range(_STATISTICS_IMAGES)]
        model = Autoencoder(self.module.config).to(self.device).eval()
        model.load_state_dict(weights)
        means = [model.posterior(to_tensor(images[i : i + 32]).to(self.device))[0] for i in range(0, len(images), 32)]
        latent = torch.cat(means).float().transpose(0, 1).flatten(1)
        gains = latent.std(dim=1).clamp_min(1e-6).reciprocal()
        scale_channels(model, gains)
        vae = replace(
            self.module.config,
            shift_factor=round((latent * gains[:, None]).mean().item(), 6),
            scale_factor=round(1 / (latent * gains[:, None]).std().item(), 6),
        )
        save_checkpoint(folder, BagelConfig(vae=vae), autoencoder=model.state_dict())

    @torch.no_grad()
    def write_samples(self, path: Path, checkpoint: Path) -> None:
        """Pictures above their reconstructions."""
        model = load_autoencoder(checkpoint, device=self.device)
        rng = random.Random(self.recipe.seed + 2)
        images = [draw_array(sample_scene(rng), self.recipe.side) for _ in range(12)]
        decoded = model.decode(model.encode(to_tensor(images).to(self.device)))
        sheet = np.concatenate(
            [np.concatenate(images, 1), np.concatenate(list(to_uint8(decoded.float()).cpu().numpy()), 1)]
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(sheet)
        image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(path)
