"""Segments, which describe themselves as runs of tokens, and the samples that they make up."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from bagel_mot.images import patchify
from bagel_mot.tokenizer import SpecialTokens

CAUSAL, FULL, NOISED = 0, 1, 2  # attention inside a segment
TEXT, VIT, VAE = 0, 1, 2  # kinds of tokens

START_OF_IMAGE, END_OF_IMAGE = -1, -2  # in place of ids, which depend on the tokenizer

Grid = tuple[int, int]  # (rows, columns) of patches or latent tokens


@dataclass(frozen=True, eq=False)
class TokenRun:
    """Neighbouring tokens of one kind within a segment.

    Attributes:
        kind: TEXT, VIT or VAE. The tokens of a text count rotary positions up; those of an image share one.
        ids: the token ids of a text.
        labels: the targets of its tokens: `labels[i]` is to be predicted at `ids[first_label + i]`.
        first_label: the place of the first token with a target.
        grid: (rows, columns) of an image's tokens.
        values: an image's patches (rows·columns, patch_dim) or latent tokens (rows·columns, latent_dim); None for
            latents that are not known when they are laid out.
        timestep: the noise level of a VAE image, in [0, 1].
        position: the rotary position of the first token, relative to the segment's.
    """

    kind: int
    ids: tuple[int, ...] = ()
    labels: tuple[int, ...] = ()
    first_label: int = 0
    grid: Grid = (0, 0)
    values: Tensor | None = None
    timestep: float = 0.0
    position: int = 0

    @property
    def length(self) -> int:
        return len(self.ids) if self.kind == TEXT else self.grid[0] * self.grid[1]


_START, _END = TokenRun(TEXT, (START_OF_IMAGE,)), TokenRun(TEXT, (END_OF_IMAGE,))


class Segment:
    """A stretch of a sample with one rule of attention inside it: CAUSAL, FULL or NOISED.

    Nobody outside a noised segment sees it. `advance` is how far the segment moves the rotary position.
    """

    mode: int = FULL
    advance: int = 1

    @cached_property
    def runs(self) -> tuple[TokenRun, ...]:
        """The segment's tokens in sequence order."""
        raise NotImplementedError

    @cached_property
    def und_len(self) -> int:
        """The number of tokens of the und expert."""
        return sum(run.length for run in self.runs if run.kind != VAE)

    @cached_property
    def gen_len(self) -> int:
        """The number of tokens of the gen expert."""
        return sum(run.length for run in self.runs if run.kind == VAE)


