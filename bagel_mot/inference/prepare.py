"""From what a user gives to a `Request`: everything is checked, tokenized, opened and resized here, once."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from torch import Tensor

from bagel_mot.errors import PromptError, SettingError
from bagel_mot.images import MAX_IMAGE_PIXELS, ImageSource, ImageTransform, open_image
from bagel_mot.inference.defaults import check_grid, check_size, official_defaults
from bagel_mot.inference.request import ImageInput, Input, Kind, Request, TextInput
from bagel_mot.inference.runtime import Runtime
from bagel_mot.inference.settings import SETTINGS, GenerationSettings, resolve
from bagel_mot.task import Task

NO_SETTINGS: Mapping[str, Any] = MappingProxyType({})


def task_of(inputs: Sequence[object], output: str) -> Task:
    """The task of texts (`str`) and images that an output ("image" or "text") is to follow.

    Raises:
        SettingError: there is no such output.
    """
    if output not in ("image", "text"):
        raise SettingError(f"output is {output!r}: it must be 'image' or 'text'.")
    if output == "text":
        return Task.ASK
    return Task.EDIT if any(not isinstance(item, str) for item in inputs) else Task.GENERATE


class Preparer:
    """Makes inputs and requests for one model. An image that several requests have in common is prepared once.

    Args:
        runtime: the loaded model.
        max_pixels: pixels of an image that is given, at most.
        keep_originals: whether inputs keep images as they were given, for conversations that can be saved.
    """

    def __init__(self, runtime: Runtime, *, max_pixels: int = MAX_IMAGE_PIXELS, keep_originals: bool = False) -> None:
        self.runtime, self._max_pixels, self._keep_originals = runtime, max_pixels, keep_originals
        # With the image as it was given: as long as that lives, its id is its own.
        self._images: dict[tuple[int, bool, int | None], tuple[ImageSource, ImageInput]] = {}

    def text(self, text: str, kind: Kind = "text") -> TextInput:
        """A text that is given, tokenized.

        Raises:
            PromptError: it is blank.
        """
        if not text.strip():
            raise PromptError(f"the text is {text!r}: write something that the model can go by.")
        return TextInput(kind, text, self.runtime.text(text))

    def image(
        self, source: ImageSource, task: Task, kind: Kind = "image", *, vit_min_size: int | None = None
    ) -> ImageInput:
        """An image that is given, opened and resized for the inputs of a task.

        Args:
            vit_min_size: the setting of this name.

        Raises:
            ImageError, SizeError: it cannot be used.
            SettingError: `vit_min_size` is too large.
        """
        key = id(source), task.draws, vit_min_size
        if key in self._images:
            return self._images[key][1]
        runtime, config = self.runtime, self.runtime.config
        opened = open_image(source, self._max_pixels)
        resized = runtime.defaults.vae_transform.resize(opened)
        if task.draws:
            check_size(resized.size, config, "the picture, resized for the model,")
        vit = runtime.defaults.vit_transform
        for_vit = vit.resize(resized) if vit_min_size is None else _seen_from(vit, vit_min_size).resize(opened)
        check_grid(for_vit.size, config)
        prepared = ImageInput(
            kind,
            opened if self._keep_originals else resized,
            resized,
            for_vit,
            vae_tokens=_tokens(resized.size, config.latent_stride) if task.draws else 0,
            vit_tokens=_tokens(for_vit.size, config.vit.patch_size),
        )
        self._images[key] = source, prepared
        return prepared

    def inputs(
        self, values: Sequence[str | ImageSource], task: Task, settings: Mapping[str, Any] = NO_SETTINGS
    ) -> tuple[Input, ...]:
        """Texts (every `str` is one) and images, prepared for a task.

        Args:
            settings: the settings of the request; those of reading images count here.

        Raises:
            PromptError, ImageError, SizeError: one of them cannot be used, or there are none.
            SettingError: a setting is unknown or out of range.
        """
        if not values:
            raise PromptError("there is neither text nor picture: give at least one.")
        least = resolve(task, settings, self.runtime.defaults.of(task)).vit_min_size
        return tuple(
            self.text(value) if isinstance(value, str) else self.image(value, task, vit_min_size=least)
            for value in values
        )

    def request(
        self,
        task: Task,
        inputs: tuple[Input, ...],
        settings: Mapping[str, Any],
        *,
        noise: Tensor | None = None,
        last_size: tuple[int, int] | None = None,
        position: int | None = None,
    ) -> Request:
        """A request, checked for all that can be known before it runs.

        Args:
            noise: (N, latent_dim) float32 to start the image from.
            last_size: (width, height) of the last image of the conversation that the request continues.
            position: the rotary position of that conversation; None where the request stands alone and begins, if it
                is to think, with the system prompt.

        Raises:
            SettingError, SizeError, ContextLengthError: the request cannot be run.
        """
        if position is not None and settings.get("vit_min_size") is not None:
            raise SettingError(
                f"vit_min_size is {settings['vit_min_size']!r}: a session has read its pictures before it is asked, so "
                "it must be none there; give it to Bagel.ask."
            )
        images = [one for one in inputs if isinstance(one, ImageInput)]
        check_loaded_for(self.runtime, task, images=bool(images))
        resolved = resolve(task, settings, self.runtime.defaults.of(task))
        seed = secrets.randbits(32) if resolved.seed is None else resolved.seed
        size, noised = None, 0
        if task.draws:
            size = self._size(resolved, images[-1].image.size if images else last_size)
            noised = _tokens(size, self.runtime.config.latent_stride)
            wanted = noised - 2, self.runtime.config.latent_dim
            if noise is not None and tuple(noise.shape) != wanted:
                raise SettingError(
                    f"the noise is {tuple(noise.shape)}: a picture of {size[0]}×{size[1]} needs {wanted}."
                )
        if resolved.think and position is None:
            inputs = (self.runtime.system_prompt(task), *inputs)
        request = Request(task, inputs, resolved, seed, size, noised, noise)
        self.runtime.check_room(position or 0, request.positions + request.min_context)
        return request

    def _size(self, settings: GenerationSettings, last: tuple[int, int] | None) -> tuple[int, int]:
        """Width and height of the image to be drawn: as set, or those of the last image (resized for the model), or the
        checkpoint's default.

        Raises:
            SizeError: the model cannot draw that size.
        """
        if settings.size is None and last is not None:
            return last
        config, task = self.runtime.config, Task.GENERATE
        size: tuple[int, int] = (
            settings.size or self.runtime.defaults.of(task).get("size") or official_defaults(config).of(task)["size"]
        )
        check_size(size, config)
        return size


def with_seeds(request: Request, n: int) -> list[Request]:
    """`n` requests for results of the same inputs: with seeds counting up from the one that was given, or with new
    random ones.

    Raises:
        SettingError: the last seed would be too large.
    """
    given = request.settings.seed
    if given is not None:
        SETTINGS["seed"].parse(given + n - 1)
    seeds = [request.seed + i if given is not None or not i else secrets.randbits(32) for i in range(n)]
    return [replace(request, seed=seed) for seed in seeds]


def check_loaded_for(runtime: Runtime, task: Task, *, images: bool = True) -> None:
    """Checks that the model was loaded with all parts that a task takes, with or without images to be read.

    Raises:
        SettingError: the model was loaded without some of the parts.
    """
    loaded = set(runtime.tasks)
    # A model that reads and draws images has all that edits take.
    if (
        Task.EDIT in loaded
        or {Task.GENERATE, Task.ASK} <= loaded
        or task in loaded
        or (task is Task.ASK and not images)
    ):
        return
    needs = _loading_name(task)
    raise SettingError(
        f"this model was loaded with tasks={tuple(map(_loading_name, runtime.tasks))!r}, "
        f"which leaves out what {needs!r} takes: load it with tasks=({needs!r},) too, or with all of them."
    )


def _seen_from(vit: ImageTransform, min_size: int) -> ImageTransform:
    """The ViT transform with another shortest side.

    Raises:
        SettingError: it is longer than the longest one.
    """
    if min_size > vit.max_size:
        raise SettingError(
            f"vit_min_size is {min_size}: it must be at most {vit.max_size}, the longest side that this model looks at."
        )
    return replace(vit, min_size=min_size)


def _loading_name(task: Task) -> str:
    """The name of a task where a model is loaded."""
    return "understand" if task is Task.ASK else task.value


def _tokens(size: tuple[int, int], stride: int) -> int:
    """Tokens of an image of (width, height) pixels with one token per square of `stride` pixels and two markers."""
    return (size[0] // stride) * (size[1] // stride) + 2
