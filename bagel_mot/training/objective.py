"""The training objective: cross-entropy on text, rectified flow on latents.

For an image with clean latent x₀, noise ε and one timestep t the network sees x_t = (1−t)·x₀ + t·ε and predicts the
velocity ε − x₀. Losses are returned as sums with their counts, so that they can be normalised over a whole optimiser
step whatever the number of packs in it. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bagel_mot.errors import DeviceError
from bagel_mot.model.attention import Attention, MaskedAttention
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.segment_attention import SegmentAttention
from bagel_mot.sequence import TrainingLayout, Values

CE_CHUNK = 2048
"""Text targets whose logits are held at once: 1.2 GB of float32 at the official vocabulary of 152,064."""


def shift_timesteps(t: Tensor, shift: float) -> Tensor:
    """s·t / (1 + (s−1)·t): moves timesteps in [0, 1], of any shape, towards noise for s > 1."""
    return shift * t / (1 + (shift - 1) * t)


def draw_timesteps(count: int, shift: float, generator: torch.Generator) -> Tensor:
    """Timesteps (count,) on the generator's device: a standard normal through the sigmoid, then shifted.

    The normals are stratified over a pack: each is distributed as if drawn alone, but together they cover the range
    evenly, which lowers the variance of the gradient.
    """
    device = generator.device
    order = torch.randperm(count, generator=generator, device=device)
    uniform = (order + torch.rand(count, generator=generator, device=device)) / max(count, 1)
    normal = torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6))
    return shift_timesteps(normal.sigmoid(), shift)


@dataclass
class NoisedPack:
    """A pack whose target latents carry noise.

    Attributes:
        layout, values: the pack.
        velocity: (Nl, latent_dim) to predict for each latent token; conditions have none, and theirs is not read.
    """

    layout: TrainingLayout
    values: Values
    velocity: Tensor

    def to(self, device: torch.device | str) -> NoisedPack:
        """The same with its tensors on a device."""
        return NoisedPack(self.layout.to(device), self.values.to(device), self.velocity.to(device))


def add_noise(layout: TrainingLayout, values: Values, timesteps: Tensor, noise: Tensor) -> NoisedPack:
    """Noises the target latents of a pack.

    Args:
        layout, values: a pack with clean latents everywhere.
        timesteps: (images,) in [0, 1], one per VAE image; those of conditions are ignored.
        noise: (Nl, latent_dim) standard normal; rows of conditions are ignored.
    """
    clean, image_t = values.latents, torch.where(layout.noised, timesteps, 0.0)
    t = image_t[layout.latent_image, None]
    mixed = torch.where(layout.noised[layout.latent_image, None], (1 - t) * clean + t * noise, clean)
    return NoisedPack(layout, Values(values.vit_patches, mixed, image_t), noise - clean)


@dataclass
class Losses:
    """Losses of one pack, float32 with gradient.

    Attributes:
        ce: (Nc,) cross-entropy of each text target.
        mse: (Nl, latent_dim) squared errors of the velocity; zero for conditions.
        ce_weights: (Nc,) weights of the targets, 1/√(length of the target text).
    """

    ce: Tensor
    mse: Tensor
    ce_weights: Tensor

    def ce_sum(self, reweight: bool) -> Tensor:
        """Summed cross-entropy, a scalar: by token or, with `reweight`, weighted by 1/√(target length)."""
        return (self.ce * self.ce_weights).sum() if reweight else self.ce.sum()

    def mse_sum(self) -> Tensor:
        """Summed squared error, a scalar, averaged over channels."""
        return self.mse.mean(-1).sum()


def loss_counts(layout: TrainingLayout, reweight: bool) -> dict[str, float]:
    """The divisors of the summed losses of a pack that is still on the CPU."""
    ce = float(layout.ce_weights.numpy().sum()) if reweight else float(layout.ce_labels.numel())
    noised = zip(layout.latent_grids, layout.noised.numpy(), strict=True)
    return {"ce": ce, "mse": float(sum(rows * columns for (rows, columns), target in noised if target))}


@dataclass(frozen=True)
class OwnTargets:
    """The targets of a pack in the slots that this process computes, where a pack's tokens are shared among processes.

    Attributes:
        ce, ce_slots: (Mc,) places among the text targets, and their slots in this process's share.
        latents, latent_slots: (Ml,) places among the latent tokens, and their slots in the share.
    """

    ce: Tensor
    ce_slots: Tensor
    latents: Tensor
    latent_slots: Tensor

    def to(self, device: torch.device) -> OwnTargets:
        """The same on a device."""
        return OwnTargets(*(part.to(device, non_blocking=True) for part in vars(self).values()))


def compute_losses(
    model: BagelModel,
    noised: NoisedPack,
    attend: Attention,
    own: OwnTargets | None = None,
    taught: tuple[Tensor, Tensor] | None = None,
) -> Losses:
    """Runs the network on a pack and returns its losses. Packs without text targets or without images are fine.

    Args:
        model: the network.
        noised: the pack.
        attend: decides who sees whom.
        own: the targets whose losses are to be computed, if the network returns a share of the slots.
        taught: (Ml,) bool, the latent targets that another network teaches, and (Ml, latent_dim) the velocities that it
            predicts for all.
    """
    layout, target = noised.layout, noised.velocity
    und, gen = model(layout, noised.values, attend)
    ce_slots, labels, weights = layout.ce_slots, layout.ce_labels, layout.ce_weights
    latent_slots, image = layout.latent_slots, layout.latent_image
    if own is not None:
        ce_slots, labels, weights = own.ce_slots, labels[own.ce], weights[own.ce]
        latent_slots, image, target = own.latent_slots, image[own.latents], target[own.latents]
    ce = cross_entropy(model, und[ce_slots], labels)
    velocity = model.velocity(gen[latent_slots]).float()
    if taught is not None:
        target = torch.where(taught[0][:, None], taught[1], target)
    conditions = ~layout.noised[image, None]
    return Losses(ce, (velocity - target).masked_fill(conditions, 0.0).square(), weights)


@torch.no_grad()
def predict_velocities(
    model: BagelModel, noised: NoisedPack, attend: Attention, own: OwnTargets | None = None
) -> Tensor:
    """The velocities that a network predicts for the latent tokens of a pack, (Ml, latent_dim) float32. Arguments as
    `compute_losses`.
    """
    _, gen = model(noised.layout, noised.values, attend)
    return model.velocity(gen[noised.layout.latent_slots if own is None else own.latent_slots]).float()


def cross_entropy(model: BagelModel, hidden: Tensor, labels: Tensor, chunk: int = CE_CHUNK) -> Tensor:
    """Cross-entropy of each target, (N,) float32, with the logits of at most `chunk` targets at a time.

    Chunks keep their hidden states alone for the backward pass and compute their logits again there.

    Args:
        model: the network whose head makes the logits.
        hidden: (N, hidden) states before the final norm.
        labels: (N,) ids.
        chunk: targets at a time.
    """

    def one(hidden: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model.logits(hidden).float(), labels, reduction="none")

    if len(labels) <= chunk:
        return one(hidden, labels)
    parts = zip(hidden.split(chunk), labels.split(chunk), strict=True)
    return torch.cat([checkpoint(one, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])


def takes_whole_mask(name: str, *, on_cpu: bool) -> bool:
    """Whether an attention of that name holds a mask over whole rows."""
    return name == "sdpa" and not on_cpu


def attention_of(name: str, device: torch.device, dtype: torch.dtype) -> Callable[[TrainingLayout], Attention]:
    """The attention of a pack by its name in a recipe, "sdpa" or "flex".

    Args:
        name: the name.
        device: the device that trains.
        dtype: the type in which it multiplies.

    Raises:
        DeviceError: FlexAttention is asked for where it has no gradients.
    """
    if name == "sdpa":
        masked = takes_whole_mask(name, on_cpu=device.type == "cpu")
        return partial(MaskedAttention if masked else SegmentAttention, dtype=dtype)
    if device.type != "cuda":
        raise DeviceError(f"attention is 'flex', which trains on CUDA devices only, and this is {device}: use 'sdpa'.")
    from bagel_mot.model.flex import FlexMaskedAttention

    return FlexMaskedAttention
