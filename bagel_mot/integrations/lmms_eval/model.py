"""The model of lmms-eval 0.7: it answers, draws, edits, and draws an auxiliary image before it answers.

Results come in batches through one engine, and each is the same whatever runs beside it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from PIL import Image

from bagel_mot.errors import EvaluationError
from bagel_mot.files import user_path
from bagel_mot.inference.api import Bagel
from bagel_mot.inference.result import Result, save_image
from bagel_mot.integrations.lmms_eval.translation import (
    answer_settings,
    check_mode,
    draw_then_answer,
    drawn_answer,
    draws,
    given_images,
    image_file,
    inputs_of,
    model_settings,
)
from bagel_mot.task import Task

Inputs = list[str | Image.Image]


class BagelMot(lmms):
    """The model for tasks that give a text and images: images are read first, then the text.

    Args:
        checkpoint: "mini", a folder, or a hub id; `pretrained` is the same.
        device, precision, memory, offload, adapters: see `Bagel.from_pretrained`; adapters are parted by a plus.
        mode: "answer", "draw", or "auto": tasks of GEdit-Bench, ImgEdit, KRIS and WISE draw, and all others answer.
        images: the folder of drawn images.
        batch_size: requests that run together; `max_batch_size` is not used.
        **settings: any setting of `Bagel`, such as `think`, `seed` or `num_timesteps`. Without a seed it is 0.

    Raises: CheckpointError, DeviceError or SettingError as `Bagel.from_pretrained` and the settings do.
    """

    is_simple = True

    def __init__(
        self,
        checkpoint: str = "mini",
        *,
        pretrained: str | None = None,
        device: str | None = None,
        precision: str = "auto",
        memory: str | None = None,
        offload: str = "auto",
        adapters: str = "",
        mode: str = "auto",
        images: str = "lmms-eval-images",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.mode = check_mode(mode)
        self.settings = model_settings({"seed": 0, **settings})
        self.batch_size_per_gpu = max(int(batch_size), 1) if str(batch_size).isdecimal() else 1
        self.images = user_path(images).absolute()
        rank = os.environ.get("LOCAL_RANK")
        if device in (None, "cuda") and rank is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            device = f"cuda:{rank}"
        self.bagel = Bagel.from_pretrained(
            pretrained or checkpoint,
            device=device or "auto",
            precision=precision,
            memory=memory,
            offload=offload,
            adapters=[name for name in adapters.split("+") if name],
        )

    @property
    def batch_size(self) -> int:
        return self.batch_size_per_gpu

    # -------------------------------------------------------------------------------------------- what lmms-eval calls

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Refuses: no task about images needs it that has no form with written answers.

        Raises:
            EvaluationError: always.
        """
        raise EvaluationError(
            "bagel_mot writes answers and gives no log-likelihoods: choose a task of the type generate_until."
        )

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """Answers, or the files of drawn images, in the order of the requests."""
        return self._in_batches(requests, self._respond)

    def generate_until_multi_round(self, requests: list[Any]) -> list[list[str]]:
        """The answers of each round of each request."""
        return [self._rounds(request) for request in requests]

    def generate_visual_cot(self, requests: list[Any]) -> list[str]:
        """Answers with an auxiliary image that is drawn first, from the same images."""
        return self._in_batches(requests, self._draw_and_respond)

    # ----------------------------------------------------------------------------------------------- what the two share

    def _in_batches(self, requests: Sequence[Any], run: Callable[[Sequence[Any]], list[Any]]) -> list[Any]:
        found: list[Any] = []
        for start in range(0, len(requests), self.batch_size):
            batch = requests[start : start + self.batch_size]
            results = run(batch)
            for request, result in zip(batch, results, strict=True):
                text = result.text if isinstance(result, GenerationResult) else result
                self.cache_hook.add_partial(request.request_type, request.args[:2], text)
            found += results
        return found

    def _respond(self, requests: Sequence[Any]) -> list[Any]:
        asked = []
        for request in requests:
            gen_kwargs, task, _, _ = self._parts(request)
            inputs = self._inputs(request)
            asked.append(self._drawing(inputs) if draws(task, self.mode) else self._answering(inputs, gen_kwargs))
        return [
            self._text(result) if result.image is None else drawn_answer(result.thinking, self._saved(result, request))
            for request, result in zip(requests, self._run(asked), strict=True)
        ]

    def _draw_and_respond(self, requests: Sequence[Any]) -> list[Any]:
        steps = [draw_then_answer(request.args[0]) for request in requests]
        images = [self._visuals(request) for request in requests]
        drawn = self._run([self._drawing([*own, step.drawing]) for own, step in zip(images, steps, strict=True)])
        asked = []
        for request, own, step, result in zip(requests, images, steps, drawn, strict=True):
            self._saved(result, request)
            assert result.image is not None
            gen_kwargs, *_ = self._parts(request)
            asked.append(self._answering([*own, result.image, step.question], gen_kwargs))
        return [self._text(result) for result in self._run(asked)]

    def _rounds(self, request: Any) -> list[str]:
        """The answers of one request, round by round, until its task ends it."""
        context, gen_kwargs, doc_to_visual, doc_to_text, doc_id, task, split = request.args
        document = self.task_dict[task][split][doc_id]
        inputs: Inputs = [*given_images(doc_to_visual(document)), context]
        answers: list[str] = []
        state: Any = None
        while True:
            [result] = self._run([self._answering(inputs, gen_kwargs)])
            answers.append(result.text)
            visuals, text, ended, told, state = doc_to_text(
                document, previous_output=list(answers), round_idx=len(answers), previous_round_info=state
            )
            if ended:
                return list(told) if told is not None else answers
            inputs = [*given_images(visuals), text]

    def _drawing(self, inputs: Inputs) -> tuple[Inputs, str, dict[str, Any]]:
        task = Task.GENERATE if all(isinstance(one, str) for one in inputs) else Task.EDIT
        return inputs, "image", self.settings[task]

    def _answering(self, inputs: Inputs, gen_kwargs: dict[str, Any]) -> tuple[Inputs, str, dict[str, Any]]:
        return inputs, "text", answer_settings(gen_kwargs, self.settings[Task.ASK])

    def _run(self, asked: Sequence[tuple[Inputs, str, dict[str, Any]]]) -> list[Result]:
        tickets = [self.bagel.submit(inputs, output=output, **settings) for inputs, output, settings in asked]
        self.bagel.engine.run_until(tickets)
        return [ticket.result() for ticket in tickets]

    def _text(self, result: Result) -> GenerationResult:
        return GenerationResult(result.text, TokenCounts(output_tokens=result.completion_tokens))

    def _saved(self, result: Result, request: Any) -> Path:
        """Writes the drawn image and returns its file."""
        assert result.image is not None
        _, task, split, doc_id = self._parts(request)
        path = image_file(self.images, task, split, doc_id, request.idx)
        save_image(result.image, path)
        return path

    # ------------------------------------------------------------------------------- what differs in the chat interface

    def _parts(self, request: Any) -> tuple[dict[str, Any], str, str, Any]:
        """The settings that a task asks for, its name, the split, and the document's number."""
        _, gen_kwargs, _, doc_id, task, split = request.args
        return gen_kwargs, task, split, doc_id

    def _visuals(self, request: Any) -> list[Image.Image]:
        _, _, doc_to_visual, doc_id, task, split = request.args
        return given_images(doc_to_visual(self.task_dict[task][split][doc_id]))

    def _inputs(self, request: Any) -> Inputs:
        context = request.args[0]
        return [*self._visuals(request), *([context] if context.strip() else [])]


