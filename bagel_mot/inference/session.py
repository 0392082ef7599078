"""An interleaved conversation: texts and images, given and generated, over one cache that is kept between turns."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from PIL import Image

from bagel_mot.errors import BagelError, PromptError, SettingError
from bagel_mot.images import ImageSource
from bagel_mot.inference.batch import check_stream, naming
from bagel_mot.inference.engine.ops import Handle, Request
from bagel_mot.inference.history import History, Turn
from bagel_mot.inference.requests import Item, read, tokens_of
from bagel_mot.inference.result import Result
from bagel_mot.inference.session_store import SavedSession, read_session, write_session
from bagel_mot.inference.settings import Task
from bagel_mot.inference.tasks import Media, Order, cost_of, make_image, make_text, system_prompt
from bagel_mot.model.cache import Chunk

if TYPE_CHECKING:
    from bagel_mot.inference.api import Bagel

T = TypeVar("T")
OnSubmit = Callable[[Handle[Any]], None]


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
    """

    def __init__(self, bagel: Bagel, *, think: bool = False, understanding: bool = False) -> None:
        """
        Args:
            bagel: the model.
            think: the system prompt for thinking stands first (that for drawing, in a session for understanding that
                for answering), and images and answers are thought about by default.
            understanding: no images will be drawn.
        """
        bagel.check_loaded_for("ask" if understanding else "edit")
        self.bagel, self.think, self.understanding = bagel, think, understanding
        self._history = History(bagel.engine.new_context(), lasting=True)
        self._marks: list[int] = []  # number of turns before each add and generate
        self._streaming = False
        if think:
            self._read([system_prompt("text" if understanding else "image")])

    # ------------------------------------------------------------------------------------------------------- turns

    @property
    def history(self) -> tuple[Turn, ...]:
        """What was said and shown so far, oldest first."""
        return self._history.turns

    @property
    def tokens(self) -> int:
        """Tokens in the context."""
        return self._history.context.length

    @property
    def chunks(self) -> set[Chunk]:
        """The memory of the cache that it keeps, some of it shared with its forks."""
        return self._history.chunks

    def add(self, item: str | ImageSource, *, on_submit: OnSubmit | None = None) -> None:
        """Adds a text (`str`) or an image (a `Path`, bytes, a PIL image or an array) to the conversation.

        Args:
            item: the text or the image.
            on_submit: as in `generate_image`.

        Raises:
            PromptError, ImageError, SizeError, ContextLengthError: it cannot be used; the session stays as it was.
            BagelError: a stream of this session is open.
            CancelledError: it was cancelled.
        """
        self._check_free()
        items = self.bagel.check_items([item], self._output)
        before = len(self.history)
        self._read(items, on_submit)
        self._marks.append(before)

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
            on_preview: called up to eight times with a small look at the image as it forms.
            on_text: called with the pieces of the thinking.
            on_submit: is given the handle before anything runs. `handle.cancel()`, from any thread, ends the turn
                within a step and leaves the session as it was.
            return_result: give a `Result` instead of the image.
            **settings: by name; defaults are those of "edit" once there is an image. The size is that of the last one.

        Returns: a PIL image.

        Raises:
            PromptError, SizeError, SettingError, ContextLengthError: before anything runs.
            BagelError: a stream of this session is open.
            CancelledError: it was cancelled.
        """
        added = [] if text is None else self.bagel.check_items([text], self._output)
        order = self._drawing_order(settings, added, on_step=progress, on_preview=on_preview, on_text=on_text)
        result = self._accept(self._run(self._submit_drawing(order, added), on_submit), len(added))
        return result if return_result else result.image

    @overload
    def generate_text(
        self, *, stream: Literal[True], on_submit: OnSubmit | None = None, **settings: Any
    ) -> Iterator[str]: ...
    @overload
    def generate_text(self, *, stream: Literal[False] = False, return_result: bool = False, **settings: Any) -> Any: ...

    def generate_text(
        self,
        *,
        stream: bool = False,
        on_text: Callable[[str], None] | None = None,
        on_submit: OnSubmit | None = None,
        return_result: bool = False,
        **settings: Any,
    ) -> Any:
        """Writes an answer, which becomes part of the conversation.

        Args:
            stream: give an iterator over the pieces as they are written, thinking included; without on_text and
                return_result. It begins to write when the first piece is asked for. From then on the session cannot be
                changed until the iterator has ended, which makes the answer part of the conversation, or is closed or
                dropped, which leaves the session as it was.
            on_text: called with each piece.
            on_submit: as in `generate_image`; of a stream, when its first piece is asked for.
            return_result: give a `Result` instead of the answer.
            **settings: those of "ask", by name.

        Returns: the answer without its thinking.

        Raises:
            PromptError, SettingError, ContextLengthError: before anything runs.
            BagelError: a stream of this session is open.
            CancelledError: it was cancelled.
        """
        return self._write([], stream, on_text, on_submit, return_result, settings)

    @overload
    def ask(
        self, question: str, *, stream: Literal[True], on_submit: OnSubmit | None = None, **settings: Any
    ) -> Iterator[str]: ...
    @overload
    def ask(
        self, question: str, *, stream: Literal[False] = False, return_result: bool = False, **settings: Any
    ) -> Any: ...

    def ask(
        self,
        question: str,
        *,
        stream: bool = False,
        on_text: Callable[[str], None] | None = None,
        on_submit: OnSubmit | None = None,
        return_result: bool = False,
        **settings: Any,
    ) -> Any:
        """`add(question)` and `generate_text(…)` as one: both become part of the conversation, or neither.

        `undo` takes back the answer alone; once more, the question.
        """
        items = self.bagel.check_items([question], self._output)
        return self._write(items, stream, on_text, on_submit, return_result, settings)

    def fork(self) -> Session:
        """A second session that goes on from here. It shares the cache: nothing is computed or copied."""
        other = Session.__new__(Session)
        other.bagel, other.think, other.understanding = self.bagel, self.think, self.understanding
        other._history, other._marks = self._history.copy(), list(self._marks)
        other._streaming = False
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
    def load(cls, bagel: Bagel, folder: str | os.PathLike[str]) -> Session:
        """Reads what `save` wrote, and computes its cache anew in one go.

        Raises:
            DataError: it is no saved session, or a damaged one.
            ImageError: an image of it is missing or damaged.
            SizeError, ContextLengthError: it was saved with another model, and does not fit this one.
        """
        saved = read_session(folder)
        session = cls(bagel, understanding=saved.understanding)
        session.think, session._marks = saved.think, list(saved.marks)
        if saved.items:
            session._read(saved.items)
        return session

    # ----------------------------------------------------------------------------------------------- how it runs

    @property
    def _output(self) -> Media:
        """What images are read for."""
        return "text" if self.understanding else "image"

    @property
    def _latents(self) -> bool:
        """Whether images enter as VAE image, too."""
        return not self.understanding

    def _check_free(self) -> None:
        """
        Raises:
            BagelError: a stream is open.
        """
        if self._streaming:
            raise BagelError("a stream of this session is open: read it to its end, or close it, before going on.")

    def _order(self, task: Task, settings: dict[str, Any], added: Sequence[Item] = (), **callbacks: Any) -> Order:
        """What is to be generated after `added`, checked for all that can be known beforehand."""
        self._check_free()
        items = [*((turn.kind, turn.content) for turn in self.history), *added]
        if not any(kind != "system" for kind, _ in items):
            raise PromptError("the session is empty: add a text or a picture first.")
        order = self.bagel.order(task, {"think": self.think, **settings}, items, **callbacks)
        if order.settings.think and not self.think:
            raise SettingError("think is true, but the session began without it: open one with think=True.")
        self._check_room(added, order.least_room)
        return order

    def _drawing_order(self, settings: dict[str, Any], added: Sequence[Item] = (), **callbacks: Any) -> Order:
        if self.understanding:
            raise SettingError("this session is for understanding: open one with understanding=False to draw.")
        order = self._order("edit" if self._history.has_image else "generate", settings, added, **callbacks)
        self.bagel.engine.check_image(order.size)
        return order

    def _check_room(self, added: Sequence[Item], more: int = 0) -> None:
        runtime = self.bagel.runtime
        more += runtime.positions(added, latents=self._latents)
        runtime.check_room(self._history.context.position, more)

    def _read(self, items: Sequence[Item], on_submit: OnSubmit | None = None) -> None:
        self._check_room(items)
        history = self._history.copy()
        cost = tokens_of(self.bagel.runtime, items, latents=self._latents)
        self._run(self.bagel.engine.submit(self._reading(history, items), cost), on_submit)
        self._history = history

    def _run(self, handle: Handle[T], on_submit: OnSubmit | None) -> T:
        _tell(handle, on_submit)
        self.bagel.engine.run_until([handle])
        return handle.result()

    def _reading(self, history: History, items: Sequence[Item]) -> Request[None]:
        yield from read(self.bagel.runtime, history, items, latents=self._latents)

    def _drawing(self, order: Order, added: Sequence[Item]) -> Request[tuple[History, Result]]:
        history = self._history.copy()
        if added:
            yield from self._reading(history, added)
        result = yield from make_image(self.bagel.runtime, history, order)
        assert result.image is not None
        yield from self._reading(history, [("drawing", result.image)])
        return history, result

    def _submit_drawing(self, order: Order, added: Sequence[Item] = ()) -> Handle[tuple[History, Result]]:
        cost = cost_of(self.bagel.runtime, added, order, latents=True)
        return self.bagel.engine.submit(self._drawing(order, added), cost)

    def _answer(self, added: Sequence[Item], order: Order) -> Request[tuple[History, Result]]:
        history = self._history.copy()
        if added:
            yield from self._reading(history, added)
        result = yield from make_text(self.bagel.runtime, history, order)
        yield from self._reading(history, [("answer", result.raw_text)])
        return history, result

    def _submit_answer(self, added: Sequence[Item], order: Order) -> Handle[tuple[History, Result]]:
        cost = cost_of(self.bagel.runtime, added, order, latents=self._latents)
        return self.bagel.engine.submit(self._answer(added, order), cost)

    def _write(
        self,
        added: Sequence[Item],
        stream: bool,
        on_text: Callable[[str], None] | None,
        on_submit: OnSubmit | None,
        return_result: bool,
        settings: dict[str, Any],
    ) -> Any:
        """Reads `added` and writes an answer: at once, or as a stream."""
        if stream:
            check_stream(on_text, return_result)
            pieces: deque[str] = deque()
            order = self._order("ask", settings, added, on_text=pieces.append)
            return self._stream(added, order, pieces, on_submit, self._history)
        order = self._order("ask", settings, added, on_text=on_text)
        result = self._accept(self._run(self._submit_answer(added, order), on_submit), len(added))
        return result if return_result else result.text

    def _stream(
        self,
        added: Sequence[Item],
        order: Order,
        pieces: deque[str],
        on_submit: OnSubmit | None,
        history: History,
    ) -> Generator[str, None, None]:
        """`order` was made for `history`."""
        self._check_free()
        if self._history is not history:
            raise BagelError("the session has changed since this stream was made: make it when it is to be read.")
        self._streaming = True
        try:
            handle = self._submit_answer(added, order)
            _tell(handle, on_submit)
            yield from self.bagel.engine.stream(handle, pieces)
            self._accept(handle.result(), len(added))
        finally:
            self._streaming = False

    def _accept(self, outcome: tuple[History, Result], added: int = 0) -> Result:
        """Takes over what a request led to, which first read `added` turns."""
        before = len(self.history)
        self._marks += [before, before + added] if added else [before]
        self._history, result = outcome
        return result


def _tell(handle: Handle[Any], on_submit: OnSubmit | None) -> None:
    """Hands a request to whoever wants it; if that fails, nobody waits for it."""
    if on_submit is not None:
        try:
            on_submit(handle)
        except BaseException:
            handle.cancel()
            raise


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
    if len(set(map(id, sessions))) < count or len({id(session.bagel) for session in sessions}) > 1:
        raise SettingError(f"these {count} sessions cannot draw together: they must be different ones of one model.")
    orders = []
    for i, (session, own_seed) in enumerate(zip(sessions, seed, strict=True)):
        with naming("session", i, count):
            orders.append(session._drawing_order({**settings, "seed": own_seed}))
    handles = [session._submit_drawing(order) for session, order in zip(sessions, orders, strict=True)]
    if handles:
        sessions[0].bagel.engine.run_until(handles)
    outcomes = []
    for i, handle in enumerate(handles):
        with naming("session", i, count):
            outcomes.append(handle.result())
    results = [session._accept(outcome) for session, outcome in zip(sessions, outcomes, strict=True)]
    return [result.image for result in results if result.image is not None]
