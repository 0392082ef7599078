"""The plain side of whole tasks: from texts and images to an image or a text, as the published pipeline works.

What it does otherwise than our engine, beyond `bagel_mot.bench.plain`:
- each input is a forward pass of its own, and each guidance context is read for itself or copied whole: nothing that
  two contexts begin with is shared;
- where guidance is on, three branches run one after another, also where two of them have the same context;
- the autoencoder runs in the precision of its weights, one image at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from PIL import Image
from torch import Tensor

from bagel_mot.bench.plain import (
    PlainCache,
    plain_text,
    plain_vae_image,
    plain_velocity,
    plain_vit_image,
)
from bagel_mot.bench.plain_autoencoder import plain_decode, plain_encode
from bagel_mot.images import patchify, to_pil, to_pixels, unpatchify
from bagel_mot.inference import sampler
from bagel_mot.inference.request import ImageInput, Request, TextInput
from bagel_mot.inference.steps.draw import noises_of
from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.vae import Autoencoder
from bagel_mot.sequence import table_index
from bagel_mot.tokenizer import SpecialTokens


@dataclass
class PlainContext:
    """The cache of a branch, and the rotary position of what follows."""

    cache: PlainCache
    position: int = 0

    def copy(self) -> PlainContext:
        return PlainContext(self.cache.copy(), self.position)


class PlainPipeline:
    """A model and its autoencoder, both with plain weights, and what runs whole requests with them.

    Args:
        model, autoencoder: the networks, in evaluation mode.
        special: ids of the special tokens.
    """

    def __init__(self, model: BagelModel, autoencoder: Autoencoder, special: SpecialTokens) -> None:
        self.model, self.autoencoder, self.special = model, autoencoder, special
        self.markers = torch.tensor([special.start_of_image, special.end_of_image], device=model.device)

    @torch.inference_mode()
    def draw(self, request: Request) -> tuple[Image.Image, Tensor]:
        """The image of a request, and its latent tokens (N, latent_dim) in float32."""
        settings, config, device = request.settings, self.model.config, self.model.device
        assert request.size is not None, "an image needs a size"
        grid = request.size[1] // config.latent_stride, request.size[0] // config.latent_stride
        full, without_text, without_image = self._empty(), self._empty(), self._empty()
        for one in request.inputs:
            if isinstance(one, TextInput):
                without_text = full.copy()
                self._read_text(one, full)
                self._read_text(one, without_image)
            else:
                self._read_image(one, full)
        index = table_index(*grid, config.max_latent_size).to(device)
        x = next(noises_of(config, request.size, request.seed, request.noise)).to(device, torch.float32)
        times = sampler.timesteps(settings.num_timesteps, settings.timestep_shift).tolist()
        for t, following in pairwise(times):
            guided = len(sampler.roles(t, settings)) > 1
            contexts = (full, without_text, without_image) if guided else (full,)
            velocities = [
                plain_velocity(
                    self.model, self.markers, x.to(self.model.dtype), index, t, context.position, context.cache
                ).float()
                for context in contexts
            ]
            v = velocities[0]
            if guided:
                of_image = velocities[2] if settings.cfg_image_scale > 1 else None
                v = sampler.guide(v, velocities[1], of_image, settings)
            x = sampler.step(x, v, t, following)
        patch = config.latent_patch_size
        latent = unpatchify(x, grid[0] * patch, grid[1] * patch, patch)
        return to_pil(plain_decode(self.autoencoder, latent).float()), x

    @torch.inference_mode()
    def write(self, request: Request) -> list[int]:
        """The likeliest tokens behind a request's inputs, as many as it allows; no token ends them."""
        context = self._empty()
        for one in request.inputs:
            if isinstance(one, TextInput):
                self._read_text(one, context)
            else:
                self._read_image(one, context)
        token, tokens = self.special.bos, list[int]()
        for _ in range(request.max_text_tokens):
            ids = torch.tensor([token], device=self.model.device)
            hidden = plain_text(self.model, ids, context.position, context.cache)
            context.position += 1
            token = int(self.model.logits(hidden)[0].argmax())
            tokens.append(token)
        return tokens

    def _empty(self) -> PlainContext:
        return PlainContext(PlainCache.empty(len(self.model.decoder.layers)))

    def _read_text(self, text: TextInput, context: PlainContext) -> None:
        ids = torch.tensor(text.segment.ids, device=self.model.device)
        plain_text(self.model, ids, context.position, context.cache)
        context.position += ids.numel()

    def _read_image(self, image: ImageInput, context: PlainContext) -> None:
        config, device = self.model.config, self.model.device
        if image.vae_tokens:
            latent = plain_encode(self.autoencoder, to_pixels(image.image).to(device))
            patch = config.latent_patch_size
            tokens = patchify(latent.to(self.model.dtype), patch)
            index = table_index(latent.shape[1] // patch, latent.shape[2] // patch, config.max_latent_size).to(device)
            plain_vae_image(self.model, self.markers, tokens, index, context.position, context.cache)
            context.position += 1
        pixels, side = to_pixels(image.vit_image), config.vit.patch_size
        grid = pixels.shape[1] // side, pixels.shape[2] // side
        patches = patchify(pixels, side).to(device)
        plain_vit_image(self.model, self.markers, patches, grid, context.position, context.cache)
        context.position += 1
