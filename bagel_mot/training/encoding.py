"""Images of a pack as latent tokens: the frozen autoencoder, as it runs while the model trains."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from bagel_mot.images import patchify, scale_levels
from bagel_mot.model.transfer import to_device
from bagel_mot.model.vae import Autoencoder
from bagel_mot.training.sizes import encoded_together


class ImageEncoder:
    """Encodes images in the run's precision, on the device that trains."""

    def __init__(
        self, autoencoder: Autoencoder, patch_size: int, dtype: torch.dtype, device: torch.device, *, compiled: bool
    ) -> None:
        """Copies an autoencoder, which keeps its own precision.

        Args:
            autoencoder: the autoencoder.
            patch_size: the latent's places on a side of a token.
            dtype: the type in which it computes.
            device: the device on which it computes.
            compiled: whether it is compiled, for each size of images once.
        """
        self.autoencoder = copy.deepcopy(autoencoder).to(device, dtype)
        self.patch_size, self.dtype, self.device, self.compiled = patch_size, dtype, device, compiled
        self._encode = torch.compile(self.autoencoder.encode, dynamic=False) if compiled else self.autoencoder.encode

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Latent tokens of images of one size, uint8 levels (n, H, W, 3): (n·rows·columns, latent_dim) float32 on the
        device.

        They run in batches of a number that their size decides. For a compiled encoder, which keeps its shape, the last
        one is filled up.
        """
        tokens: list[Tensor] = []
        batch = encoded_together(images.shape[1] * images.shape[2])
        for some in images.split(batch):
            missing = batch - len(some) if self.compiled else 0
            filled = torch.cat([some, some[:1].expand(missing, -1, -1, -1)])
            pixels = scale_levels(to_device(filled, self.device).permute(0, 3, 1, 2))
            latents = self._encode(pixels.to(self.dtype))[: len(some)].float()
            tokens += [patchify(latent, self.patch_size) for latent in latents]
        return torch.cat(tokens)
