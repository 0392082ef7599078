"""Training the autoencoder on pictures of the mini world."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bagel.checkpoint.official import load_autoencoder, save_checkpoint
from bagel.config import BagelConfig, VaeConfig
from bagel.images import to_uint8
from bagel.inference.loading import choose_device
from bagel.mini.draw import background, draw_array
from bagel.mini.sampling import sample_scene
from bagel.mini.scene import MAX_THINGS
from bagel.model.vae import Autoencoder
from bagel.training.checkpoints import latest
from bagel.training.loop import Task
from bagel.training.recipe import AutoencoderRecipe

_STATISTICS_PICTURES = 512


def _new(recipe: AutoencoderRecipe) -> Autoencoder:
    """An untrained autoencoder whose latent is not scaled yet."""
    config = VaeConfig(resolution=recipe.side, **recipe.model.model_dump(), scale_factor=1.0, shift_factor=0.0)
    module = Autoencoder(config)
    # Begin with little noise in the posterior: at unit variance it drowns the signal, and the decoder learns to
    # ignore it.
    bias = module.encoder.conv_out.bias
    assert bias is not None
    with torch.no_grad():
        bias[config.z_channels :] = -5.0
    return module


def to_tensor(pictures: list[np.ndarray]) -> Tensor:
    """uint8 (H, W, 3) pictures -> (B, 3, H, W) float32 in [-1, 1]."""
    stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return (stacked.float() / 127.5 - 1).contiguous()


class Batch(NamedTuple):
    """Pictures (B, 3, H, W) in [-1, 1] and the weight of each pixel's error (B, 1, H, W)."""

    pixels: Tensor
    weights: Tensor


class AutoencoderTask(Task[Autoencoder, Batch]):
    """Reconstruction (L1 and squared error, weighted by pixel) with a KL term that keeps the latent smooth.

    Things fill a small part of a picture and hold most of what it says, so their pixels may weigh more
    (`thing_weight`), and half of the pictures are full ones.
    """

    loss_weights: dict[str, float]

    def __init__(self, recipe: AutoencoderRecipe) -> None:
        self.recipe = recipe
        self.device = choose_device(recipe.device)
        torch.manual_seed(recipe.seed)
        self.module = (_new(recipe) if recipe.init is None else load_autoencoder(latest(recipe.init))).to(self.device)
        self.module.train().requires_grad_(True)
        self.module.encoder.requires_grad_(not recipe.freeze_encoder)
        self.loss_weights = {"l1": recipe.l1_weight, "mse": recipe.mse_weight, "kl": recipe.kl_weight}
        self.rng = random.Random(recipe.seed)
        self._losses = torch.compile(self._losses_eager) if recipe.compile else self._losses_eager

    def next_batch(self) -> Batch:
        side = self.recipe.side
        pictures, masks = [], []
        for number in range(self.recipe.batch_size):
            scene = sample_scene(self.rng, things=MAX_THINGS if number % 2 else None)
            picture = draw_array(scene, side)
            pictures.append(picture)
            masks.append((picture != np.asarray(background(scene.background, side))).any(axis=2))
        mask = torch.from_numpy(np.stack(masks))[:, None].float()
        return Batch(to_tensor(pictures), 1 + (self.recipe.thing_weight - 1) * mask)

    def counts(self, batch: Batch) -> dict[str, float]:
        weight = float(batch.weights.sum()) * 3
        return {"l1": weight, "mse": weight, "kl": float(len(batch.pixels))}

    def tokens(self, batch: Batch) -> int:
        return len(batch.pixels)

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        scale = self.module.config.downsample
        images, _, height, width = batch.pixels.shape
        noise = torch.randn(images, self.module.config.z_channels, height // scale, width // scale, generator=generator)
        l1, mse, kl = self._losses(*(part.to(self.device) for part in (*batch, noise)))
        return {"l1": l1, "mse": mse, "kl": kl}

    def _losses_eager(self, pixels: Tensor, weights: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, logvar = self.module.posterior(pixels)
        mean, logvar = mean.float(), logvar.float()
        decoded = self.module.decoder(mean + noise * (0.5 * logvar).exp()).float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum()
        error = decoded - pixels
        return (error.abs() * weights).sum(), (error.square() * weights).sum(), kl

    def data_state(self) -> Any:
        return self.rng.getstate()

    def load_data_state(self, state: Any) -> None:
        version, internal, gauss = state
        self.rng.setstate((version, tuple(internal), gauss))

    @torch.no_grad()
    def write_weights(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Measures the latent's mean and deviation and writes them as shift and scale, so that it has unit variance."""
        if self.recipe.freeze_encoder:
            save_checkpoint(folder, BagelConfig(vae=self.module.config), autoencoder=weights)
            return
        model = Autoencoder(self.module.config).to(self.device).eval()
        model.load_state_dict(weights)
        rng = random.Random(self.recipe.seed + 1)
        pictures = [draw_array(sample_scene(rng), self.recipe.side) for _ in range(_STATISTICS_PICTURES)]
        means = [
            model.posterior(to_tensor(pictures[i : i + 32]).to(self.device))[0] for i in range(0, len(pictures), 32)
        ]
        latent = torch.cat(means).float()
        vae = VaeConfig(
            **{
                **vars(self.module.config),
                "shift_factor": round(latent.mean().item(), 6),
                "scale_factor": round(1 / latent.std().item(), 6),
            }
        )
        save_checkpoint(folder, BagelConfig(vae=vae), autoencoder=weights)

    @torch.no_grad()
    def write_samples(self, path: Path, checkpoint: Path) -> None:
        """Pictures above their reconstructions."""
        model = load_autoencoder(checkpoint, device=self.device)
        rng = random.Random(self.recipe.seed + 2)
        pictures = [draw_array(sample_scene(rng), self.recipe.side) for _ in range(12)]
        decoded = model.decode(model.encode(to_tensor(pictures).to(self.device)))
        sheet = np.concatenate(
            [np.concatenate(pictures, 1), np.concatenate(list(to_uint8(decoded.float()).cpu().numpy()), 1)]
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(sheet)
        image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(path)
