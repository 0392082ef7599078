"""An interleaved conversation: texts and pictures, given and generated, over one cache that is kept between turns."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args, overload

from PIL import Image

from bagel.errors import DataError, PromptError, SettingError
from bagel.images import ImageSource, open_image
from bagel.inference.engine import Request
from bagel.inference.history import History, Kind, Turn
from bagel.inference.requests import Item, read
from bagel.inference.result import Result
from bagel.inference.settings import Task
from bagel.inference.tasks import Media, Order, make_picture, make_text, system_prompt

if TYPE_CHECKING:
    from bagel.inference.api import Bagel

_FILE = "session.json"
_VERSION = 1


class Session:
    """A conversation with a `Bagel`. Adding a turn computes only that turn.

        chat = bagel.session()
        chat.add(picture)
        chat.add("Draw the same car in blue.")
        picture = chat.generate_image()
        chat.add("What changed?")
        print(chat.generate_text())

    A picture, given or drawn, enters as clean VAE image, then ViT image; in a session for understanding as ViT image
    alone. What is generated becomes part of the conversation. A session is to be used by one thread at a time.
    """

    def __init__(self, bagel: Bagel, *, think: bool = False, understanding: bool = False) -> None:
        """
        Args:
            bagel: the model.
            think: the system prompt for thinking stands first (that for drawing, in a session for understanding that
                for answering), and pictures and answers are thought about by default.
            understanding: no pictures will be drawn.
        """
        self.bagel, self.think, self.understanding = bagel, think, understanding
        self._history = History(bagel.engine.new_context())
        self._marks: list[int] = []  # number of turns before each add and generate
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

    def add(self, item: str | ImageSource) -> None:
        """Adds a text (`str`) or a picture (a `Path`, bytes, a PIL image or an array) to the conversation.

        Raises:
            PromptError, ImageError, SizeError, ContextLengthError: it cannot be used; the session stays as it was.
        """
        items = self.bagel.check_items([item], self._output)
        before = len(self.history)
        self._read(items)
        self._marks.append(before)

    def generate_image(
        self,
        *,
        progress: Callable[[int, int], None] | None = None,
        on_text: Callable[[str], None] | None = None,
        return_result: bool = False,
        **settings: Any,
    ) -> Any:
        """Draws a picture that follows, which becomes part of the conversation.

        Text guidance is towards the latest text; right after a picture there is none to be guided to, so add a text, or
        `undo`, before drawing again.

        Args:
            progress: called with the denoising steps done and in all.
            on_text: called with the pieces of the thinking.
            return_result: give a `Result` instead of the picture.
            **settings: by name; defaults are those of "edit" once there is a picture. The size is that of the last one.

        Returns: a PIL image.

        Raises:
            PromptError, SizeError, SettingError, ContextLengthError: before anything runs.
        """
        if self.understanding:
            raise SettingError("this session is for understanding: open one with understanding=False to draw.")
        task: Task = "edit" if self._history.has_picture else "generate"
        order = self._order(task, settings, on_step=progress, on_text=on_text)
        result = self._run(self._drawing(order))
        return result if return_result else result.image

    @overload
    def generate_text(self, *, stream: Literal[True], **settings: Any) -> Iterator[str]: ...
    @overload
    def generate_text(self, *, stream: Literal[False] = False, return_result: bool = False, **settings: Any) -> Any: ...

    def generate_text(
        self,
        *,
        stream: bool = False,
        on_text: Callable[[str], None] | None = None,
        return_result: bool = False,
        **settings: Any,
    ) -> Any:
        """Writes an answer, which becomes part of the conversation.

        Args:
            stream: give an iterator over the pieces as they are written, thinking included. The answer becomes part of
                the conversation once the iterator has ended.
            on_text: called with each piece.
            return_result: give a `Result` instead of the answer.
            **settings: those of "ask", by name.

        Returns: the answer without its thinking.

        Raises:
            PromptError, SettingError, ContextLengthError: before anything runs.
        """
        pieces: deque[str] = deque()
        order = self._order("ask", settings, on_text=pieces.append if stream else on_text)
        if stream:
            return self._stream(order, pieces)
        result = self._run(self._answer(order))
        return result if return_result else result.text

    def ask(self, question: str, **settings: Any) -> Any:
        """`add(question)`, then `generate_text(**settings)`; if that fails, the question is taken back."""
        self.add(question)
        try:
            return self.generate_text(**settings)
        except BaseException:
            self.undo()
            raise

    def fork(self) -> Session:
        """A second session that goes on from here. It shares the cache: nothing is computed or copied."""
        other = Session.__new__(Session)
        other.bagel, other.think, other.understanding = self.bagel, self.think, self.understanding
        other._history, other._marks = self._history.copy(), list(self._marks)
        return other

    def undo(self) -> None:
        """Goes back to before the last `add`, `generate_image` or `generate_text`.

        Raises:
            PromptError: there is nothing to undo.
        """
        if not self._marks:
            raise PromptError("there is nothing to undo: the session is empty.")
        self._history = self._history.copy(self._marks.pop())

    # -------------------------------------------------------------------------------------------------- on disk

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes texts and pictures into a folder, which is replaced if it holds a saved session.

        Raises:
            DataError: the folder exists and holds something else.
        """
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()) and not (folder / _FILE).exists():
            raise DataError(f"{folder} is no saved session and not empty: name another folder.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            turns = []
            for number, turn in enumerate(self.history):
                if isinstance(turn.content, str):
                    turns.append({"kind": turn.kind, "text": turn.content})
                else:
                    name = f"{number:03d}.png"
                    turn.content.save(temporary / name)
                    turns.append({"kind": turn.kind, "image": name})
            document = {
                "version": _VERSION,
                "think": self.think,
                "understanding": self.understanding,
                "marks": self._marks,
                "turns": turns,
            }
            (temporary / _FILE).write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")
            temporary.chmod(0o755)  # mkdtemp makes folders private
            if folder.exists():
                shutil.rmtree(folder)
            temporary.rename(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    @classmethod
    def load(cls, bagel: Bagel, folder: str | os.PathLike[str]) -> Session:
        """Reads what `save` wrote, and computes its cache anew in one go.

        Raises:
            DataError: it is no saved session.
        """
        path = Path(folder) / _FILE
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["version"] != _VERSION:
                raise DataError(f"{path} is of version {document['version']!r}; this program reads version {_VERSION}.")
            think, understanding = bool(document["think"]), bool(document["understanding"])
            items = [_item(Path(folder), turn) for turn in document["turns"]]
            marks = [int(mark) for mark in document["marks"]]
        except DataError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is no saved session ({type(error).__name__}: {error}).") from error
        if any(not 0 <= mark <= len(items) for mark in marks) or marks != sorted(marks):
            raise DataError(f"{path} is damaged: its marks {marks} do not fit {len(items)} turns.")
        session = cls(bagel, understanding=understanding)
        session.think, session._marks = think, marks
        if items:
            session._read(items)
        return session

    # ----------------------------------------------------------------------------------------------- how it runs

    @property
    def _output(self) -> Media:
        """What pictures are read for."""
        return "text" if self.understanding else "image"

    def _order(self, task: Task, settings: dict[str, Any], **callbacks: Any) -> Order:
        if not any(turn.kind != "system" for turn in self.history):
            raise PromptError("the session is empty: add a text or a picture first.")
        items = [(turn.kind, turn.content) for turn in self.history]
        order = self.bagel.order(task, {"think": self.think, **settings}, items, **callbacks)
        if order.settings.think and not self.think:
            raise SettingError("think is true, but the session began without it: open one with think=True.")
        self.bagel.runtime.check_room(self._history.context.position, 0)
        return order

    def _drawing(self, order: Order) -> Request[tuple[History, Result]]:
        """Works on a copy, so that a failure leaves the session as it was."""
        history = self._history.copy()
        result = yield from make_picture(self.bagel.runtime, history, order)
        assert result.image is not None
        yield from self._reading(history, [("drawing", result.image)])
        return history, result

    def _answer(self, order: Order) -> Request[tuple[History, Result]]:
        history = self._history.copy()
        result = yield from make_text(self.bagel.runtime, history, order)
        yield from self._reading(history, [("answer", result.raw_text)])
        return history, result

    def _reading(self, history: History, items: Sequence[Item]) -> Request[None]:
        runtime, latents = self.bagel.runtime, self._output == "image"
        runtime.check_room(history.context.position, runtime.positions(items, latents))
        yield from read(runtime, history, items, latents=latents)

    def _read(self, items: Sequence[Item]) -> None:
        history = self._history.copy()
        handle = self.bagel.engine.submit(self._reading(history, items))
        self.bagel.engine.run_until([handle])
        handle.result()
        self._history = history

    def _run(self, request: Request[tuple[History, Result]]) -> Result:
        handle = self.bagel.engine.submit(request)
        self.bagel.engine.run_until([handle])
        return self._accept(handle.result())

    def _stream(self, order: Order, pieces: deque[str]) -> Generator[str, None, None]:
        handle = self.bagel.engine.submit(self._answer(order))
        yield from self.bagel.engine.stream(handle, pieces)
        self._accept(handle.result())

    def _accept(self, outcome: tuple[History, Result]) -> Result:
        self._marks.append(len(self.history))
        self._history = outcome[0]
        return outcome[1]


def draw_together(sessions: Sequence[Session], *, seed: Sequence[int | None], **settings: Any) -> list[Image.Image]:
    """`generate_image` in several sessions of one model at once, as one batch; each draws what it would draw alone.

    Args:
        sessions: no session twice.
        seed: one for each.
        **settings: the same for all.

    Raises:
        PromptError, SizeError, SettingError, ContextLengthError: before anything runs.
    """
    orders = []
    for session, own_seed in zip(sessions, seed, strict=True):
        if session.understanding:
            raise SettingError("a session is for understanding: open it with understanding=False to draw.")
        task: Task = "edit" if session._history.has_picture else "generate"
        orders.append(session._order(task, {**settings, "seed": own_seed}))
    handles = [
        session.bagel.engine.submit(session._drawing(order)) for session, order in zip(sessions, orders, strict=True)
    ]
    if handles:
        sessions[0].bagel.engine.run_until(handles)
    results = [session._accept(handle.result()) for session, handle in zip(sessions, handles, strict=True)]
    return [result.image for result in results if result.image is not None]


def _item(folder: Path, turn: dict[str, str]) -> Item:
    kind = turn["kind"]
    if kind not in get_args(Kind):
        raise DataError(f"{folder / _FILE} has a turn of kind {kind!r}; there are {', '.join(get_args(Kind))}.")
    content: str | Image.Image = turn["text"] if "text" in turn else open_image(folder / Path(turn["image"]).name)
    return cast(Kind, kind), content
