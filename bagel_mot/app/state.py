"""The state of one browser tab: what it generates now, its last seeds and its conversations. Freed when it closes."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import gradio as gr
from PIL import Image

from bagel_mot.errors import PromptError
from bagel_mot.inference.engine.ticket import Ticket
from bagel_mot.inference.history import Turn
from bagel_mot.inference.request import GIVEN, Listener, Request
from bagel_mot.inference.result import Result
from bagel_mot.inference.session import Session
from bagel_mot.model.cache import Chunk
from bagel_mot.serving.limits import without_special_tokens
from bagel_mot.serving.service import Service

MAX_CONVERSATIONS = 12
"""Maximum number of conversations in one tab."""
_MAX_TABS = 1000
_TITLE = 28  # characters
_POLL = 0.08  # seconds between two updates: a page need not follow faster
_MAX_SILENCE = 1.0  # seconds without any news after which the page is updated all the same


@dataclass
class ResultProgress:
    """ResultProgress of one result.

    Attributes:
        done, total: denoising steps; 0 and 0 before the first.
        preview: the latest preview of the image.
    """

    done: int = 0
    total: int = 0
    preview: Image.Image | None = None


class Generation:
    """Results that one click asked for: requests whose progress is followed, and that can be stopped.

    Attributes:
        count: number of results wanted.
        text: text written so far by the first of them.
        stopped: whether somebody wished them to end.
        size: size of the images to come, where it is known.
        progress: one for each result.
    """

    def __init__(self, count: int = 1) -> None:
        self.count, self.text, self.stopped = count, "", False
        self.size: tuple[int, int] | None = None
        self.progress = [ResultProgress() for _ in range(count)]
        self._requests: list[Ticket[Any]] = []
        self._futures: list[Future[Any]] = []
        self._news = threading.Event()
        self._first: tuple[float, int] | None = None  # when which number of steps was done

    # ---------------------------------------------------------------------------------------------- setting to work

    def start(self, service: Service, inputs: Sequence[Any], output: str, settings: dict[str, Any]) -> None:
        """Submits `count` requests to a service.

        Raises:
            BagelError: they are refused; nothing runs.
        """
        started = service.start(inputs, output=output, n=self.count, listen=self.listen, **settings)
        self._futures = list(started.tickets)
        self.size = started.request.size
        for ticket in started.tickets:
            self.take(ticket)
        self._announce()

    def start_thread(self, work: Callable[[], Result]) -> None:
        """Runs in a thread what waits for the engine itself; it must `take` each request that it waits for."""
        future: Future[Result] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        self._futures = [future]
        self._announce()
        threading.Thread(target=run, name="bagel-page", daemon=True).start()

    def take(self, request: Ticket[Any]) -> None:
        """Adds a request that `stop` cancels."""
        self._requests.append(request)
        if self.stopped:
            request.cancel()

    def listen(self, index: int, request: Request | None = None) -> Listener:
        """Callbacks of result number `index`. They return at once: whoever drives the engine waits for them."""
        progress = self.progress[index]

        def on_step(done: int, total: int) -> None:
            progress.done, progress.total = done, total
            if self._first is None:
                self._first = time.monotonic(), self.done
            self._news.set()

        def on_preview(image: Image.Image) -> None:
            progress.preview = image
            self._news.set()

        def on_text(piece: str) -> None:
            if index == 0:
                self.text += piece
                self._news.set()

        return Listener(on_step, on_preview, on_text)

    def _announce(self) -> None:
        for future in self._futures:
            future.add_done_callback(lambda _: self._news.set())

    # ------------------------------------------------------------------------------------------------ while at work

    def stop(self) -> None:
        """Ends all requests within a step. Never waits."""
        self.stopped = True
        for request in list(self._requests):
            request.cancel()

    def follow(self) -> Iterator[None]:
        """Yields whenever there is news, until all is over. If abandoned, the requests are stopped."""
        try:
            while not all(future.done() for future in self._futures):
                self._news.wait(_MAX_SILENCE)
                self._news.clear()
                yield
                time.sleep(_POLL)
        finally:
            if not all(future.done() for future in self._futures):
                self.stop()

    @property
    def begun(self) -> bool:
        """Whether the engine has begun with any of the requests."""
        return any(request.begun for request in list(self._requests))

    @property
    def done(self) -> int:
        """Denoising steps done, summed over all results."""
        return sum(progress.done for progress in self.progress)

    @property
    def total(self) -> int:
        """Denoising steps of all results; 0 before the first."""
        return max(progress.total for progress in self.progress) * self.count

    @property
    def steps(self) -> tuple[int, int]:
        """Denoising steps per image: done, rounded up, and in all."""
        total = self.total // self.count
        return min(-(-self.done // self.count), total), total

    @property
    def seconds_left(self) -> float | None:
        """Seconds until all images are drawn, at the pace so far; None before there is one."""
        if self._first is None or self.done <= self._first[1]:
            return None
        began, first = self._first
        return (time.monotonic() - began) / (self.done - first) * (self.total - self.done)

    # -------------------------------------------------------------------------------------------------- when it is over

    def results(self) -> list[Result]:
        """The results; after a stop those that had been finished by then.

        Raises: what a request raised.
        """
        finished = []
        for future in self._futures:
            try:
                finished.append(future.result(timeout=0))
            except CancelledError:
                self.stopped = True  # by the page's own Stop, or by a service that is closing
        return finished


@dataclass
class TabChat:
    """A conversation of the page: the session as it was after each of its turns, so that any turn can be undone.

    Attributes:
        number: the conversation's number, from 1.
        origin: the number of the one it was branched off from; 0 for none.
        sessions: one for each turn, oldest first. They share one cache.
    """

    number: int
    origin: int = 0
    sessions: list[Session] = field(default_factory=list)

    @property
    def session(self) -> Session | None:
        """The session after the latest turn; None before the first."""
        return self.sessions[-1] if self.sessions else None

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All turns of the session, oldest first."""
        return self.session.history if self.session is not None else ()

    @property
    def chunks(self) -> set[Chunk]:
        """The memory of the cache that the conversation keeps, some of it shared with its branches."""
        return set().union(*(session.chunks for session in list(self.sessions)))

    @property
    def title(self) -> str:
        """The conversation's number, and the beginning of its first text."""
        number = f"{self.number} ← {self.origin}" if self.origin else f"{self.number}"
        line = next((" ".join(str(turn.content).split()) for turn in self.turns if turn.kind == "text"), "")
        return f"{number} · {line[:_TITLE]}{'…' if len(line) > _TITLE else ''}" if line else number

    def undo(self) -> None:
        """Goes back to before the latest turn.

        Raises:
            PromptError: there is none.
        """
        if not self.sessions:
            raise PromptError("there is nothing to undo: the conversation is empty.")
        self.sessions.pop()

    def turn(
        self,
        service: Service,
        generation: Generation,
        inputs: Sequence[Image.Image | str],
        output: str,
        settings: dict[str, Any],
    ) -> Result:
        """Adds images and a text to the conversation, and waits for the answer or the image that follows.

        It works on a fork, which becomes the session at the end: what is refused, fails or is stopped leaves the
        conversation as it was. The service's limits apply as to a request with these inputs alone.

        Args:
            service: the queue in which the turn takes a place.
            generation: follows the progress; stopping it ends the turn.
            inputs: images from `Service.reduced`, then a text if there is one; nothing to draw once more.
            output: "text" or "image".
            settings: settings of the turn, `think` among them: it opens a new conversation with the prompt for
                thinking, or thinks in one that has it.

        Raises:
            BagelError: it is refused.
            CancelledError: it was stopped.
        """
        think = settings["think"]
        if think and self.session is not None and not self.session.think:
            raise PromptError("this conversation began without thinking: begin a new one to switch it on.")
        checked = inputs or [turn.content for turn in self.turns if turn.kind in GIVEN][-1:]
        if not checked or (output == "text" and not inputs):
            raise PromptError("there is nothing to answer: write something, or show a picture.")
        request = service.check(checked, output, settings)
        generation.size = request.size
        listener = generation.listen(0)
        own = {**settings, "on_text": listener.on_text, "on_submit": generation.take, "return_result": True}
        if request.max_text_tokens:
            own["max_new_tokens" if output == "text" else "max_think_tokens"] = request.max_text_tokens
        texts = [without_special_tokens(one) for one in inputs if isinstance(one, str)]
        with service.place():
            session = service.bagel.session(think=think) if self.session is None else self.session.fork()
            for image in inputs[: len(inputs) - len(texts)]:
                session.add(image, on_submit=generation.take)
            if output == "image":
                own |= {"progress": listener.on_step, "on_preview": listener.on_preview}
                result: Any = session.generate_image(*texts, **own)
            else:
                result = session.generate_text(*texts, **own)
        if generation.stopped:  # when there was nothing left to cancel; the conversation may have been changed since
            raise CancelledError
        self.sessions.append(session)
        return result


