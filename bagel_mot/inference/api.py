"""`Bagel`: a loaded checkpoint that draws, edits and answers. All through one engine, lists as one batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from numbers import Integral
from typing import Any, Literal, Self, Unpack, overload

import torch
from PIL import Image
from torch import Tensor

from bagel_mot.checkpoint.adapters import read_adapter
from bagel_mot.checkpoint.official import TASKS, Checkpoint
from bagel_mot.errors import BagelError, PromptError, SettingError
from bagel_mot.images import ImageSource
from bagel_mot.inference.adapters import AdapterPlace, Adapters, LoadedAdapters, named
from bagel_mot.inference.batch import as_batch, check_stream, naming, pair, spread
from bagel_mot.inference.defaults import Defaults, official_defaults, read_defaults
from bagel_mot.inference.engine.engine import Engine
from bagel_mot.inference.engine.ticket import Ticket
from bagel_mot.inference.loading import OnLoad, compile_experts, find_adapter, load
from bagel_mot.inference.prepare import Preparer, task_of, with_seeds
from bagel_mot.inference.request import NOBODY, Listener, Recorder, Request
from bagel_mot.inference.result import Result
from bagel_mot.inference.runtime import Runtime
from bagel_mot.inference.session import Session
from bagel_mot.inference.setting_types import (
    AnswerSettings,
    AnswerSettingsLists,
    AnySettings,
    AnySettingsLists,
    DrawingSettings,
    DrawingSettingsLists,
    EditingSettings,
    EditingSettingsLists,
)
from bagel_mot.inference.steps.respond import respond
from bagel_mot.placement.oom import MemoryGuard
from bagel_mot.placement.plan import Plan
from bagel_mot.task import Task
from bagel_mot.threads import Threads

OnStep = Callable[[int, int], None]
OnText = Callable[[str], None]
Texts = list[str] | tuple[str, ...]
Images = ImageSource | Sequence[ImageSource]


class Bagel:
    """One model that reads and writes text and images. `Bagel.from_pretrained` makes it.

    Every method takes the settings of `bagel_mot.inference.settings` by name; a list gives one value to each request of
    a batch.

    Args:
        checkpoint: the loaded checkpoint.
        defaults: default settings and image sizes; the official ones if not given.
        compile: runs `torch.compile` on the experts; the first calls then take minutes, the others less.
        memory: says what fits into memory; by default everything does.
        threads: the threads that compute; by default chosen by the size of the model.

    Attributes:
        config: the model's configuration.
        tokenizer: the model's tokenizer.
        engine: runs all requests; `engine.stats` counts what it did.
        defaults: default settings and image sizes of this checkpoint.
        name: the name that it was loaded by, if any.
        plan: the way in which it runs, where that was chosen from several ones.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        defaults: Defaults | None = None,
        compile: bool = False,
        memory: MemoryGuard | None = None,
        threads: Threads | None = None,
    ) -> None:
        self._checkpoint: Checkpoint | None = checkpoint
        self.name: str | None = None
        self.plan: Plan | None = None
        self.config = checkpoint.config
        self.tokenizer = checkpoint.tokenizer
        self.defaults = official_defaults(checkpoint.config) if defaults is None else defaults
        if compile:
            compile_experts(checkpoint.model)
        self.engine = Engine(
            checkpoint.model,
            checkpoint.autoencoder,
            checkpoint.special,
            vocab_size=checkpoint.tokenizer.vocab_size,
            memory=memory,
            threads=threads,
        )
        self.runtime = Runtime(
            engine=self.engine,
            config=checkpoint.config,
            tokenizer=checkpoint.tokenizer,
            special=checkpoint.special,
            defaults=self.defaults,
            tasks=[Task.ASK if name == "understand" else Task(name) for name in checkpoint.tasks],
        )
        self._adapters = LoadedAdapters(self.runtime)

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
        prefer: str = "quality",
        threads: int | None = None,
        compile: bool = False,
        progress: OnLoad | None = None,
        adapters: Adapters = (),
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
            tasks: the tasks that the model is for: "generate", "edit", "understand". ("understand",) leaves out the gen
                expert, nearly half of all weights, and the autoencoder; ("generate",) the vision transformer.
            offload: the place of layers that find no room on the device: "cpu", main memory; "disk", the mapped file;
                "none"; or "auto". With "cpu" or "disk" as many layers are loaded for each pass as have to be.
            memory: bytes, or a text such as "12GB", that may be taken of each accelerator (of main memory on the CPU);
                the free memory less a margin if not given.
            prefer: the order of ways of running, where several fit: "quality" takes the fastest that loses no
                accuracy, "speed" the fastest, "memory" the one that takes the least memory.
            threads: CPU threads that compute; by default chosen by the size of the model and the cores that the process
                may use (`bagel_mot.threads`).
            compile: see `Bagel`.
            progress: called with "downloading" or "loading", the bytes done and the bytes in all. What it raises ends
                the loading; a download is continued the next time.
            adapters: folders of adapters (or of runs that train them) or hub ids, or these by name; all are on. See
                `set_adapters`.

        For checkpoints above 1 GB, and for all of them with another preference than quality, "auto" is chosen so that
        the model fits (`bagel_mot.placement`); attribute `plan` says what was chosen.

        Raises:
            CheckpointError: there is no such checkpoint or adapter, it is damaged, or the adapter is of another model.
            DeviceError: the device or precision is unknown or not available, or there is not enough memory.
        """
        loaded = load(
            name,
            precision,
            device,
            tasks,
            offload=offload,
            memory=memory,
            prefer=prefer,
            threads=threads,
            prepack=not compile,
            progress=progress,
            adapters=named(adapters),
        )
        defaults = read_defaults(loaded.folder, loaded.checkpoint.config)
        bagel = cls(loaded.checkpoint, defaults=defaults, compile=compile, memory=loaded.memory, threads=loaded.threads)
        bagel.name, bagel.plan = os.fspath(name), loaded.plan
        if loaded.adapters:
            bagel._adapters.add(loaded.adapters)
        return bagel

    # ------------------------------------------------------------------------------------------------------- adapters

    @property
    def adapters(self) -> dict[str, float]:
        """The adapters that are loaded, by name, with their strengths; those at 0 are off."""
        return dict(self._adapters.strengths)

    def set_adapters(self, strengths: Mapping[str, float]) -> None:
        """Sets which adapters change what the model does, and by how much: 1 is as they were trained, 0 is off, and
        several add up. Those that are not named are off. Sessions go on with the new ones; what they have read is read
        again when they are used next.

        Raises:
            SettingError: a name is unknown, or a strength is not a number.
            BagelError: requests are at work.
        """
        self._adapters.set(strengths)

    def load_adapter(self, place: AdapterPlace, *, name: str | None = None) -> str:
        """Loads one more adapter, which is on; returns its name.

        Args:
            place: its folder, that of a run that trains one, or a hub id.
            name: its name; by default that of the folder.

        Raises:
            CheckpointError: there is none, it is damaged, or it is of another model.
            SettingError: there is one of this name.
            BagelError: requests are at work.
        """
        ((chosen, where),) = named([place] if name is None else {name: place}).items()
        self._adapters.add({chosen: read_adapter(find_adapter(where), self.config)})
        return chosen

    def unload_adapter(self, name: str) -> None:
        """Takes an adapter away and frees its memory. Errors as `set_adapters`."""
        self._adapters.remove(name)

    def close(self) -> None:
        """Cancels all requests, lets go of the model and frees its memory. It cannot be used afterwards, nor can its
        sessions. `with Bagel.from_pretrained(…) as bagel:` closes it at the end.
        """
        self.engine.close()
        self.runtime.forget()
        self._checkpoint = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        name = "" if self.name is None else f"{self.name!r}, "
        if self._checkpoint is None:
            return f"Bagel({name}closed)"
        return f"Bagel({name}device={str(self.device)!r}, precision={self.checkpoint.precision.name!r})"

    @property
    def checkpoint(self) -> Checkpoint:
        """The loaded checkpoint.

        Raises:
            BagelError: it was closed.
        """
        if self._checkpoint is None:
            raise BagelError("this model was closed: load it again with Bagel.from_pretrained.")
        return self._checkpoint

    @property
    def device(self) -> torch.device:
        return self.checkpoint.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.checkpoint.model.dtype

    # ------------------------------------------------------------------------------------------------ the three tasks

    # The type of the result depends on the arguments. Where their types leave it open (n from a variable, lists of
    # settings for a single text), the last overload is chosen, whose settings are checked all the same.
    @overload
    def generate(
        self,
        prompt: str,
        *,
        n: Literal[1] = 1,
        progress: OnStep | None = None,
        on_text: OnText | None = None,
        return_result: Literal[False] = False,
        **settings: Unpack[DrawingSettings],
    ) -> Image.Image: ...
    @overload
    def generate(
        self,
        prompt: str,
        *,
        n: Literal[1] = 1,
        progress: OnStep | None = None,
        on_text: OnText | None = None,
        return_result: Literal[True],
        **settings: Unpack[DrawingSettings],
    ) -> Result: ...
    @overload
    def generate(
        self,
        prompt: Texts,
        *,
        n: int = 1,
        progress: OnStep | None = None,
        on_text: OnText | None = None,
        return_result: Literal[False] = False,
        **settings: Unpack[DrawingSettingsLists],
    ) -> list[Image.Image]: ...
    @overload
    def generate(
        self,
        prompt: Texts,
        *,
        n: int = 1,
        progress: OnStep | None = None,
        on_text: OnText | None = None,
        return_result: Literal[True],
        **settings: Unpack[DrawingSettingsLists],
    ) -> list[Result]: ...
    @overload
    def generate(
        self,
        prompt: str | Texts,
        *,
        n: int = 1,
        progress: OnStep | None = None,
        on_text: OnText | None = None,
        return_result: bool = False,
        **settings: Unpack[DrawingSettingsLists],
    ) -> Any: ...
    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        n: int = 1,
        progress: OnStep | None = None,
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
            return_result: returns `Result`s instead of images.
            **settings: settings by name; a list gives one value for each prompt (or makes a batch of a single prompt).

        Returns: a PIL image for a single request, else a list, the images of one prompt side by side. An empty list
            of prompts gives an empty list.

        Raises:
            PromptError, SizeError, SettingError, ContextLengthError: the request cannot be run; nothing was. In a batch
                each says which request it is about.
        """
        inputs, single = as_batch(prompt)
        listener = Listener(progress, on_text=on_text)
        return self._batch(Task.GENERATE, inputs, single, settings, listener, return_result, n)

    @overload
    def edit(
        self,
        image: Images,
        instruction: str,
        *,
        n: Literal[1] = 1,
        progress: OnStep | None = None,
        on_text: OnText | None = None,
        return_result: Literal[False] = False,
        **settings: Unpack[EditingSettings],
    ) -> Image.Image: ...
    @overload
    def edit(
        self,
        image: Images,
        instruction: str,
        *,
        n: Literal[1] = 1,
        progress: OnStep | None = None,
        on_text: OnText | None = None,
        return_result: Literal[True],
        **settings: Unpack[EditingSettings],
    ) -> Result: ...
    @overload
    def edit(
        self,
        image: ImageSource | Sequence[Any],
        instruction: Texts,
        *,
        n: int = 1,
        progress: OnStep | None = None,
        on_text: OnText | None = None,
        return_result: Literal[False] = False,
        **settings: Unpack[EditingSettingsLists],
    ) -> list[Image.Image]: ...
    @overload
    def edit(
        self,
        image: ImageSource | Sequence[Any],
        instruction: Texts,
        *,
        n: int = 1,
        progress: OnStep | None = None,
        on_text: OnText | None = None,
        return_result: Literal[True],
        **settings: Unpack[EditingSettingsLists],
    ) -> list[Result]: ...
    @overload
    def edit(
        self,
        image: ImageSource | Sequence[Any],
        instruction: str | Texts,
        *,
        n: int = 1,
        progress: OnStep | None = None,
        on_text: OnText | None = None,
        return_result: bool = False,
        **settings: Unpack[EditingSettingsLists],
    ) -> Any: ...
    def edit(
        self,
        image: ImageSource | Sequence[Any],
        instruction: str | Sequence[str],
        *,
        n: int = 1,
        progress: OnStep | None = None,
        on_text: OnText | None = None,
        return_result: bool = False,
        **settings: Any,
    ) -> Any:
        """Draws images from images and instructions.

        Args:
            image: an image; or a list of images that one instruction is about; or, with a list of instructions, a
                list with an image or a list of images for each. A single image serves all instructions.
            instruction: a text, or a list of texts that run as one batch.
            n, progress, on_text, return_result, **settings: see `generate`. The size is that of the (last) image,
                resized for the model, unless `size` is given.

        Returns and raises: see `generate`; also ImageError.
        """
        inputs, single = pair(image, instruction)
        if any(len(own) < 2 for own in inputs):
            raise PromptError("there is no picture to edit: give one, or use generate.")
        listener = Listener(progress, on_text=on_text)
        return self._batch(Task.EDIT, inputs, single, settings, listener, return_result, n)

    @overload
    def ask(
        self,
        image: Images | None,
        question: str,
        *,
        stream: Literal[False] = False,
        on_text: OnText | None = None,
        return_result: Literal[False] = False,
        **settings: Unpack[AnswerSettings],
    ) -> str: ...
    @overload
    def ask(
        self,
        image: Images | None,
        question: str,
        *,
        stream: Literal[False] = False,
        on_text: OnText | None = None,
        return_result: Literal[True],
        **settings: Unpack[AnswerSettings],
    ) -> Result: ...
    @overload
    def ask(
        self, image: Images | None, question: str, *, stream: Literal[True], **settings: Unpack[AnswerSettings]
    ) -> Iterator[str]: ...
    @overload
    def ask(
        self,
        image: ImageSource | Sequence[Any] | None,
        question: Texts,
        *,
        stream: Literal[False] = False,
        on_text: OnText | None = None,
        return_result: Literal[False] = False,
        **settings: Unpack[AnswerSettingsLists],
    ) -> list[str]: ...
    @overload
    def ask(
        self,
        image: ImageSource | Sequence[Any] | None,
        question: Texts,
        *,
        stream: Literal[False] = False,
        on_text: OnText | None = None,
        return_result: Literal[True],
        **settings: Unpack[AnswerSettingsLists],
    ) -> list[Result]: ...
    @overload
    def ask(
        self,
        image: ImageSource | Sequence[Any] | None,
        question: str | Texts,
        *,
        stream: bool = False,
        on_text: OnText | None = None,
        return_result: bool = False,
        **settings: Unpack[AnswerSettingsLists],
    ) -> Any: ...
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
            image: see `edit`; or None.
            question: a text, or a list of texts that run as one batch.
            stream: returns an iterator over the pieces of the answer, for a single request; without on_text and
                return_result. With `think` they include the thinking as the model writes it.
            on_text, return_result, **settings: see `generate`.

        Returns: the answer (without its thinking) for a single request, else a list.

        Raises: see `edit`.
        """
        inputs, single = pair(image, question)
        if stream:
            check_stream(on_text, return_result)
            return self._stream(inputs, single, settings)
        return self._batch(Task.ASK, inputs, single, settings, Listener(on_text=on_text), return_result)

    @overload
    def interleave(
        self,
        inputs: Sequence[str | ImageSource],
        *,
        output: Literal["image"] = "image",
        noise: Tensor | None = None,
        recorder: Recorder | None = None,
        progress: OnStep | None = None,
        on_text: OnText | None = None,
        return_result: Literal[False] = False,
        **settings: Unpack[EditingSettings],
    ) -> Image.Image: ...
    @overload
    def interleave(
        self,
        inputs: Sequence[str | ImageSource],
        *,
        output: Literal["text"],
        noise: Tensor | None = None,
        recorder: Recorder | None = None,
        progress: OnStep | None = None,
        on_text: OnText | None = None,
        return_result: Literal[False] = False,
        **settings: Unpack[AnswerSettings],
    ) -> str: ...
    @overload
    def interleave(
        self,
        inputs: Sequence[str | ImageSource],
        *,
        output: str = "image",
        noise: Tensor | None = None,
        recorder: Recorder | None = None,
        progress: OnStep | None = None,
        on_text: OnText | None = None,
        return_result: Literal[True],
        **settings: Unpack[AnySettings],
    ) -> Result: ...
    @overload
    def interleave(
        self,
        inputs: Sequence[str | ImageSource],
        *,
        output: str = "image",
        noise: Tensor | None = None,
        recorder: Recorder | None = None,
        progress: OnStep | None = None,
        on_text: OnText | None = None,
        return_result: bool = False,
        **settings: Unpack[AnySettingsLists],
    ) -> Any: ...
    def interleave(
        self,
        inputs: Sequence[str | ImageSource],
        *,
        output: str = "image",
        noise: Tensor | None = None,
        recorder: Recorder | None = None,
        progress: OnStep | None = None,
        on_text: OnText | None = None,
        return_result: bool = False,
        **settings: Any,
    ) -> Any:
        """Continues texts and images in any order with an image or a text: what `generate`, `edit` and `ask` do.

        Args:
            inputs: texts (every `str` is one) and images (paths as `Path`).
            output: "image" or "text".
            noise: (rows·columns, latent_dim) to start the image from, instead of noise drawn from the seed.
            recorder: filled with the tokens, logits and latent on the way.
            progress, on_text, return_result, **settings: see `generate`. Defaults are those of "edit" where an image is
                among the inputs of an image.

        Raises: see `edit`.
        """
        listener = Listener(progress, on_text=on_text, recorder=recorder)
        return self._batch(
            task_of(inputs, output), [list(inputs)], True, settings, listener, return_result, noise=noise
        )

    # ------------------------------------------------------------------------------------------------------- sessions

    def session(self, *, think: bool = False, understanding: bool = False) -> Session:
        """An interleaved conversation whose cache is kept between turns.

        Args:
            think: puts the system prompt for thinking first, and thinks before each image and answer.
            understanding: images are only asked about, never drawn; they then cost half the tokens.
        """
        return Session(self, think=think, understanding=understanding)

    def load_session(self, folder: str | os.PathLike[str]) -> Session:
        """A session that `Session.save` wrote."""
        return Session.load(self, folder)

    # ------------------------------------------------------------------------------------------------- what they share

    def submit(
        self,
        inputs: Sequence[str | ImageSource],
        *,
        output: str = "image",
        noise: Tensor | None = None,
        on_step: OnStep | None = None,
        on_preview: Callable[[Image.Image], None] | None = None,
        on_text: OnText | None = None,
        recorder: Recorder | None = None,
        **settings: Unpack[AnySettings],
    ) -> Ticket[Result]:
        """`interleave` without waiting: for servers and pages, which have many requests at once.

        The request is worked on while some thread drives the engine, such as one in `ticket.result()`; callbacks come
        from that thread and should return at once. `ticket.cancel()` ends it within a step.

        Args:
            inputs, output, recorder, on_text, **settings: see `interleave`.
            noise: (rows·columns, latent_dim); see `interleave`.
            on_step: called with the number of denoising steps done and of all.
            on_preview: called up to eight times with a small preview of the image as it forms.

        Raises: see `interleave`; nothing has run then.
        """
        task = task_of(inputs, output)
        prepare = Preparer(self.runtime)
        request = prepare.request(task, prepare.inputs(inputs, task, settings), settings, noise=noise)
        return self.submit_request(request, Listener(on_step, on_preview, on_text, recorder))

    def submit_request(self, request: Request, listener: Listener = NOBODY) -> Ticket[Result]:
        """Takes a prepared request in; see `submit`."""
        return self.engine.submit(respond(self.runtime, request, listener), request.max_result_tokens, request.prompt)

    def hint(self, text: str) -> str | None:
        """One sentence if a prompt has words that this checkpoint has never read, as its `bagel_scope.yaml` says;
        None otherwise, for checkpoints that do not say, and where an adapter is on, which may have read others. Nothing
        is refused for it.
        """
        scope = self.runtime.defaults.scope
        return None if scope is None or any(self.adapters.values()) else scope.hint(text)

    def share_prefixes(self, max_tokens: int) -> None:
        """Keeps what requests begin with (system prompt, image) for requests to come; 0 ends it.

        Args:
            max_tokens: tokens of cache that are kept, at most.
        """
        self.runtime.prefixes.resize(max_tokens)

    def _batch(
        self,
        task: Task,
        inputs: list[list[Any]],
        single: bool,
        settings: dict[str, Any],
        listener: Listener,
        return_result: bool,
        n: int = 1,
        noise: Tensor | None = None,
    ) -> Any:
        """Checks everything, then runs all requests together."""
        if not isinstance(n, Integral) or isinstance(n, bool) or n < 1:
            raise SettingError(f"n is {n!r}: it must be a whole number, at least 1.")
        inputs, values, single = spread(inputs, settings, single)
        requests: list[Request] = []
        prepare = Preparer(self.runtime)
        for index, (given, own) in enumerate(zip(inputs, values, strict=True)):
            with naming("request", index, len(inputs)):
                first = prepare.request(task, prepare.inputs(given, task, own), own, noise=noise)
                self.engine.check_image(first.size)
                requests += with_seeds(first, n)
        if listener.on_text is not None and len(requests) > 1:
            raise SettingError(f"on_text follows a single request: this is a batch of {len(requests)}.")
        if listener.on_step is not None:
            listener = replace(listener, on_step=_counting(requests, listener.on_step))
        tickets = [self.submit_request(request, listener) for request in requests]
        self.engine.run_until(tickets)
        results = []
        for i, ticket in enumerate(tickets):
            with naming("request", i // n, len(inputs)):
                results.append(ticket.result())
        found = results if return_result else [result.value for result in results]
        return found[0] if single and n == 1 else found

    def _stream(self, inputs: list[list[Any]], single: bool, settings: dict[str, Any]) -> Iterator[str]:
        inputs, values, single = spread(inputs, settings, single)
        if not single:
            raise SettingError(f"stream follows a single question: these are {len(inputs)}.")
        prepare = Preparer(self.runtime)
        request = prepare.request(Task.ASK, prepare.inputs(inputs[0], Task.ASK, values[0]), values[0])
        return self.engine.stream(lambda on_text: self.submit_request(request, Listener(on_text=on_text)))


def _counting(requests: Sequence[Request], progress: OnStep) -> OnStep:
    """A callback for each request that tells `progress` of the denoising steps of all of them together."""
    total = sum(request.settings.num_timesteps - 1 for request in requests)
    done = count(1)
    return lambda step, steps: progress(next(done), total)
