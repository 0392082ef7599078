"""A request: everything there is to know about it before it runs, checked once, and the listener to its progress.

`bagel_mot.inference.prepare` makes requests. Their texts are tokenized and their images opened and resized by then, so
whoever needs a count asks the request for it. A request is pure data: it can be pickled and run by another process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from PIL import Image
from torch import Tensor

from bagel_mot.inference.sampler import roles_used
from bagel_mot.inference.settings import GenerationSettings
from bagel_mot.sequence import TextSegment
from bagel_mot.task import Task

Kind = Literal["system", "text", "image", "thought", "answer", "drawing"]
GIVEN: tuple[Kind, ...] = ("text", "image")
IMAGES: tuple[Kind, ...] = ("image", "drawing")

_MIN_TEXT = 3  # positions: the start token, one more, the end token
IMAGE_POSITIONS = 2
"""Rotary positions of an image: one as VAE image, one as ViT image."""


@dataclass(frozen=True, eq=False)
class TextInput:
    """A text, tokenized.

    Attributes:
        kind: the text's part in its conversation.
        content: the text.
        segment: its tokens, between the start and the end token.
    """

    kind: Kind
    content: str
    segment: TextSegment

    @property
    def tokens(self) -> int:
        """Tokens in a context."""
        return self.segment.und_len

    @property
    def positions(self) -> int:
        """The rotary positions by which the text moves what follows."""
        return self.segment.advance

    @property
    def key(self) -> Any:
        """A value that is equal for inputs that the model reads alike."""
        return self.kind, self.content


@dataclass(frozen=True, eq=False)
class ImageInput:
    """An image, opened and resized.

    Attributes:
        kind: the image's part in its conversation.
        content: the image as it was given.
        image: the image resized by the VAE transform.
        vit_image: `image` resized by the ViT transform; with `vit_min_size` the image as it was given, resized by it.
        vae_tokens: tokens of the image as VAE image, its markers included; 0 where it enters as ViT image alone.
        vit_tokens: tokens of the image as ViT image, its markers included.
    """

    kind: Kind
    content: Image.Image
    image: Image.Image
    vit_image: Image.Image
    vae_tokens: int
    vit_tokens: int

    @property
    def tokens(self) -> int:
        """Tokens in a context."""
        return self.vae_tokens + self.vit_tokens

    @property
    def positions(self) -> int:
        """The rotary positions by which the image moves what follows."""
        return IMAGE_POSITIONS if self.vae_tokens else 1

    @cached_property
    def key(self) -> Any:
        """A value that is equal for inputs that the model reads alike."""
        seen = [self.image, self.vit_image] if self.vae_tokens else [self.vit_image]
        digests = tuple((image.size, hashlib.sha256(image.tobytes()).digest()) for image in seen)
        return self.kind, self.vae_tokens, digests


Input = TextInput | ImageInput
Keys = tuple[Any, ...]


def keys_of(inputs: Sequence[Input]) -> Keys:
    """Keys that are equal where inputs are read alike."""
    return tuple(one.key for one in inputs)


@dataclass(frozen=True, eq=False)
class Request:
    """One result that is asked for.

    Attributes:
        task: the task.
        inputs: the texts and images that are read first, in order; the system prompt for thinking among them.
        settings: validated settings.
        seed: the seed of all randomness.
        size: (width, height) of the image to be drawn, in pixels; None where a text is written.
        noised_tokens: tokens of the image while it is drawn, its markers included; 0 where a text is written.
        noise: (N, latent_dim) float32 to start the image from, instead of noise drawn from the seed.
    """

    task: Task
    inputs: tuple[Input, ...]
    settings: GenerationSettings
    seed: int
    size: tuple[int, int] | None = None
    noised_tokens: int = 0
    noise: Tensor | None = None

    @property
    def text_tokens(self) -> int:
        """Tokens of the texts in `inputs`, their start and end tokens included."""
        return sum(one.tokens for one in self.inputs if isinstance(one, TextInput))

    @property
    def image_tokens(self) -> int:
        """Tokens of the images in `inputs`, their markers included."""
        return sum(one.tokens for one in self.inputs if isinstance(one, ImageInput))

    @property
    def prompt_tokens(self) -> int:
        """Tokens that are read before anything is generated."""
        return self.text_tokens + self.image_tokens

    @property
    def positions(self) -> int:
        """The rotary positions that `inputs` take."""
        return sum(one.positions for one in self.inputs)

    @property
    def min_context(self) -> int:
        """Rotary positions that the result takes at least."""
        if not self.task.draws:
            return _MIN_TEXT
        return IMAGE_POSITIONS + (_MIN_TEXT if self.settings.think else 0)

    @property
    def max_text_tokens(self) -> int:
        """Tokens of text that are generated at most."""
        if not self.task.draws:
            return self.settings.max_new_tokens
        return self.settings.max_think_tokens if self.settings.think else 0

    @property
    def prompt(self) -> tuple[Keys, int]:
        """A key that is equal for requests that read the same, and hold it once between them; and its tokens."""
        return keys_of(self.inputs), self.prompt_tokens

    @property
    def max_result_tokens(self) -> int:
        """Upper bound of the tokens of KV cache beside the prompt: the text to be generated, and one noised image per
        guidance branch.
        """
        branches = len(roles_used(self.settings)) if self.task.draws else 0
        return self.max_text_tokens + branches * self.noised_tokens

    @property
    def max_cache_tokens(self) -> int:
        """Upper bound of the tokens of KV cache that the request holds alone."""
        return self.prompt_tokens + self.max_result_tokens


@dataclass
class Recorder:
    """Filled with what happens inside a request, for verification.

    Attributes:
        tokens: the tokens of the text written, its start token first.
        logits: (V,) after each of `tokens`, float32 on the CPU; for these one more token is read when the text ends at
            its limit.
        latent: (N, latent_dim) of the image drawn, as tokens, float32 on the CPU.
    """

    tokens: list[int] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    latent: Tensor | None = None


@dataclass(frozen=True)
class Listener:
    """The functions that a request tells of its progress. Whichever thread drives the engine calls them, and everybody
    waits meanwhile.

    Attributes:
        on_step: called with the number of denoising steps done and of all.
        on_preview: called up to eight times with a small preview of the image, just before `on_step`.
        on_text: called with each piece of text, thinking included.
        recorder: filled with tokens, logits and latent.
    """

    on_step: Callable[[int, int], None] | None = None
    on_preview: Callable[[Image.Image], None] | None = None
    on_text: Callable[[str], None] | None = None
    recorder: Recorder | None = None


NOBODY = Listener()
