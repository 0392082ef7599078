"""Training the autoencoder."""

from __future__ import annotations

import random
from collections.abc import Sequence
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
from bagel_mot.training.compiling import note_on_compiling
from bagel_mot.training.recipe import AutoencoderRecipe
from bagel_mot.training.task import TrainingTask
from bagel_mot.training.trainable import select_trainable

_STATISTICS_IMAGES = 512
_UNSEEN = 0.08
"""The largest error, averaged over 3 × 3 pixels, that nobody notices; pixels range from -1 to 1."""


def _new(shape: VaeConfig) -> Autoencoder:
    """An untrained autoencoder whose latent is not scaled yet."""
    module = Autoencoder(replace(shape, scale_factor=1.0, shift_factor=0.0))
    # Begin with little noise in the posterior: at unit variance it drowns the signal, and the decoder learns to
    # ignore it.
    bias = module.encoder.conv_out.bias
    assert bias is not None
    with torch.no_grad():
        bias[shape.z_channels :] = -5.0
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
        raise RecipeError(f"z_channels is {z_channels}, but the autoencoder of init has {old}: it cannot shrink")
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
    if recipe.model is not None:
        return _new(recipe.model)
    module = load_autoencoder(find(str(recipe.init), recipe.output))
    return module if recipe.z_channels in (None, module.config.z_channels) else widen_latent(module, recipe.z_channels)


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) images -> (B, 3, H, W) float32 in [-1, 1]."""
    return torch.stack([to_pixels(image) for image in images])


class ImageBatch(NamedTuple):
    """Images (B, 3, H, W) in [-1, 1], the weight of each pixel's error (B, 1, H, W), and the sum of these."""

    pixels: Tensor
    weights: Tensor
    total: float


