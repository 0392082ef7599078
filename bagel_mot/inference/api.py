"""`Bagel`: a loaded checkpoint that draws, edits and answers. All through one engine, lists as one batch."""

from __future__ import annotations

import dataclasses
import os
import secrets
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from numbers import Integral
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from bagel_mot.checkpoint.official import TASKS, Checkpoint
from bagel_mot.errors import PromptError, SettingError
from bagel_mot.images import ImageSource, open_image
from bagel_mot.inference.batch import as_batch, check_stream, naming, opener, pair, spread, with_progress
from bagel_mot.inference.defaults import Defaults, check_grid, check_size, official_defaults, read_defaults
from bagel_mot.inference.engine.engine import Engine
from bagel_mot.inference.engine.ops import Handle
from bagel_mot.inference.loading import compile_experts, load
from bagel_mot.inference.prefixes import PrefixCache
from bagel_mot.inference.requests import Item, Recorder, Runtime
from bagel_mot.inference.result import Result
from bagel_mot.inference.session import Session
from bagel_mot.inference.settings import GenerationSettings, Task, resolve
from bagel_mot.inference.tasks import Media, Order, check_room, cost_of, one_shot
from bagel_mot.placement.oom import check_memory, explained
from bagel_mot.placement.plan import Plan

Progress = Callable[[int, int], None]
OnText = Callable[[str], None]


