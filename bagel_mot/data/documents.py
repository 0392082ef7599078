"""Documents: what a training sample says and shows, before it becomes tokens.

A source of data yields documents; a `Builder` turns one into segments. Latents are not
known yet: an image that needs one is a `PendingLatent`, and all images of a pack are encoded together later.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image
from torch import Tensor

from bagel_mot.images import ImageTransform, to_pixels
from bagel_mot.sequence import DroppedImage, TextSegment, VaeSegment, VitSegment, text_segment, vit_segment
from bagel_mot.tokenizer import SpecialTokens, Tokenizer


@dataclass(frozen=True)
class TextPart:
    """A text: given, or to be learnt (`loss`). `droppable` allows condition dropout to leave it out."""

    text: str
    loss: bool = False
    droppable: bool = False


@dataclass(frozen=True)
class ImagePart:
    """An image.

    Attributes:
        image: RGB.
        target: to be drawn: it stands `copies` times as a noised segment, each with its own timestep.
        vae, vit: it also stands as a clean VAE, or ViT, condition for what follows.
        droppable: condition dropout may leave either condition out.
    """

    image: Image.Image
    target: bool = False
    vae: bool = False
    vit: bool = False
    copies: int = 1
    droppable: bool = False


Document = Sequence[TextPart | ImagePart]


class Source(Protocol):
    """An endless, indexed supply: the same index always gives the same document."""

    def __call__(self, index: int) -> Document: ...


@dataclass(frozen=True)
class Dropout:
    """How often a condition is left out, each on its own; `pictures`: all images of a document, in both forms.

    Guidance by image compares with a context that has the text alone, which `vit` and `vae` by themselves seldom
    leave.
    """

    text: float = 0.1
    vit: float = 0.3
    vae: float = 0.3
    images: float = 0.0


@dataclass(frozen=True, eq=False)
class PendingLatent:
    """A VAE segment whose latent is still to be encoded from `pixels` (3, H, W) in [-1, 1]."""

    pixels: Tensor
    grid: tuple[int, int]
    noised: bool

    und_len = 2

    @property
    def gen_len(self) -> int:
        return self.grid[0] * self.grid[1]

    def with_latent(self, tokens: Tensor) -> VaeSegment:
        """The segment with its latent tokens (rows·columns, latent_dim)."""
        return VaeSegment(tokens, self.grid, noised=self.noised)


RawSegment = TextSegment | VitSegment | DroppedImage | PendingLatent


@dataclass(frozen=True)
class RawSample:
    """One document as segments, with the index that it can be made from again."""

    index: int
    segments: tuple[RawSegment, ...]

    @property
    def und_len(self) -> int:
        return sum(segment.und_len for segment in self.segments)

    @property
    def gen_len(self) -> int:
        return sum(segment.gen_len for segment in self.segments)


@dataclass(frozen=True)
class Builder:
    """Turns documents into segments: tokenizes, resizes images for each encoder, and drops conditions."""

    tokenizer: Tokenizer
    special: SpecialTokens
    vae_transform: ImageTransform
    vit_transform: ImageTransform
    latent_stride: int
    patch_size: int
    dropout: Dropout

    def __call__(self, index: int, document: Document, rng: random.Random) -> RawSample:
        """
        Args:
            index: kept with the sample.
            document: what to build.
            rng: decides on dropout.
        """
        segments: list[RawSegment] = []
        blind = self.dropout.images > 0 and rng.random() < self.dropout.images
        for part in document:
            if isinstance(part, TextPart):
                dropped = part.droppable and not part.loss and rng.random() < self.dropout.text
                if not dropped:
                    ids = self.tokenizer.encode(part.text)
                    segments.append(text_segment(ids, self.special, learn=part.loss))
            else:
                segments.extend(self._image(part, rng, blind))
        return RawSample(index, tuple(segments))

    def _image(self, part: ImagePart, rng: random.Random, blind: bool) -> list[RawSegment]:
        segments: list[RawSegment] = []
        resized = self.vae_transform.resize(part.image)
        if part.target or part.vae:
            pixels = to_pixels(resized)
            grid = (pixels.shape[1] // self.latent_stride, pixels.shape[2] // self.latent_stride)
            if part.target:
                segments += [PendingLatent(pixels, grid, noised=True) for _ in range(part.copies)]
            if part.vae:
                dropped = part.droppable and (rng.random() < self.dropout.vae or blind)
                segments.append(DroppedImage() if dropped else PendingLatent(pixels, grid, noised=False))
        if part.vit:
            dropped = part.droppable and (rng.random() < self.dropout.vit or blind)
            segments.append(DroppedImage() if dropped else vit_segment(self.vit_transform(resized), self.patch_size))
        return segments
