"""An interleaved conversation: texts and images, given and generated, over one cache that is kept between turns."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol, TypeVar, Unpack, overload

from PIL import Image

from bagel_mot.errors import BagelError, PromptError, SettingError
from bagel_mot.images import ImageSource
from bagel_mot.inference.batch import check_stream, naming
from bagel_mot.inference.engine.ops import Steps
from bagel_mot.inference.engine.ticket import Ticket
from bagel_mot.inference.history import History, Turn
from bagel_mot.inference.prepare import Preparer, check_loaded_for
from bagel_mot.inference.request import NOBODY, Input, Listener, Request, TextInput
from bagel_mot.inference.result import Result
from bagel_mot.inference.runtime import Runtime
from bagel_mot.inference.session_store import SavedSession, read_session, write_session
from bagel_mot.inference.setting_types import AnswerSettings, DrawingSettings
from bagel_mot.inference.steps.read import read, read_again
from bagel_mot.inference.steps.respond import follow
from bagel_mot.model.cache import Chunk
from bagel_mot.task import Task

T = TypeVar("T")
OnSubmit = Callable[[Ticket[Any]], None]
Turned = tuple[History, Result]  # a history that has taken a turn, and what the turn resulted in


class LoadedModel(Protocol):
    """A loaded model, such as a `Bagel`."""

    runtime: Runtime


class Session:
    """A conversation with a `Bagel`. Adding a turn computes only that turn.

        chat = bagel.session()
        chat.add(image)
        chat.add("Draw the same car in blue.")
        image = chat.generate_image()
        chat.add("What changed?")
        print(chat.generate_text())

    An image, given or drawn, enters as clean VAE image, then ViT image; in a session for understanding as ViT image
    alone. What is generated becomes part of the conversation. A session is to be used by one thread at a time.

    Every turn is whole or not at all: it is worked out on a copy, which takes the session's place at the end. What is
    refused, fails, or is broken off leaves the session as it was.

    Args:
        bagel: the model.
        think: begins with the system prompt for thinking (the one for drawing, in a session for understanding the one
            for answering), and thinks before images and answers by default.
        understanding: says that no images will be drawn.
    """

    def __init__(self, bagel: LoadedModel, *, think: bool = False, understanding: bool = False) -> None:
        self.runtime, self.think, self.understanding = bagel.runtime, think, understanding
        check_loaded_for(self.runtime, self._reads_for)
        self._history = History(self.runtime.engine.new_context(), keeps_growing=True)
        self._marks: list[int] = []  # number of turns before each add and generate
        self._streaming = False
        self._version = self.runtime.engine.weights_version
        if think:
            self._add((self.runtime.system_prompt(self._reads_for),))

    # ------------------------------------------------------------------------------------------------------- turns

    @property
    def history(self) -> tuple[Turn, ...]:
        """All texts and images so far, oldest first."""
        return self._history.turns

    @property
    def tokens(self) -> int:
        """The tokens in the context."""
        return self._history.context.length

    @property
    def chunks(self) -> set[Chunk]:
        """The memory of the cache that it keeps, some of it shared with its forks."""
        return self._history.chunks

    def add(self, item: str | ImageSource, *, on_submit: OnSubmit | None = None) -> None:
        """Adds a text (`str`) or an image (a `Path`, bytes, a PIL image or an array) to the conversation.

        Args:
            item: the text or the image.
            on_submit: see `generate_image`.

        Raises:
            PromptError, ImageError, SizeError, ContextLengthError: it cannot be used; the session stays as it was.
            BagelError: a stream of this session is open.
            CancelledError: it was cancelled.
        """
        self._check_free()
        inputs, before = self._prepare(item), len(self.history)
        self._add(inputs, on_submit)
        self._marks.append(before)

    @overload
    def generate_image(
        self,
        text: str | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
        on_preview: Callable[[Image.Image], None] | None = None,
        on_text: Callable[[str], None] | None = None,
        on_submit: OnSubmit | None = None,
        return_result: Literal[False] = False,
        **settings: Unpack[DrawingSettings],
    ) -> Image.Image: ...
    @overload
    def generate_image(
        self,
        text: str | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
        on_preview: Callable[[Image.Image], None] | None = None,
        on_text: Callable[[str], None] | None = None,
        on_submit: OnSubmit | None = None,
        return_result: Literal[True],
        **settings: Unpack[DrawingSettings],
    ) -> Result: ...
    def generate_image(
        self,
        text: str | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
        on_preview: Callable[[Image.Image], None] | None = None,
        on_text: Callable[[str], None] | None = None,
        on_submit: OnSubmit | None = None,
        return_result: bool = False,
        **settings: Any,
    ) -> Any:
        """Draws an image that follows, which becomes part of the conversation.

        Text guidance is towards the latest text; right after an image there is none to be guided to, so add a text, or
        `undo`, before drawing again.

        Args:
            text: added first, as by `add(text)`: both become part of the conversation, or neither. `undo` takes back
                the image alone; once more, the text.
            progress: called with the denoising steps done and in all.
            on_preview: called up to eight times with a small preview of the image as it forms.
            on_text: called with the pieces of the thinking.
            on_submit: is given the ticket before anything runs. `ticket.cancel()`, from any thread, ends the turn
                within a step and leaves the session as it was.
            return_result: returns a `Result` instead of the image.
            **settings: settings by name; defaults are those of "edit" once there is an image. The size is that of the
                last one.

        Returns: a PIL image.

        Raises:
            PromptError, SizeError, SettingError, ContextLengthError: it cannot be run; nothing was.
            BagelError: a stream of this session is open.
            CancelledError: it was cancelled.
        """
        request = self._drawing_request(settings, self._prepare(*([] if text is None else [text])))
        result = self._generate(request, Listener(progress, on_preview, on_text), on_submit)
        return result if return_result else result.image

    @overload
    def generate_text(
        self,
        text: str | None = None,
        *,
        stream: Literal[False] = False,
        on_text: Callable[[str], None] | None = None,
        on_submit: OnSubmit | None = None,
        return_result: Literal[False] = False,
        **settings: Unpack[AnswerSettings],
    ) -> str: ...
    @overload
    def generate_text(
        self,
        text: str | None = None,
        *,
        stream: Literal[False] = False,
        on_text: Callable[[str], None] | None = None,
        on_submit: OnSubmit | None = None,
        return_result: Literal[True],
        **settings: Unpack[AnswerSettings],
    ) -> Result: ...
    @overload
    def generate_text(
        self,
        text: str | None = None,
        *,
        stream: Literal[True],
        on_submit: OnSubmit | None = None,
        **settings: Unpack[AnswerSettings],
    ) -> Generator[str, None, None]: ...
    def generate_text(
        self,
        text: str | None = None,
        *,
        stream: bool = False,
        on_text: Callable[[str], None] | None = None,
        on_submit: OnSubmit | None = None,
        return_result: bool = False,
        **settings: Any,
    ) -> Any:
        """Writes an answer, which becomes part of the conversation.

        Args:
            text: see `generate_image`.
            stream: returns an iterator over the pieces as they are written, thinking included; without on_text and
                return_result. It begins to write when the first piece is asked for. From then on the session cannot be
                changed until the iterator has ended, which makes the answer part of the conversation, or is closed or
                dropped, which leaves the session as it was.
            on_text: called with each piece.
            on_submit: see `generate_image`; called for a stream when its first piece is asked for.
            return_result: returns a `Result` instead of the answer.
            **settings: settings of "ask", by name.

        Returns: the answer without its thinking.

        Raises: see `generate_image`.
        """
        if stream:
            check_stream(on_text, return_result)
        request = self._request(Task.ASK, settings, self._prepare(*([] if text is None else [text])))
        if stream:
            return self._stream(request, on_submit, self._history)
        result = self._generate(request, Listener(on_text=on_text), on_submit)
        return result if return_result else result.text

    @overload
    def ask(
        self,
        question: str,
        *,
        stream: Literal[False] = False,
        on_text: Callable[[str], None] | None = None,
        on_submit: OnSubmit | None = None,
        return_result: Literal[False] = False,
        **settings: Unpack[AnswerSettings],
    ) -> str: ...
    @overload
    def ask(
        self,
        question: str,
        *,
        stream: Literal[False] = False,
        on_text: Callable[[str], None] | None = None,
        on_submit: OnSubmit | None = None,
        return_result: Literal[True],
        **settings: Unpack[AnswerSettings],
    ) -> Result: ...
    @overload
    def ask(
        self,
        question: str,
        *,
        stream: Literal[True],
        on_submit: OnSubmit | None = None,
        **settings: Unpack[AnswerSettings],
    ) -> Generator[str, None, None]: ...
    def ask(self, question: str, **options: Any) -> Any:
        """`generate_text(question, …)`: the answer to a question."""
        return self.generate_text(question or "", **options)

    def fork(self) -> Session:
        """A second session that goes on from here. It shares the cache: nothing is computed or copied."""
        other = Session.__new__(Session)
        other.runtime, other.think, other.understanding = self.runtime, self.think, self.understanding
        other._history, other._marks = self._history.copy(), list(self._marks)
        other._streaming, other._version = False, self._version
        return other

    def undo(self) -> None:
        """Goes back to before the last `add`, `generate_image` or `generate_text`.

        Raises:
            PromptError: there is nothing to undo.
            BagelError: a stream of this session is open.
        """
        self._check_free()
        if not self._marks:
            raise PromptError("there is nothing to undo: the session is empty.")
        self._history = self._history.copy(self._marks.pop())

    # -------------------------------------------------------------------------------------------------- on disk

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes texts and images into a folder, which is replaced if it holds a saved session and nothing else.

        A failure leaves what was there as it was.

        Raises:
            DataError: there is something else at that place.
            OSError: it cannot be written there.
        """
        items = [(turn.kind, turn.content) for turn in self.history]
        write_session(folder, SavedSession(self.think, self.understanding, self._marks, items))

    @classmethod
    def load(cls, bagel: LoadedModel, folder: str | os.PathLike[str]) -> Session:
        """Reads what `save` wrote, and computes its cache anew in one go.

        Raises:
            DataError: it is no saved session, or a damaged one.
            ImageError: an image of it is missing or damaged.
            SizeError, ContextLengthError: it was saved with another model, and does not fit this one.
        """
        return cls.restore(bagel, read_session(folder))

    @classmethod
    def restore(cls, bagel: LoadedModel, saved: SavedSession, *, on_submit: OnSubmit | None = None) -> Session:
        """A session with these texts and images, whose cache is computed in one go.

        Args:
            bagel: the model.
            saved: the texts and images.
            on_submit: see `generate_image`.

        Raises:
            SizeError, ContextLengthError: it does not fit the model.
            CancelledError: it was cancelled.
        """
        session = cls(bagel, understanding=saved.understanding)
        session.think, session._marks = saved.think, list(saved.marks)
        preparer = Preparer(session.runtime, keep_originals=True)
        inputs = [
            TextInput(kind, content, session.runtime.text(content))
            if isinstance(content, str)
            else preparer.image(content, session._reads_for, kind)
            for kind, content in saved.items
        ]
        if inputs:
            session._add(tuple(inputs), on_submit)
        return session

    # ----------------------------------------------------------------------------------------------- how it runs

    @property
    def _reads_for(self) -> Task:
        """The task that images are prepared for."""
        return Task.ASK if self.understanding else Task.EDIT

    def _prepare(self, *values: str | ImageSource) -> tuple[Input, ...]:
        """Texts and images, prepared to be read."""
        return Preparer(self.runtime, keep_originals=True).inputs(values, self._reads_for) if values else ()

    def _check_free(self) -> None:
        """Checks that no stream is open.

        Raises:
            BagelError: one is.
        """
        if self._streaming:
            raise BagelError("a stream of this session is open: read it to its end, or close it, before going on.")

    def _request(self, task: Task, settings: dict[str, Any], added: tuple[Input, ...]) -> Request:
        """A request for an image or a text after `added`, checked for all that can be known beforehand."""
        self._check_free()
        self._read_again()
        if not any(turn.kind != "system" for turn in (*self.history, *added)):
            raise PromptError("the session is empty: add a text or a picture first.")
        grid, stride = self._history.last_grid, self.runtime.config.latent_stride
        request = Preparer(self.runtime).request(
            task,
            added,
            {"think": self.think, **settings},
            last_size=None if grid is None else (grid[1] * stride, grid[0] * stride),
            position=self._history.context.position,
        )
        if request.settings.think and not self.think:
            raise SettingError("think is true, but the session began without it: open one with think=True.")
        return request

    def _drawing_request(self, settings: dict[str, Any], added: tuple[Input, ...] = ()) -> Request:
        if self.understanding:
            raise SettingError("this session is for understanding: open one with understanding=False to draw.")
        request = self._request(Task.GENERATE if self._history.last_grid is None else Task.EDIT, settings, added)
        self.runtime.engine.check_image(request.size)
        return request

    def _read_again(self) -> None:
        """Computes the cache anew where the model's weights were changed since, such as by other adapters."""
        version = self.runtime.engine.weights_version
        if self._version != version:
            again = read_again(self.runtime, self._history)
            self._history = self._submit(again, self._history.context.length).result()
            self._version = version

    def _add(self, inputs: tuple[Input, ...], on_submit: OnSubmit | None = None) -> None:
        """Reads inputs, which become part of the conversation."""
        self._read_again()
        self.runtime.check_room(self._history.context.position, sum(one.positions for one in inputs))
        history = self._history.copy()
        steps = read(self.runtime, history, inputs, keep=True)
        self._submit(steps, sum(one.tokens for one in inputs), on_submit).result()
        self._history = history

    def _submit(self, steps: Steps[T], cost: int, on_submit: OnSubmit | None = None) -> Ticket[T]:
        """Hands a ticket to whoever wants it; if that fails, nobody waits for it."""
        ticket = self.runtime.engine.submit(steps, cost)
        if on_submit is not None:
            try:
                on_submit(ticket)
            except BaseException:
                ticket.cancel()
                raise
        return ticket

    def _start(self, request: Request, listener: Listener, on_submit: OnSubmit | None = None) -> Ticket[Turned]:
        return self._submit(self._turn(request, listener), request.max_cache_tokens, on_submit)

    def _generate(self, request: Request, listener: Listener, on_submit: OnSubmit | None) -> Result:
        return self._accept(self._start(request, listener, on_submit).result(), request)

    def _turn(self, request: Request, listener: Listener) -> Steps[Turned]:
        """Reads the inputs of a request, generates what follows, and reads that, all on a copy of the history."""
        history = self._history.copy()
        if request.inputs:
            yield from read(self.runtime, history, request.inputs)
        result, answer = yield from follow(self.runtime, history, request, listener)
        if result.image is not None:
            preparer = Preparer(self.runtime, keep_originals=True)
            prepared = preparer.image(result.image, self._reads_for, "drawing")
            generated: Input = replace(prepared, content=result.image)
        else:
            assert answer is not None, "what is not drawn is written"
            generated = answer
        yield from read(self.runtime, history, [generated], keep=True)
        return history, result

    def _stream(self, request: Request, on_submit: OnSubmit | None, history: History) -> Generator[str, None, None]:
        """The pieces of an answer. The request was made for `history`."""
        self._check_free()
        if self._history is not history:
            raise BagelError("the session has changed since this stream was made: make it when it is to be read.")
        self._streaming = True
        try:
            stream = self.runtime.engine.stream(lambda tell: self._start(request, Listener(on_text=tell), on_submit))
            self._accept((yield from stream), request)
        finally:
            self._streaming = False

    def _accept(self, outcome: Turned, request: Request) -> Result:
        """Takes over what a request led to."""
        before, added = len(self.history), len(request.inputs)
        self._marks += [before, before + added] if added else [before]
        self._history, result = outcome
        return result