class BagelMotChat(BagelMot):
    """The model for tasks that give messages: texts and images are read in their order."""

    is_simple = False

    def generate_visual_cot(self, requests: list[Any]) -> list[str]:
        """Refuses: lmms-eval has such tasks for simple models alone.

        Raises:
            EvaluationError: always.
        """
        raise EvaluationError("tasks that draw before they answer need --force_simple.")

    def _parts(self, request: Any) -> tuple[dict[str, Any], str, str, Any]:
        _, _, gen_kwargs, doc_id, task, split = request.args
        return gen_kwargs, task, split, doc_id

    def _inputs(self, request: Any) -> Inputs:
        _, doc_to_messages, _, doc_id, task, split = request.args
        return inputs_of(_plain(doc_to_messages(self.task_dict[task][split][doc_id])))

    def _rounds(self, request: Any) -> list[str]:
        _, doc_to_messages, gen_kwargs, doc_id, task, split = request.args
        document = self.task_dict[task][split][doc_id]
        answers: list[str] = []
        state: Any = None
        while True:
            messages, ended, told, state = doc_to_messages(
                document, round_idx=len(answers), previous_output=list(answers) or None, previous_round_info=state
            )
            if ended:
                return list(told) if told is not None else answers
            [result] = self._run([self._answering(inputs_of(_plain(messages)), gen_kwargs)])
            answers.append(result.text)


def _plain(messages: Any) -> list[dict[str, Any]]:
    """Messages as plain data, whether lmms-eval made objects or dictionaries of them."""
    return list(_dictionaries(messages.messages if hasattr(messages, "messages") else messages))


def _dictionaries(messages: Sequence[Any]) -> Iterator[dict[str, Any]]:
    for message in messages:
        yield message if isinstance(message, dict) else message.model_dump()