class AutoencoderTask(TrainingTask[Autoencoder, ImageBatch]):
    """Reconstruction, weighted by pixel (L1, squared error, squared excess of local error), with a KL term that keeps
    the latent smooth.

    With `latent_noise` the decoder learns to draw cleanly from latents that are a little off, as drawn ones are, and
    the encoder to spread what it says over all channels; each image has its own level of noise from 0 upwards.
    """

    writes_beside = False  # the latent is scaled anew for each checkpoint, which takes the device

    def __init__(self, recipe: AutoencoderRecipe) -> None:
        self.recipe = recipe
        self.device = choose_device(recipe.device)
        torch.manual_seed(recipe.seed)
        self.source = recipe.data.open(recipe.seed)
        self.module = _initial(recipe).to(self.device).train()
        select_trainable(self.module, recipe.trainable)
        self.loss_weights = {
            "l1": recipe.l1_weight,
            "mse": recipe.mse_weight,
            "peak": recipe.peak_weight,
            "kl": recipe.kl_weight,
        }
        self._rngs: dict[int, random.Random] = {}
        self._compile_note = note_on_compiling(recipe.compile, self.device)
        compiles = recipe.compile and self._compile_note is None
        self._losses = torch.compile(self._losses_eager) if compiles else self._losses_eager

    def notes(self) -> list[str]:
        return [self._compile_note] if self._compile_note else []

    def open_streams(self, streams: Sequence[int], total: int) -> None:
        seed = self.recipe.seed
        self._rngs = {n: random.Random(f"images {seed} {n}") if n else random.Random(seed) for n in streams}

    def next_batches(self) -> list[ImageBatch]:
        return [self.draw_batch(rng) for rng in self._rngs.values()]

    def draw_batch(self, rng: random.Random) -> ImageBatch:
        """Draws a batch of images from the source."""
        images, masks = self.source.masked_images(rng, self.recipe.batch_size)
        weights = 1 + (self.recipe.mask_weight - 1) * masks[:, None].astype(np.float32)
        return ImageBatch(to_tensor(images), torch.from_numpy(weights), float(weights.sum(dtype=np.float64)))

    def counts(self, batch: ImageBatch) -> dict[str, float]:
        weight = batch.total * 3
        return {"l1": weight, "mse": weight, "peak": weight, "kl": float(len(batch.pixels))}

    def tokens(self, batch: ImageBatch) -> int:
        return len(batch.pixels)

    def losses(self, batch: ImageBatch, generator: torch.Generator) -> dict[str, Tensor]:
        scale, device = self.module.config.downsample, self.device
        images, _, height, width = batch.pixels.shape
        shape = (images, self.module.config.z_channels, height // scale, width // scale)
        noise = torch.randn(shape, generator=generator, device=device)
        level = torch.rand(images, 1, 1, 1, generator=generator, device=device) * self.recipe.latent_noise
        pixels, weights = (part.to(device, non_blocking=True) for part in (batch.pixels, batch.weights))
        return dict(zip(("l1", "mse", "peak", "kl"), self._losses(pixels, weights, noise, level), strict=True))

    def _losses_eager(self, pixels: Tensor, weights: Tensor, noise: Tensor, level: Tensor) -> tuple[Tensor, ...]:
        mean, logvar = self.module.posterior(pixels)
        mean, logvar = mean.float(), logvar.float()
        # Relative to the spread of the latents, which could otherwise outgrow the noise.
        extra = level * mean.detach().std(dim=(0, 2, 3), keepdim=True)
        decoded = self.module.decoder(mean + noise * (logvar.exp() + extra.square()).sqrt()).float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum()
        error = decoded - pixels
        # An image is spoilt by the few places that are far off, which a mean hardly notices.
        peak = (F.avg_pool2d(error, 3, stride=1, padding=1).abs() - _UNSEEN).clamp_min(0).square()
        return (error.abs() * weights).sum(), (error.square() * weights).sum(), (peak * weights).sum(), kl

    def data_state(self) -> dict[int, Any]:
        return {number: rng.getstate() for number, rng in self._rngs.items()}

    def load_data_state(self, states: Sequence[Any]) -> None:
        for number, rng in self._rngs.items():
            version, internal, gauss = states[number]
            rng.setstate((version, tuple(internal), gauss))

    @torch.no_grad()
    def write_weights(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Writes the weights with a latent of unit variance: each channel's, and by scale and shift the whole's. Where
        some of them stay as they are, so does the latent.
        """
        model = Autoencoder(self.module.config).to(self.device).eval()
        model.load_state_dict(weights)
        if all(parameter.requires_grad for parameter in self.module.parameters()):
            model = self._scaled(model)
        save_checkpoint(folder, BagelConfig(vae=model.config), autoencoder=model.state_dict())

    def _scaled(self, model: Autoencoder) -> Autoencoder:
        images = to_tensor(self.source.images(random.Random(self.recipe.seed + 1), _STATISTICS_IMAGES))
        means = [model.posterior(some.to(self.device))[0] for some in images.split(32)]
        latent = torch.cat(means).float().transpose(0, 1).flatten(1)
        gains = latent.std(dim=1).clamp_min(1e-6).reciprocal()
        scale_channels(model, gains)
        latent = latent * gains[:, None]
        model.config = replace(
            model.config,
            shift_factor=round(latent.mean().item(), 6),
            scale_factor=round(1 / latent.std().item(), 6),
        )
        return model

    @torch.no_grad()
    def write_samples(self, path: Path, checkpoint: Path) -> None:
        """Writes images above their reconstructions."""
        model = load_autoencoder(checkpoint, device=self.device)
        images = to_tensor(self.source.images(random.Random(self.recipe.seed + 2), 12))
        decoded = model.decode(model.encode(images.to(self.device))).float().cpu()
        # Two rows of twelve images, each image's rows of pixels beside those of its neighbours.
        sheet = np.concatenate([np.concatenate(list(to_uint8(row).numpy()), 1) for row in (images, decoded)])
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(sheet)
        image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(path)