@dataclass(frozen=True, eq=False)
class TextSegment(Segment):
    """Text tokens as they are fed, the start and end tokens included.

    Attributes:
        ids: the token ids.
        labels: the targets, from the token `first_label` on. A text to be learnt has one for each token but the end
            token, which has one where it is to be learnt that an image follows.
        first_label: the place of the first token with a target.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...] = ()
    first_label: int = 0

    mode = CAUSAL

    @property
    def advance(self) -> int:  # type: ignore[override]
        return len(self.ids)

    @cached_property
    def runs(self) -> tuple[TokenRun, ...]:
        return (TokenRun(TEXT, self.ids, self.labels, self.first_label),)


@dataclass(frozen=True, eq=False)
class VitSegment(Segment):
    """An image for understanding.

    Attributes:
        patches: (rows·columns, patch²·3) pixels in [-1, 1], as `bagel_mot.images.patchify` makes them.
        grid: (rows, columns) of patches.
    """

    patches: Tensor
    grid: Grid

    @cached_property
    def runs(self) -> tuple[TokenRun, ...]:
        return _START, TokenRun(VIT, grid=self.grid, values=self.patches), _END


@dataclass(frozen=True, eq=False)
class VaeSegment(Segment):
    """An image as latent tokens: a clean condition (`timestep` 0), or noised and being predicted.

    Attributes:
        latent: (rows·columns, latent_dim) tokens, as `bagel_mot.images.patchify` makes them; None where they
            are not known when the segment is laid out. For a training target these are the clean ones: the objective
            noises them.
        grid: (rows, columns) of tokens.
        noised: whether it is being predicted. A noised image does not move the rotary position.
        timestep: the noise level in [0, 1], 1 being pure noise.
    """

    latent: Tensor | None
    grid: Grid
    noised: bool = False
    timestep: float = 0.0

    @property
    def mode(self) -> int:  # type: ignore[override]
        return NOISED if self.noised else FULL

    @property
    def advance(self) -> int:  # type: ignore[override]
        return 0 if self.noised else 1

    @cached_property
    def runs(self) -> tuple[TokenRun, ...]:
        return _START, TokenRun(VAE, grid=self.grid, values=self.latent, timestep=self.timestep), _END


@dataclass(frozen=True, eq=False)
class FramesSegment(Segment):
    """Frames of a clip as latent tokens in one segment: they see one another, and noised ones share a timestep.

    Attributes:
        frames: the frames, all of them noised or all of them clean.
        offsets: the rotary position of each frame, relative to the first one's, which is 0.
        step: the rotary position of what follows, if these frames are clean; likewise relative.
    """

    frames: tuple[VaeSegment, ...]
    offsets: tuple[int, ...]
    step: int

    @property
    def mode(self) -> int:  # type: ignore[override]
        return self.frames[0].mode

    @property
    def advance(self) -> int:  # type: ignore[override]
        return 0 if self.frames[0].noised else self.step

    @cached_property
    def runs(self) -> tuple[TokenRun, ...]:
        frames = zip(self.frames, self.offsets, strict=True)
        return tuple(dataclasses.replace(run, position=offset) for frame, offset in frames for run in frame.runs)


@dataclass(frozen=True, eq=False)
class DroppedImage(Segment):
    """The rest of an image that condition dropout removed: no tokens, but the position moves on as if it were there.

    Attributes:
        advance: the positions that it moves by.
        length: the number of tokens that were removed.
    """

    advance: int = 1
    length: int = 0
    runs = ()


def text_segment(
    ids: Sequence[int], special: SpecialTokens, *, learn: bool = False, starts_image: bool = False
) -> TextSegment:
    """The segment of a text: start, ids, end.

    Args:
        ids: the text's own token ids.
        special: the special tokens.
        learn: whether ids and end are to be predicted, from start and ids.
        starts_image: whether the start of an image is to be predicted at the end token.
    """
    labels = ((*ids, special.eos) if learn else ()) + ((special.start_of_image,) if starts_image else ())
    fed = (special.bos, *ids, special.eos)
    return TextSegment(fed, labels, len(fed) - 1 if starts_image and not learn else 0)


def vit_segment(pixels: Tensor, patch: int) -> VitSegment:
    """The ViT segment of an image (3, H, W) in [-1, 1], whose sides are multiples of `patch` pixels."""
    return VitSegment(patchify(pixels, patch), (pixels.shape[1] // patch, pixels.shape[2] // patch))


def vae_segment(latent: Tensor, patch: int, *, noised: bool = False) -> VaeSegment:
    """The VAE segment of a latent (z, h, w), whose sides are multiples of `patch` cells."""
    return VaeSegment(patchify(latent, patch), (latent.shape[1] // patch, latent.shape[2] // patch), noised)


def segment_length(segment: Segment) -> int:
    """The number of tokens in a segment, of both experts."""
    return segment.und_len + segment.gen_len


@dataclass(frozen=True)
class Sample:
    """Segments of one sample, or what a request adds to its context in this step (`position` is where it goes on)."""

    segments: tuple[Segment, ...]
    position: int = 0

    @property
    def und_len(self) -> int:
        return sum(s.und_len for s in self.segments)

    @property
    def gen_len(self) -> int:
        return sum(s.gen_len for s in self.segments)
