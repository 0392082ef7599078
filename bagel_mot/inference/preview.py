"""Previews of an image while it forms: from its latent, without the autoencoder's decoder.

An image is nearly a linear function of its latent. The map from each 3 × 3 neighbourhood of latent cells to the pixels
of the middle cell is fitted by least squares, once for each autoencoder, to its own encodings of some images: those of
the checkpoint, or random drawings. A preview then costs a matrix product, thousands of times less than a decoding.
"""

from __future__ import annotations

import random
from math import ceil

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from bagel_mot.images import to_pil, to_pixels
from bagel_mot.model.finite import is_finite
from bagel_mot.model.vae import Autoencoder

MAX_PREVIEWS = 8
"""Maximum previews per image."""
_LARGEST_SIDE = 256  # pixels of a preview
_IMAGES, _CELLS = 64, 8  # images to fit to, and the latent cells along the side of each
_RIDGE = 1e-3


def due(done: int, steps: int) -> bool:
    """Whether a preview is due after `done` of `steps` steps: at most MAX_PREVIEWS times, never at the end."""
    return done < steps and done % ceil(steps / MAX_PREVIEWS) == 0


class Previewer:
    """A map from latents to small images, fitted to one autoencoder, which encodes up to 64 small images for it.

    Args:
        autoencoder: the autoencoder, in evaluation mode.
        images: a sheet of typical images, of eight latent cells a side each; random drawings if not given.
    """

    def __init__(self, autoencoder: Autoencoder, images: Image.Image | None = None) -> None:
        device = next(autoencoder.parameters()).device
        self.stride = autoencoder.config.downsample
        side = self.stride * _CELLS
        chosen = _drawings(side) if images is None else _cut(images, side)
        pixels = torch.stack([to_pixels(image) for image in chosen])
        with torch.no_grad():
            latents = autoencoder.encode(pixels.to(device, autoencoder.dtype)).float()
        inputs = _neighbourhoods(latents).flatten(0, 1)
        wanted = F.unfold(pixels.to(latents.device), self.stride, stride=self.stride).transpose(1, 2).flatten(0, 1)
        gram = inputs.T @ inputs
        gram += _RIDGE * gram.diagonal().mean() * torch.eye(gram.shape[0], device=gram.device)
        self.weight = torch.linalg.solve(gram, inputs.T @ wanted)  # (9·z + 1, 3·stride²)

    def __call__(self, latent: Tensor) -> Image.Image | None:
        """The preview of a scaled latent (z, h, w): an image of its proportions, at most 256 pixels wide or high; None
        if the latent is not finite.
        """
        _, height, width = latent.shape
        full = self.stride
        # A cell's pixels are averaged beforehand, in the map itself, where the whole image would be too large.
        block = max(1, min(full, _LARGEST_SIDE // max(height, width)))
        while full % block:
            block -= 1
        weight = self.weight.view(-1, 3, block, full // block, block, full // block).mean((3, 5)).flatten(1)
        cells = _neighbourhoods(latent.to(weight.device, torch.float32)[None]) @ weight
        pixels = F.fold(cells.transpose(1, 2), (height * block, width * block), block, stride=block)
        preview = pixels[0].cpu()
        return to_pil(preview) if is_finite(preview) else None


def _neighbourhoods(latents: Tensor) -> Tensor:
    """(N, z, h, w) -> (N, h·w, 9·z + 1): each cell with its neighbours, and a one."""
    around = F.unfold(latents, 3, padding=1).transpose(1, 2)
    return F.pad(around, (0, 1), value=1.0)


def _cut(sheet: Image.Image, side: int) -> list[Image.Image]:
    """The first images of a sheet, row by row."""
    columns, rows = sheet.width // side, sheet.height // side
    corners = [(x * side, y * side) for y in range(rows) for x in range(columns)][:_IMAGES]
    return [sheet.crop((x, y, x + side, y + side)) for x, y in corners]


def _drawings(side: int) -> list[Image.Image]:
    """Random shapes in random colours over shaded grounds; always the same ones."""
    rng = random.Random(0)

    def colour() -> tuple[int, int, int]:
        return rng.randrange(256), rng.randrange(256), rng.randrange(256)

    drawings = []
    for _ in range(_IMAGES):
        ground = Image.merge("RGB", [Image.linear_gradient("L").rotate(90 * rng.randrange(4)) for _ in range(3)])
        drawing = Image.blend(Image.new("RGB", (side, side), colour()), ground.resize((side, side)), rng.random() / 2)
        pen = ImageDraw.Draw(drawing)
        for _ in range(rng.randint(1, 6)):
            x, y = rng.randrange(side), rng.randrange(side)
            box = (x, y, x + rng.randint(2, side // 2), y + rng.randint(2, side // 2))
            rng.choice((pen.rectangle, pen.ellipse))(box, fill=colour())
        drawings.append(drawing)
    return drawings