class Bagel:
    """One model that reads and writes text and images.

    Make it with `Bagel.from_pretrained`. Every method takes the settings of `bagel_mot.inference.settings` by name; a
    list gives one value to each request of a batch.

    Attributes:
        config: the model's.
        tokenizer: the model's.
        engine: runs all requests; `engine.stats` counts what it did.
        defaults: default settings and image sizes of this checkpoint.
        plan: how it runs, where that was chosen from several ways.
    """

    def __init__(self, checkpoint: Checkpoint, *, defaults: Defaults | None = None, compile: bool = False) -> None:
        """
        Args:
            checkpoint: loaded.
            defaults: the official ones if not given.
            compile: run `torch.compile` on the experts; the first calls then take minutes, the others less.
        """
        self.checkpoint = checkpoint
        self.plan: Plan | None = None
        self.config = checkpoint.config
        self.tokenizer = checkpoint.tokenizer
        self.defaults = official_defaults(checkpoint.config) if defaults is None else defaults
        if compile:
            compile_experts(checkpoint.model)
        self.engine = Engine(checkpoint.model, checkpoint.autoencoder, checkpoint.special)
        self.runtime = Runtime(
            engine=self.engine,
            config=checkpoint.config,
            tokenizer=checkpoint.tokenizer,
            special=checkpoint.special,
            vae_transform=self.defaults.vae_transform,
            vit_transform=self.defaults.vit_transform,
            preview_images=self.defaults.preview_images,
        )

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str] = "mini",
        *,
        precision: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        tasks: Collection[str] = TASKS,
        offload: str = "auto",
        memory: int | str | None = None,
        compile: bool = False,
    ) -> Bagel:
        """Loads a checkpoint.

        Args:
            name: "mini" (the embedded model), a folder in the official layout or a file with weights in one, or a hub
                id such as "ByteDance-Seed/BAGEL-7B-MoT", which is downloaded once.
            precision: "float32", "bfloat16", "float16"; "int8", "int8-dynamic", "fp8", "fp8-dynamic", "int4" or "nf4"
                for the decoder's big matrices, which are rounded while they are read; or "auto": bfloat16 on
                accelerators and for checkpoints above 1 GB (on GPUs without bfloat16 float32, above 1 GB float16). More
                parts may follow, as in "int8,head=int8,vit=int8". The autoencoder is in float32 unless it says
                "autoencoder=bfloat16". See `bagel_mot.checkpoint.precision`.
            device: "cpu", "cuda", "cuda:1", "mps", or "auto": the best there is.
            tasks: what the model is for, of "generate", "edit" and "understand". ("understand",) leaves out the gen
                expert, nearly half of all weights, and the autoencoder; ("generate",) the vision transformer.
            offload: where layers stand that find no room on the device: "cpu", main memory; "disk", the mapped file;
                "none"; or "auto". With "cpu" or "disk" as many layers are brought as have to be.
            memory: bytes, or such as "12GB", that may be taken of each accelerator (of main memory on the CPU); what is
                free less a margin if not given.
            compile: as in `__init__`.

        For checkpoints above 1 GB "auto" is chosen so that the model fits, fastest way first (`bagel_mot.placement`);
        attribute `plan` says what was chosen.

        Raises:
            CheckpointError: there is no such checkpoint, or it is damaged.
            DeviceError: the device or precision is unknown, or not to be had here, or there is not enough memory.
        """
        loaded = load(name, precision, device, tasks, offload=offload, memory=memory, pack=not compile)
        defaults = read_defaults(loaded.folder, loaded.checkpoint.config)
        bagel = cls(loaded.checkpoint, defaults=defaults, compile=compile)
        bagel.plan = loaded.plan
        # Nothing of these holds the model: it would wait for a garbage collection when it is dropped.
        device, plan, alternatives = bagel.device, loaded.plan, loaded.alternatives
        bagel.engine.check_memory = lambda needed: check_memory(needed, device, plan, alternatives)
        bagel.engine.explain = lambda error: explained(error, device, plan, alternatives)
        return bagel

    @property
    def device(self) -> torch.device:
        return self.checkpoint.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.checkpoint.model.dtype

    # ------------------------------------------------------------------------------------------------ the three tasks

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        n: int = 1,
        progress: Progress | None = None,
        on_text: OnText | None = None,
        return_result: bool = False,
        **settings: Any,
    ) -> Any:
        """Draws images from texts.

        Args:
            prompt: a text, or a list of texts that run as one batch.
            n: images for each prompt, with seeds counting up from the one given.
            progress: called with the denoising steps done and in all, over the whole batch.
            on_text: called with the pieces of the thinking, for a single request.
            return_result: give `Result`s instead of images.
            **settings: by name; a list gives one value for each prompt (or makes a batch of a single prompt).

        Returns: a PIL image for a single request, else a list, the images of one prompt side by side. An empty list
            of prompts gives an empty list.

        Raises:
            PromptError, SizeError, SettingError, ContextLengthError: before anything runs. In a batch each says which
                request it is about.
        """
        inputs, single = as_batch(prompt)
        return self._batch("generate", "image", inputs, single, settings, n, progress, on_text, return_result)

    def edit(
        self,
        image: ImageSource | Sequence[Any],
        instruction: str | Sequence[str],
        *,
        n: int = 1,
        progress: Progress | None = None,
        on_text: OnText | None = None,
        return_result: bool = False,
        **settings: Any,
    ) -> Any:
        """Draws images from images and instructions.

        Args:
            image: an image; or a list of images that one instruction is about; or, with a list of instructions, a
                list with an image or a list of images for each. A single image serves all instructions.
            instruction: a text, or a list of texts that run as one batch.
            n, progress, on_text, return_result, **settings: as in `generate`. The size is that of the (last) image,
                resized for the model, unless `size` is given.

        Returns and raises: as `generate`; also ImageError.
        """
        inputs, single = pair(image, instruction)
        if any(len(own) < 2 for own in inputs):
            raise PromptError("there is no picture to edit: give one, or use generate.")
        return self._batch("edit", "image", inputs, single, settings, n, progress, on_text, return_result)

    def ask(
        self,
        image: ImageSource | Sequence[Any] | None,
        question: str | Sequence[str],
        *,
        stream: bool = False,
        on_text: OnText | None = None,
        return_result: bool = False,
        **settings: Any,
    ) -> Any:
        """Answers questions about images, or without any.

        Args:
            image: as in `edit`; or None.
            question: a text, or a list of texts that run as one batch.
            stream: give an iterator over the pieces of the answer, for a single request; without on_text and
                return_result. With `think` they include the thinking as the model writes it.
            on_text, return_result, **settings: as in `generate`.

        Returns: the answer (without its thinking) for a single request, else a list.

        Raises: as `edit`.
        """
        inputs, single = pair(image, question)
        if stream:
            check_stream(on_text, return_result)
            return self._stream(inputs, single, settings)
        return self._batch("ask", "text", inputs, single, settings, 1, None, on_text, return_result)

    def interleave(
        self,
        inputs: Sequence[str | ImageSource],
        *,
        output: Media = "image",
        noise: Tensor | None = None,
        recorder: Recorder | None = None,
        progress: Progress | None = None,
        on_text: OnText | None = None,
        return_result: bool = False,
        **settings: Any,
    ) -> Any:
        """Continues texts and images in any order with an image or a text: what `generate`, `edit` and `ask` do.

        Args:
            inputs: texts (every `str` is one) and images (paths as `Path`).
            output: "image" or "text".
            noise: (rows·columns, latent_dim) to start the image from, instead of that from the seed.
            recorder: is filled with the tokens, logits and latent on the way.
            progress, on_text, return_result, **settings: as in `generate`. Defaults are those of "edit" where an image
                is among the inputs of an image.

        Raises: as `edit`.
        """
        task = task_of(inputs, output)
        extra = {"noise": noise, "recorder": recorder}
        return self._batch(task, output, [list(inputs)], True, settings, 1, progress, on_text, return_result, extra)

    # ------------------------------------------------------------------------------------------------------- sessions

    def session(self, *, think: bool = False, understanding: bool = False) -> Session:
        """An interleaved conversation whose cache is kept between turns.

        Args:
            think: put the system prompt for thinking first, and think before each image and answer.
            understanding: images are only asked about, never drawn; they then cost half the tokens.
        """
        return Session(self, think=think, understanding=understanding)

    def load_session(self, folder: str | os.PathLike[str]) -> Session:
        """A session that `Session.save` wrote."""
        return Session.load(self, folder)

    # ------------------------------------------------------------------------------------------------- what they share

    def check_items(self, inputs: Sequence[str | ImageSource], output: Media) -> list[Item]:
        """Opens and checks what is given, before any work.

        Raises:
            PromptError, ImageError, SizeError: it cannot be used.
        """
        items: list[Item] = []
        for value in inputs:
            if isinstance(value, str):
                if not value.strip():
                    raise PromptError(f"the text is {value!r}: write something that the model can go by.")
                items.append(("text", value))
                continue
            image = open_image(value)
            resized = self.runtime.vae_transform.size(*image.size)
            if output == "image":
                check_size(resized, self.config, "the picture, resized for the model,")
            check_grid(self.runtime.vit_transform.size(*resized), self.config, self.config.vit.patch_size)
            items.append(("image", image))
        if not items:
            raise PromptError("there is neither text nor picture: give at least one.")
        return items

    def check_loaded_for(self, task: Task, *, images: bool = True) -> None:
        """
        Args:
            task: that is to be done.
            images: whether it reads any.

        Raises:
            SettingError: the model was loaded without the parts that this takes.
        """
        needs: str = "understand" if task == "ask" else task
        loaded = set(self.checkpoint.tasks)
        # What reads and draws images has all that edits take.
        if (
            "edit" in loaded
            or {"generate", "understand"} <= loaded
            or needs in loaded
            or (needs == "understand" and not images)
        ):
            return
        raise SettingError(
            f"this model was loaded with tasks={tuple(self.checkpoint.tasks)!r}, "
            f"which leaves out what {needs!r} takes: load it with tasks=({needs!r},) too, or with all of them."
        )

    def image_size(self, settings: GenerationSettings, items: Sequence[Item]) -> tuple[int, int]:
        """Width and height of the image to be drawn: as set, or that of the last image, or the checkpoint's
            default.

        Raises:
            SizeError: the model cannot draw that size.
        """
        last = next((content for _, content in reversed(items) if isinstance(content, Image.Image)), None)
        if settings.size is not None:
            size = settings.size
        elif last is not None:
            return self.runtime.vae_transform.size(*last.size)
        else:
            size = self.defaults.of("generate").get("size") or official_defaults(self.config).of("generate")["size"]
        check_size(size, self.config)
        return size

    def order(self, task: Task, values: dict[str, Any], items: Sequence[Item], **extra: Any) -> Order:
        """Validates the settings of one request; an image's size is found from `items`.

        Raises:
            SettingError, SizeError: they cannot be used.
        """
        self.check_loaded_for(task, images=any(isinstance(content, Image.Image) for _, content in items))
        settings = resolve(task, values, self.defaults.of(task))
        seed = secrets.randbits(32) if settings.seed is None else settings.seed
        size = None if task == "ask" else self.image_size(settings, items)
        noise = extra.get("noise")
        if noise is not None and size is not None:
            stride = self.config.latent_stride
            wanted = (size[0] // stride) * (size[1] // stride), self.config.latent_dim
            if tuple(noise.shape) != wanted:
                raise SettingError(
                    f"the noise is {tuple(noise.shape)}: a picture of {size[0]}×{size[1]} needs {wanted}."
                )
        return Order(task, settings, seed, size, **extra)

    def submit(
        self,
        inputs: Sequence[str | ImageSource],
        *,
        output: Media = "image",
        on_step: Progress | None = None,
        on_preview: Callable[[Image.Image], None] | None = None,
        on_text: OnText | None = None,
        **settings: Any,
    ) -> Handle[Result]:
        """`interleave` without waiting: for servers and pages, which have many requests at once.

        It is worked on while some thread drives the engine, such as one in `engine.run_until([handle])`; callbacks come
        from that thread and should return at once. `handle.cancel()` ends it within a step.

        Args:
            inputs, output, on_text, **settings: as in `interleave`.
            on_step: called with the denoising steps done and in all.
            on_preview: called up to eight times with a small look at the image as it forms.

        Raises: as `interleave`, before anything runs.
        """
        items, order = self.prepare(inputs, output, settings, on_step=on_step, on_preview=on_preview, on_text=on_text)
        return self.submit_order(items, output, order)

    def prepare(
        self, inputs: Sequence[str | ImageSource], output: Media, settings: dict[str, Any], **extra: Any
    ) -> tuple[list[Item], Order]:
        """Checks a request: what it reads, and what it is to do.

        Raises: as `interleave`.
        """
        task = task_of(inputs, output)
        items = self.check_items(inputs, output)
        order = self.order(task, settings, items, **extra)
        check_room(self.runtime, items, output, order)
        return items, order

    def cost(self, items: Sequence[Item], output: Media, order: Order) -> int:
        """About how many tokens of cache a request will hold at the most."""
        return cost_of(self.runtime, items, order, latents=output == "image")

    def share_prefixes(self, max_tokens: int) -> None:
        """Lets requests that begin alike (same system prompt, same image) share what they read; 0 ends it.

        Args:
            max_tokens: of cache, kept for requests to come.
        """
        prefixes = PrefixCache(max_tokens) if max_tokens else None
        self.runtime = dataclasses.replace(self.runtime, prefixes=prefixes)

    def submit_order(self, items: list[Item], output: Media, order: Order) -> Handle[Result]:
        """Takes in a request that `prepare` has checked."""
        return self.engine.submit(one_shot(self.runtime, items, output, order), self.cost(items, output, order))

    def _batch(
        self,
        task: Task,
        output: Media,
        inputs: list[list[Any]],
        single: bool,
        settings: dict[str, Any],
        n: int,
        progress: Progress | None,
        on_text: OnText | None,
        return_result: bool,
        extra: dict[str, Any] | None = None,
    ) -> Any:
        """Checks everything, then runs all requests together."""
        if not isinstance(n, Integral) or isinstance(n, bool) or n < 1:
            raise SettingError(f"n is {n!r}: it must be a whole number, at least 1.")
        inputs, values, single = spread(inputs, settings, single)
        prepared: list[tuple[list[Item], Order]] = []
        opened = opener()
        for index, (given, own) in enumerate(zip(inputs, values, strict=True)):
            with naming("request", index, len(inputs)):
                items = self.check_items(opened(given), output)
                for i in range(n):
                    order = self.order(task, own, items, on_text=on_text, **(extra or {}))
                    if i and own.get("seed") is not None:
                        own_seed = {**own, "seed": order.seed + i}
                        order = self.order(task, own_seed, items, on_text=on_text, **(extra or {}))
                    check_room(self.runtime, items, output, order)
                    self.engine.check_image(order.size)
                    prepared.append((items, order))
        single = single and n == 1
        if on_text is not None and len(prepared) > 1:
            raise SettingError(f"on_text follows a single request: this is a batch of {len(prepared)}.")
        if progress is not None and output == "image":
            prepared = with_progress(prepared, progress)
        handles = [self.submit_order(items, output, order) for items, order in prepared]
        self.engine.run_until(handles)
        results = []
        for i, handle in enumerate(handles):
            with naming("request", i // n, len(inputs)):
                results.append(handle.result())
        found = results if return_result else [result.value for result in results]
        return found[0] if single else found

    def _stream(self, inputs: list[list[Any]], single: bool, settings: dict[str, Any]) -> Iterator[str]:
        inputs, values, single = spread(inputs, settings, single)
        if not single:
            raise SettingError(f"stream follows a single question: these are {len(inputs)}.")
        pieces: deque[str] = deque()
        items = self.check_items(inputs[0], "text")
        order = self.order("ask", values[0], items, on_text=pieces.append)
        check_room(self.runtime, items, "text", order)
        return self._stream_handle(items, order, pieces)

    def _stream_handle(self, items: list[Item], order: Order, pieces: deque[str]) -> Iterator[str]:
        yield from self.engine.stream(self.submit_order(items, "text", order), pieces)


def task_of(inputs: Sequence[str | ImageSource], output: Media) -> Task:
    """Whose defaults apply.

    Raises:
        SettingError: there is no such output.
    """
    if output not in ("image", "text"):
        raise SettingError(f"output is {output!r}: it must be 'image' or 'text'.")
    if output == "text":
        return "ask"
    return "edit" if any(not isinstance(item, str) for item in inputs) else "generate"
