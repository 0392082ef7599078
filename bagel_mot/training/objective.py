"""The training objective: cross-entropy on text, rectified flow on latents.

For an image with clean latent x₀, noise ε and one timestep t the network sees x_t = (1−t)·x₀ + t·ε and predicts the
velocity ε − x₀. Losses are returned as sums with their counts, so that they can be normalised over a whole optimiser
step whatever the number of packs in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bagel_mot.model.attention import Attention
from bagel_mot.model.bagel import BagelModel
from bagel_mot.sequence import TrainingLayout, Values


def shift_timesteps(t: Tensor, shift: float) -> Tensor:
    """s·t / (1 + (s−1)·t): moves timesteps in [0, 1] towards noise for s > 1."""
    return shift * t / (1 + (shift - 1) * t)


def draw_timesteps(images: int, shift: float, generator: torch.Generator) -> Tensor:
    """One timestep per image, (images,): a standard normal through the sigmoid, then shifted.

    The normals are stratified over the images of a pack: each is distributed as if drawn alone, but together they
    cover the range evenly, which lowers the variance of the gradient.
    """
    uniform = (torch.randperm(images, generator=generator) + torch.rand(images, generator=generator)) / max(images, 1)
    normal = torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6))
    return shift_timesteps(normal.sigmoid(), shift)


@dataclass
class NoisedPack:
    """A pack whose target latents carry noise, and the velocity to predict for them."""

    layout: TrainingLayout
    values: Values
    target: Tensor  # (number of noised tokens, latent_dim)

    def to(self, device: torch.device | str) -> NoisedPack:
        """The same with its tensors on a device."""
        return NoisedPack(self.layout.to(device), self.values.to(device), self.target.to(device))


def add_noise(layout: TrainingLayout, values: Values, timesteps: Tensor, noise: Tensor) -> NoisedPack:
    """Noises the target latents of a pack.

    Args:
        layout, values: a pack with clean latents everywhere.
        timesteps: (images,) in [0, 1], one per VAE segment; those of conditions are ignored.
        noise: (Nl, latent_dim) standard normal; rows of conditions are ignored.
    """
    noised, latents = layout.noised[layout.latent_image], values.latents
    image_t = torch.where(layout.noised, timesteps, 0.0)
    t = image_t[layout.latent_image, None]
    mixed = torch.where(noised[:, None], (1 - t) * latents + t * noise, latents)
    return NoisedPack(layout, Values(values.vit_patches, mixed, image_t), (noise - latents)[noised])


@dataclass
class Losses:
    """Losses of one pack, float32 with gradient: `ce` (Nc,) by token, `mse` (Nm, latent_dim) squared errors."""

    ce: Tensor
    mse: Tensor
    ce_weights: Tensor

    def ce_sum(self, reweight: bool) -> Tensor:
        """Summed cross-entropy, by token or, with `reweight`, weighted by 1/√(target length)."""
        return (self.ce * self.ce_weights).sum() if reweight else self.ce.sum()

    def ce_count(self, reweight: bool) -> float:
        """What the summed cross-entropy is divided by."""
        return float(self.ce_weights.sum()) if reweight else float(self.ce.numel())

    def mse_sum(self) -> Tensor:
        """Summed squared error, averaged over channels."""
        return self.mse.mean(-1).sum() if self.mse.numel() else self.mse.sum()

    @property
    def mse_count(self) -> int:
        return self.mse.shape[0]


def compute_losses(model: BagelModel, noised: NoisedPack, attend: Attention) -> Losses:
    """Runs the network on a pack and returns its losses. Packs without text targets or without images are fine."""
    layout = noised.layout
    und, gen = model(layout, noised.values, attend)
    logits = model.logits(und[layout.ce_slots]).float()
    ce = F.cross_entropy(logits, layout.ce_labels, reduction="none")
    velocity = model.velocity(gen[layout.latent_slots[layout.noised[layout.latent_image]]]).float()
    return Losses(ce, (velocity - noised.target).square(), layout.ce_weights)
