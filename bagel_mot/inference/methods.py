"""The methods of a model that draw, edit and answer: settings and inputs, one or a list of each, to requests that run
as one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from numbers import Integral
from typing import Any, Literal, Unpack, overload

from PIL import Image
from torch import Tensor

from bagel_mot.errors import PromptError, SettingError
from bagel_mot.images import ImageSource
from bagel_mot.inference.batch import as_batch, check_stream, naming, pair, spread
from bagel_mot.inference.engine.engine import Engine
from bagel_mot.inference.engine.ticket import Ticket
from bagel_mot.inference.prepare import Preparer, task_of, with_seeds
from bagel_mot.inference.request import NOBODY, Listener, Recorder, Request
from bagel_mot.inference.result import Result
from bagel_mot.inference.runtime import Runtime
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
from bagel_mot.task import Task

OnStep = Callable[[int, int], None]
OnText = Callable[[str], None]
Texts = list[str] | tuple[str, ...]
Images = ImageSource | Sequence[ImageSource]


class RequestMethods:
    """The ways to run requests on an engine: `generate`, `edit`, `ask` and `interleave` wait for what comes out,
    `submit` does not.

    Attributes:
        engine: runs all requests.
        runtime: the parts of the model that requests are prepared with.
    """

    engine: Engine
    runtime: Runtime

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