class TabState:
    """The state of one browser tab.

    Attributes:
        chat: the conversation that is shown.
        chats: all conversations of the tab.
        seeds: the last seed of each part of the page.
        files: the file that shows the image of a turn.
    """

    def __init__(self) -> None:
        self.seeds: dict[str, int] = {}
        self.files: WeakKeyDictionary[Turn, str] = WeakKeyDictionary()
        self._generations: dict[str, Generation] = {}
        self.chat = TabChat(1)
        self.chats = [self.chat]
        self._count = 1

    # --------------------------------------------------------------------------------------------------- conversations

    @property
    def chunks(self) -> set[Chunk]:
        """The memory of the cache that the conversations keep."""
        return set().union(*(chat.chunks for chat in list(self.chats)))

    def begin_chat(self) -> None:
        """Makes a new conversation the current one; while that is still empty, it is the new one."""
        if self.chat.sessions:
            self._add(TabChat(self._count + 1))

    def branch_chat(self) -> None:
        """Makes a branch of the current conversation the current one; nothing is computed or copied.

        Raises:
            PromptError: it is empty.
        """
        if not self.chat.sessions:
            raise PromptError("there is nothing to branch off from: the conversation is empty.")
        self._add(TabChat(self._count + 1, self.chat.number, list(self.chat.sessions)))

    def _add(self, chat: TabChat) -> None:
        if len(self.chats) >= MAX_CONVERSATIONS:
            raise PromptError(f"there are {MAX_CONVERSATIONS} conversations, as many as one page may have: close one.")
        self._count += 1
        self.chats.append(chat)
        self.chat = chat

    def show_chat(self, number: int) -> None:
        """Makes a conversation the current one; one that is gone changes nothing."""
        self.chat = next((chat for chat in self.chats if chat.number == number), self.chat)

    def close_chat(self) -> None:
        """Drops the current conversation; the one before it is shown, or a new one."""
        place = self.chats.index(self.chat)
        self.chats.remove(self.chat)
        if not self.chats:
            self._add(TabChat(self._count + 1))
        self.chat = self.chats[max(place - 1, 0)]

    # ----------------------------------------------------------------------------------------------------- generations

    @contextmanager
    def generating(self, part: str, count: int = 1) -> Iterator[Generation]:
        """A generation of one part of the page, which `stop` ends."""
        generation = Generation(count)
        self._generations[part] = generation
        try:
            yield generation
        finally:
            if self._generations.get(part) is generation:
                del self._generations[part]

    def busy(self, part: str) -> bool:
        """Whether this part of the page is generating."""
        return part in self._generations

    def stop(self, part: str) -> None:
        """Ends what this part of the page is generating, if anything."""
        generation = self._generations.get(part)  # read once: another thread may end it meanwhile
        if generation is not None:
            generation.stop()

    def close(self) -> None:
        """Ends everything, and drops the conversations."""
        for generation in list(self._generations.values()):
            generation.stop()
        self.chat = TabChat(1)
        self.chats = [self.chat]


class TabStates:
    """The states of all open tabs. Safe to use from several threads."""

    def __init__(self) -> None:
        self._tabs: OrderedDict[str, TabState] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, request: gr.Request) -> TabState:
        """The state of the tab that a request comes from. Of too many, the one unused for longest is closed."""
        key = request.session_hash
        if key is None:
            return TabState()
        with self._lock:
            tab = self._tabs.setdefault(key, TabState())
            self._tabs.move_to_end(key)
            oldest = self._tabs.popitem(last=False)[1] if len(self._tabs) > _MAX_TABS else None
        if oldest is not None:
            oldest.close()
        return tab

    def close(self, request: gr.Request) -> None:
        """Closes the state of a tab that is gone."""
        with self._lock:
            tab = self._tabs.pop(request.session_hash or "", None)
        if tab is not None:
            tab.close()

    @property
    def tokens(self) -> int:
        """Cache tokens for which all conversations hold memory."""
        with self._lock:
            chunks: set[Chunk] = set().union(*(tab.chunks for tab in self._tabs.values()))
        return sum(chunk.capacity for chunk in chunks)

    def __len__(self) -> int:
        return len(self._tabs)
