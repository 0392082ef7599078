"""Documents: what a training sample says and shows, before it becomes tokens.

A source of data yields documents; a `SampleBuilder` turns one into the segments of a sample. Latents are not known yet:
the images of a pack are encoded together, on the device that trains.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image
from pydantic.dataclasses import dataclass as section
from torch import Tensor

from bagel_mot.config import Section, Share
from bagel_mot.images import ImageTransform, to_pixels
from bagel_mot.sequence import DroppedImage, Sample, Segment, VaeSegment, text_segment, vit_segment
from bagel_mot.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextPart:
    """A text, given or to be learnt (`loss`). Condition dropout may leave out a `droppable` one."""

    text: str
    loss: bool = False
    droppable: bool = False


@dataclass(frozen=True)
class ImagePart:
    """An image and the forms in which it enters the sequence.

    Attributes:
        image: the image, RGB.
        target: whether it is to be drawn: as `copies` noised segments, each with its own timestep.
        vae, vit: whether it is also a clean VAE, or ViT, condition for what follows.
        copies: the number of noised segments of a target.
        droppable: whether condition dropout may leave either condition out.
    """

    image: Image.Image
    target: bool = False
    vae: bool = False
    vit: bool = False
    copies: int = 1
    droppable: bool = False


Document = Sequence[TextPart | ImagePart]


@section(frozen=True)
class Dropout(Section):
    """Probabilities of leaving a condition out, each on its own; `images`: all images of a document, in both forms.

    Guidance by image compares with a context that has the text alone, which `vit` and `vae` by themselves seldom
    leave.
    """

    text: Share = 0.1
    vit: Share = 0.3
    vae: Share = 0.3
    images: Share = 0.0


@dataclass(frozen=True, eq=False, kw_only=True)
class UnencodedImage(VaeSegment):
    """A VAE segment without latent yet: it is to be encoded from `pixels` (3, H, W), float32 in [-1, 1]."""

    pixels: Tensor


@dataclass(frozen=True)
class IndexedSample(Sample):
    """A document's segments, with the index in its source from which it can be made again."""

    index: int = 0


@dataclass(frozen=True)
class SampleBuilder:
    """Turns documents into samples: tokenizes, resizes images for each encoder, and drops conditions."""

    tokenizer: Tokenizer
    vae_transform: ImageTransform
    vit_transform: ImageTransform
    latent_stride: int
    patch_size: int
    dropout: Dropout

    def __call__(self, index: int, document: Document, rng: random.Random) -> IndexedSample:
        """The sample of a document.

        Args:
            index: the document's index, kept with the sample.
            document: the texts and images to turn into segments.
            rng: decides on dropout.
        """
        segments: list[Segment] = []
        blind = self.dropout.images > 0 and rng.random() < self.dropout.images
        for part in document:
            if isinstance(part, TextPart):
                dropped = part.droppable and not part.loss and rng.random() < self.dropout.text
                if not dropped:
                    ids = self.tokenizer.encode(part.text)
                    segments.append(text_segment(ids, self.tokenizer.special, learn=part.loss))
            else:
                segments.extend(self._image(part, rng, blind))
        return IndexedSample(tuple(segments), index=index)

    def _image(self, part: ImagePart, rng: random.Random, blind: bool) -> list[Segment]:
        segments: list[Segment] = []
        resized = self.vae_transform.resize(part.image)
        if part.target or part.vae:
            pixels = to_pixels(resized)
            grid = (resized.height // self.latent_stride, resized.width // self.latent_stride)
            noised, clean = (UnencodedImage(None, grid, noised=noised, pixels=pixels) for noised in (True, False))
            segments += [noised] * (part.copies if part.target else 0)
            if part.vae:
                dropped = part.droppable and (rng.random() < self.dropout.vae or blind)
                segments.append(DroppedImage() if dropped else clean)
        if part.vit:
            dropped = part.droppable and (rng.random() < self.dropout.vit or blind)
            segments.append(DroppedImage() if dropped else vit_segment(self.vit_transform(resized), self.patch_size))
        return segments
