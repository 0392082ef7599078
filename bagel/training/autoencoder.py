"""Training the autoencoder on pictures of the mini world."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from bagel.checkpoint.official import AUTOENCODER_FILE, save_checkpoint
from bagel.config import BagelConfig, VaeConfig
from bagel.images import to_uint8
from bagel.mini.draw import draw_array
from bagel.mini.sampling import sample_scene
from bagel.model.vae import Autoencoder
from bagel.training.loop import Task, pick_device
from bagel.training.recipe import AutoencoderRecipe

_STATISTICS_PICTURES = 512


def to_tensor(pictures: list[np.ndarray]) -> Tensor:
    """uint8 (H, W, 3) pictures -> (B, 3, H, W) float32 in [-1, 1]."""
    stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return (stacked.float() / 127.5 - 1).contiguous()


class AutoencoderTask(Task[Tensor]):
    """Reconstruction (L1 and squared error, per picture) with a KL term that keeps the latent smooth."""

    loss_weights: dict[str, float]

    def __init__(self, recipe: AutoencoderRecipe) -> None:
        self.recipe = recipe
        self.device = pick_device(recipe.device)
        torch.manual_seed(recipe.seed)
        model = recipe.model
        config = VaeConfig(
            resolution=recipe.side,
            ch=model.ch,
            ch_mult=model.ch_mult,
            num_res_blocks=model.num_res_blocks,
            z_channels=model.z_channels,
            scale_factor=1.0,
            shift_factor=0.0,
        )
        self.module = Autoencoder(config).to(self.device)
        # Begin with little noise in the posterior: at unit variance it drowns the signal, and the decoder learns to ignore it.
        with torch.no_grad():
            self.module.encoder.conv_out.bias[model.z_channels :] = -5.0
        self.loss_weights = {"l1": 1.0, "mse": 1.0, "kl": recipe.kl_weight}
        self.rng = random.Random(recipe.seed)
        self._losses = torch.compile(self._losses_eager) if recipe.compile else self._losses_eager

    def next_batch(self) -> Tensor:
        scenes = [sample_scene(self.rng) for _ in range(self.recipe.batch_size)]
        return to_tensor([draw_array(scene, self.recipe.side) for scene in scenes])

    def counts(self, batch: Tensor) -> dict[str, float]:
        return {"l1": float(batch.numel()), "mse": float(batch.numel()), "kl": float(batch.shape[0])}

    def tokens(self, batch: Tensor) -> int:
        return batch.shape[0]

    def losses(self, batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        scale = self.module.config.downsample
        shape = (len(batch), self.module.config.z_channels, batch.shape[2] // scale, batch.shape[3] // scale)
        noise = torch.randn(shape, generator=generator)
        l1, mse, kl = self._losses(batch.to(self.device), noise.to(self.device))
        return {"l1": l1, "mse": mse, "kl": kl}

    def _losses_eager(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, logvar = self.module.posterior(pixels)
        mean, logvar = mean.float(), logvar.float()
        decoded = self.module.decoder(mean + noise * (0.5 * logvar).exp()).float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum()
        return F.l1_loss(decoded, pixels, reduction="sum"), F.mse_loss(decoded, pixels, reduction="sum"), kl

    def data_state(self) -> Any:
        return self.rng.getstate()

    def load_data_state(self, state: Any) -> None:
        version, internal, gauss = state
        self.rng.setstate((version, tuple(internal), gauss))

    def _averaged(self, weights: dict[str, Tensor]) -> Autoencoder:
        model = Autoencoder(self.module.config).to(self.device)
        model.load_state_dict(weights)
        return model.eval()

    @torch.no_grad()
    def write_weights(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Measures the latent's mean and deviation and writes them as shift and scale, so that it has unit variance."""
        model = self._averaged(weights)
        rng = random.Random(self.recipe.seed + 1)
        pictures = [draw_array(sample_scene(rng), self.recipe.side) for _ in range(_STATISTICS_PICTURES)]
        means = [model.posterior(to_tensor(pictures[i : i + 32]).to(self.device))[0] for i in range(0, len(pictures), 32)]
        latent = torch.cat(means).float()
        vae = VaeConfig(
            **{
                **vars(self.module.config),
                "shift_factor": round(latent.mean().item(), 6),
                "scale_factor": round(1 / latent.std().item(), 6),
            }
        )
        save_checkpoint(folder, BagelConfig(vae=vae), autoencoder=weights)
        assert (folder / AUTOENCODER_FILE).exists()

    @torch.no_grad()
    def write_samples(self, path: Path, weights: dict[str, Tensor]) -> None:
        """Pictures above their reconstructions."""
        model = self._averaged(weights)
        rng = random.Random(self.recipe.seed + 2)
        pictures = [draw_array(sample_scene(rng), self.recipe.side) for _ in range(12)]
        decoded = model.decoder(model.posterior(to_tensor(pictures).to(self.device))[0])
        sheet = np.concatenate([np.concatenate(pictures, 1), np.concatenate(list(to_uint8(decoded.float()).cpu().numpy()), 1)])
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(sheet)
        image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(path)
