"""Conversations of one browser tab: turns that are whole or not at all, branches, and going back."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from bagel_mot.app.run import Run
from bagel_mot.errors import PromptError
from bagel_mot.inference.history import Turn
from bagel_mot.inference.result import Result
from bagel_mot.inference.session import Session
from bagel_mot.inference.tasks import Media
from bagel_mot.model.cache import Chunk
from bagel_mot.serving.service import Callbacks, Service

MOST = 12
"""Conversations of one tab."""
_TITLE = 28  # characters


@dataclass
class Conversation:
    """One session, and how it was before each of its turns.

    Attributes:
        number: of the conversation, from 1.
        origin: the number of that which it was branched off from; 0 for none.
        session: None before the first turn.
        past: the sessions before each turn, oldest first. They share one cache.
    """

    number: int
    origin: int = 0
    session: Session | None = None
    past: list[Session | None] = field(default_factory=list)

    @property
    def turns(self) -> tuple[Turn, ...]:
        """What was said and shown, oldest first."""
        return () if self.session is None else self.session.history

    @property
    def chunks(self) -> set[Chunk]:
        """The memory of the cache that it keeps, some of it shared with its branches."""
        sessions = [session for session in (*self.past, self.session) if session is not None]
        return set().union(*(session.chunks for session in sessions))

    @property
    def title(self) -> str:
        """Its number, and how it begins."""
        number = f"{self.number} ← {self.origin}" if self.origin else f"{self.number}"
        first = next((turn.content for turn in self.turns if turn.kind == "text"), None)
        if not isinstance(first, str):
            return number
        line = " ".join(first.split())
        return f"{number} · {line[:_TITLE]}{'…' if len(line) > _TITLE else ''}"

    def undo(self) -> None:
        """Goes back to before the last turn.

        Raises:
            PromptError: there is none.
        """
        if not self.past:
            raise PromptError("there is nothing to undo: the conversation is empty.")
        self.session = self.past.pop()

    def branch(self, number: int) -> Conversation:
        """A second conversation that goes on from here; nothing is computed or copied."""
        session = None if self.session is None else self.session.fork()
        return Conversation(number, self.number, session, list(self.past))

    def turn(
        self,
        service: Service,
        run: Run,
        text: str,
        images: Sequence[Image.Image],
        output: Media,
        *,
        think: bool,
        settings: dict[str, Any],
    ) -> Result:
        """Says and shows something, and waits for the answer or the image.

        It is worked out on a fork, which takes the session's place at the end: what is refused, fails or is stopped
        leaves the conversation as it was.

        Args:
            run: is told of the progress; stopping it ends the turn.
            text: "" for none.
            think: opens a new conversation with the prompt for thinking, or thinks in one that has it.

        Raises:
            BagelError: it is refused.
            CancelledError: it was stopped.
        """
        said, most = self._checked(service, run, text, images, output, think, settings)
        told = run.listen(0)
        with service.place():
            session = service.bagel.session(think=think) if self.session is None else self.session.fork()
            question = said.pop() if text and output == "text" else None
            for item in said:
                session.add(item, on_submit=run.take)
            follow: dict[str, Any] = {"on_text": told.on_text, "on_submit": run.take, "return_result": True}
            follow |= {**settings, **most, "think": think}
            if output == "image":
                result = session.generate_image(progress=told.on_step, on_preview=told.on_preview, **follow)
            elif question is not None:
                result = session.ask(question, **follow)
            else:
                result = session.generate_text(**follow)
        if run.stopped:  # when there was nothing left to cancel; the conversation may have been changed since
            raise CancelledError
        self.past.append(self.session)
        self.session = session
        return result

    def _checked(
        self,
        service: Service,
        run: Run,
        text: str,
        images: Sequence[Image.Image],
        output: Media,
        think: bool,
        settings: dict[str, Any],
    ) -> tuple[list[Any], dict[str, Any]]:
        """Checks a turn as the service would one that stands alone; returns what is said and shown as the service
        takes it, and how much may be written.

        Raises:
            BagelError: it is refused.
        """
        if think and self.session is not None and not self.session.think:
            raise PromptError("this conversation began without thinking: begin a new one to switch it on.")
        said: list[Any] = [*images, *([text] if text else [])]
        inputs = said
        if not said:
            given = [turn.content for turn in self.turns if turn.kind in ("text", "image")]
            if not given or output == "text":
                raise PromptError("there is nothing to answer: write something, or show a picture.")
            inputs = given[-1:]
        items, order = service.check(inputs, output, {**settings, "think": think}, Callbacks())
        run.size = order.size
        most = {"max_new_tokens" if output == "text" else "max_think_tokens": order.most_text}
        return [content for _, content in items] if said else [], most if order.most_text else {}


@dataclass
class Chats:
    """All conversations of a tab.

    Attributes:
        current: the one that is shown.
    """

    conversations: list[Conversation] = field(default_factory=lambda: [Conversation(1)])
    current: Conversation = field(init=False)
    _count: int = 1

    def __post_init__(self) -> None:
        self.current = self.conversations[-1]

    @property
    def chunks(self) -> set[Chunk]:
        """The memory of the cache that they keep."""
        return set().union(*(conversation.chunks for conversation in list(self.conversations)))

    def begin(self) -> None:
        """A new conversation, which becomes the current one; while that is still empty, it is the new one."""
        if self.current.session is not None:
            self._add(Conversation(self._count + 1))

    def branch(self) -> None:
        """A branch of the current one, which becomes the current one.

        Raises:
            PromptError: it is empty.
        """
        if self.current.session is None:
            raise PromptError("there is nothing to branch off from: the conversation is empty.")
        self._add(self.current.branch(self._count + 1))

    def _add(self, conversation: Conversation) -> None:
        if len(self.conversations) >= MOST:
            raise PromptError(f"there are {MOST} conversations, as many as one page may have: close one.")
        self._count += 1
        self.conversations.append(conversation)
        self.current = conversation

    def show(self, number: int) -> None:
        """Makes a conversation the current one; one that is gone changes nothing."""
        self.current = next((c for c in self.conversations if c.number == number), self.current)

    def close(self) -> None:
        """Lets go of the current one; the one before it is shown, or a new one."""
        place = self.conversations.index(self.current)
        self.conversations.remove(self.current)
        if not self.conversations:
            self._add(Conversation(self._count + 1))
        self.current = self.conversations[max(place - 1, 0)]