def draw_together(sessions: Sequence[Session], *, seed: Sequence[int | None], **settings: Any) -> list[Image.Image]:
    """`generate_image` in several sessions of one model at once, as one batch; each draws what it would draw alone.

    If one of them fails, all sessions stay as they were.

    Args:
        sessions: no session twice.
        seed: one for each.
        **settings: the same for all.

    Raises:
        PromptError, SizeError, SettingError, ContextLengthError: before anything runs.
        BagelError: a stream of one of the sessions is open.
    """
    count = len(sessions)
    if len(seed) != count:
        raise SettingError(f"seed is a list of {len(seed)}: there are {count} sessions.")
    if len(set(map(id, sessions))) < count or len({id(session.runtime) for session in sessions}) > 1:
        raise SettingError(f"these {count} sessions cannot draw together: they must be different ones of one model.")
    requests = []
    for i, (session, own_seed) in enumerate(zip(sessions, seed, strict=True)):
        with naming("session", i, count):
            requests.append(session._drawing_request({**settings, "seed": own_seed}))
    tickets = [session._start(request, NOBODY) for session, request in zip(sessions, requests, strict=True)]
    if tickets:
        sessions[0].runtime.engine.run_until(tickets)
    outcomes = []
    for i, ticket in enumerate(tickets):
        with naming("session", i, count):
            outcomes.append(ticket.result())
    results = [
        session._accept(outcome, request)
        for session, outcome, request in zip(sessions, outcomes, requests, strict=True)
    ]
    return [result.image for result in results if result.image is not None]
