"""Documents: what a training sample says and shows, before it becomes tokens.

A source of data yields documents; a `SampleBuilder` turns one into the segments of a sample. Latents are not known yet:
the images of a pack are encoded together, on the device that trains.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic.dataclasses import dataclass as section
from torch import Tensor

from bagel_mot.config import Section, Share
from bagel_mot.data.rows import SkipRow
from bagel_mot.errors import ImageError, PromptError
from bagel_mot.images import ImageTransform, open_image, to_levels
from bagel_mot.images.published import open_published, open_published_frame
from bagel_mot.sequence import (
    DroppedImage,
    FramesSegment,
    Sample,
    Segment,
    VaeSegment,
    segment_length,
    text_segment,
    vit_segment,
)
from bagel_mot.tokenizer import Tokenizer

_MARKERS = 2  # tokens around the patches of an image


@dataclass(frozen=True)
class Opener:
    """Two functions that open a file, given as its bytes or its path, as RGB, or raise `ImageError`.

    Attributes:
        image: opens an image.
        frame: opens a frame of a clip.
    """

    image: Callable[[bytes | Path], Image.Image]
    frame: Callable[[bytes | Path], Image.Image]


OPENERS = {
    "upright": Opener(open_image, open_image),
    "published": Opener(open_published, open_published_frame),
}
"""The ways to open files: upright, in sRGB, over white, and whole ones alone; or as the published training does."""


class LazyImage(ABC):
    """An image that is made when a sample needs it: a frame of a video, or another image changed."""

    @abstractmethod
    def make(self, opener: Opener) -> Image.Image:
        """The image, RGB. Files are opened by `opener`.

        Raises:
            ImageError: a file is damaged.
        """


@dataclass(frozen=True)
class FrameFile(LazyImage):
    """A frame of a clip that is a file of its own."""

    path: Path

    def make(self, opener: Opener) -> Image.Image:
        return opener.frame(self.path)


AnyImage = Image.Image | bytes | Path | LazyImage


@dataclass(frozen=True)
class TextPart:
    """A text, given or to be learnt (`loss`). Condition dropout may leave out a `droppable` one.

    `starts_image`: whether the model is to learn that an image starts after it; the label of the text's end token.
    """

    text: str
    loss: bool = False
    droppable: bool = False
    starts_image: bool = False


@dataclass(frozen=True)
class ImagePart:
    """An image and the forms in which it enters the sequence.

    Attributes:
        image: the image, RGB; or the bytes or the path of its file, or a recipe to make it, which are opened once
            the sample is made.
        target: whether it is to be drawn: as `copies` noised segments, each with its own timestep.
        vae, vit: whether it is also a clean VAE, or ViT, condition for what follows.
        copies: the number of noised segments of a target.
        droppable: whether condition dropout may leave either condition out.
        share: the number of images that share the budget of pixels with it, itself included.
    """

    image: AnyImage
    target: bool = False
    vae: bool = False
    vit: bool = False
    copies: int = 1
    droppable: bool = False
    share: int = 1


@dataclass(frozen=True)
class FramesPart:
    """Neighbouring frames of a clip, which see one another; as a target they are noised together, at one timestep.

    Attributes:
        frames: the images.
        numbers: the number of each frame in the clip, in rising order: rotary positions advance as they do.
        target: whether the frames are to be drawn.
        vae: whether they are also a clean VAE condition for what follows.
        copies: the number of noised segments of a target.
        droppable: whether condition dropout may leave the condition out, all frames together.
        following: the number of the clip's frame that comes next in the document; by default what follows is one
            position behind the last frame.
    """

    frames: tuple[AnyImage, ...]
    numbers: tuple[int, ...]
    target: bool = False
    vae: bool = False
    copies: int = 1
    droppable: bool = False
    following: int | None = None


@dataclass(frozen=True)
class ImageRules:
    """Rules by which the images of a data set are opened and resized.

    Attributes:
        vae, vit: the limits of either form; None takes those of the run.
        vit_of_original: whether the ViT's form is made of the original image, as the published training does; else of
            the image as it was resized for the autoencoder, as inference does.
        opener: opens files.
    """

    vae: ImageTransform | None = None
    vit: ImageTransform | None = None
    vit_of_original: bool = False
    opener: Opener = OPENERS["upright"]


Document = Sequence[TextPart | ImagePart | FramesPart]


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
    """A VAE segment without latent yet: it is to be encoded from `levels` (H, W, 3), uint8, once they are scaled to
    [-1, 1] where it trains.
    """

    levels: Tensor


@dataclass(frozen=True)
class IndexedSample(Sample):
    """A document's segments, with the index in its source from which it can be made again. Patches of its images are
    uint8 levels: they are scaled to [-1, 1] where it trains.

    Attributes:
        index: the index, a number or another JSON value that the source knows.
        dataset: the name of the data set that it is from, by which losses are reported.
        length: the number of its tokens before condition dropout.
        replayed: whether it is what the model knows already.
    """

    index: Any = 0
    dataset: str = ""
    length: int = 0
    replayed: bool = False


@dataclass(frozen=True)
class SampleBuilder:
    """Turns documents into samples: tokenizes, resizes images for each encoder, and drops conditions."""

    tokenizer: Tokenizer
    vae_transform: ImageTransform
    vit_transform: ImageTransform
    latent_stride: int
    patch_size: int
    dropout: Dropout

    def __call__(
        self,
        index: Any,
        document: Document,
        rng: random.Random,
        rules: ImageRules | None = None,
        dataset: str = "",
    ) -> IndexedSample:
        """The sample of a document.

        Args:
            index: the document's index, kept with the sample.
            document: the texts and images to turn into segments.
            rng: decides on dropout.
            rules: the rules by which the images are opened and resized, if the run's are not meant.
            dataset: the name of the data set, kept with the sample.

        Raises:
            SkipRow: an image is damaged.
        """
        rules = rules or ImageRules()
        segments: list[Segment] = []
        dropped_tokens = 0
        blind = self.dropout.images > 0 and rng.random() < self.dropout.images
        for part in document:
            if isinstance(part, TextPart):
                text = self._text(part)
                if part.droppable and not part.loss and rng.random() < self.dropout.text:
                    dropped_tokens += segment_length(text)
                else:
                    segments.append(text)
            elif isinstance(part, FramesPart):
                segments.extend(self._frames(part, rng, blind, rules))
            else:
                segments.extend(self._image(part, rng, blind, rules))
        dropped_tokens += sum(segment.length for segment in segments if isinstance(segment, DroppedImage))
        length = dropped_tokens + sum(map(segment_length, segments))
        return IndexedSample(tuple(segments), index=index, dataset=dataset, length=length)

    def _text(self, part: TextPart) -> Segment:
        try:
            ids = self.tokenizer.encode(part.text)
        except PromptError as error:
            raise SkipRow("a text is no valid Unicode", str(error)) from error
        return text_segment(ids, self.tokenizer.special, learn=part.loss, starts_image=part.starts_image)

    def _unencoded(self, resized: Image.Image) -> tuple[UnencodedImage, UnencodedImage]:
        """The noised and the clean segment of an image, which share its pixels."""
        levels = to_levels(resized)
        grid = (resized.height // self.latent_stride, resized.width // self.latent_stride)
        noised, clean = (UnencodedImage(None, grid, noised=noised, levels=levels) for noised in (True, False))
        return noised, clean

    def _frames(self, part: FramesPart, rng: random.Random, blind: bool, rules: ImageRules) -> list[Segment]:
        transform = rules.vae or self.vae_transform
        forms = [self._unencoded(transform.resize(opened(frame, rules.opener))) for frame in part.frames]
        offsets = tuple(number - part.numbers[0] for number in part.numbers)
        step = offsets[-1] + 1 if part.following is None else part.following - part.numbers[0]
        noised, clean = (FramesSegment(frames, offsets, step) for frames in zip(*forms, strict=True))
        segments: list[Segment] = [noised] * (part.copies if part.target else 0)
        if part.vae:
            dropped = part.droppable and (rng.random() < self.dropout.vae or blind)
            segments.append(DroppedImage(clean.advance, segment_length(clean)) if dropped else clean)
        return segments

    def _image(self, part: ImagePart, rng: random.Random, blind: bool, rules: ImageRules) -> list[Segment]:
        segments: list[Segment] = []
        image = opened(part.image, rules.opener)
        vae_transform, vit_transform = rules.vae or self.vae_transform, rules.vit or self.vit_transform
        if part.target or part.vae or not rules.vit_of_original:
            resized = vae_transform.resize(image, part.share)
        if part.target or part.vae:
            noised, clean = self._unencoded(resized)
            segments += [noised] * (part.copies if part.target else 0)
            if part.vae:
                dropped = part.droppable and (rng.random() < self.dropout.vae or blind)
                segments.append(DroppedImage(length=segment_length(clean)) if dropped else clean)
        if part.vit:
            seen = image if rules.vit_of_original else resized
            if part.droppable and (rng.random() < self.dropout.vit or blind):
                width, height = vit_transform.size(*seen.size, images=part.share)
                segments.append(DroppedImage(length=width * height // self.patch_size**2 + _MARKERS))
            else:
                levels = to_levels(vit_transform.resize(seen, part.share))
                segments.append(vit_segment(levels.permute(2, 0, 1), self.patch_size))
        return segments


def opened(image: AnyImage, opener: Opener) -> Image.Image:
    """An image of a document, decoded, as RGB.

    Raises:
        SkipRow: it is damaged.
    """
    if isinstance(image, Image.Image):
        return image
    try:
        return image.make(opener) if isinstance(image, LazyImage) else opener.image(image)
    except ImageError as error:
        raise SkipRow("an image cannot be read", str(error)) from error
