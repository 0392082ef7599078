"""Conversations of the page, and how a browser keeps them over reloads."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from bagel_mot.app.generation import Generation
from bagel_mot.app.image_files import keep, open_kept
from bagel_mot.errors import BagelError, PromptError
from bagel_mot.inference.history import Turn
from bagel_mot.inference.request import GIVEN
from bagel_mot.inference.result import Result
from bagel_mot.inference.session import Session
from bagel_mot.inference.session_store import SavedSession
from bagel_mot.model.cache import Chunk
from bagel_mot.serving.limits import clean_text
from bagel_mot.serving.service import Service

MAX_CONVERSATIONS = 12
"""Maximum number of conversations in one tab."""
_TITLE = 28  # characters
_KINDS = ("system", "text", "image", "thought", "answer", "drawing")

StoredChat = dict[str, Any]
"""A conversation as JSON: "number", "origin", "think", "turns" (kind, and text or file) and "ends", the number of turns
after each of its steps."""


@dataclass(frozen=True)
class ClosedSession:
    """A session of an earlier visit: its turns, without a cache. It is opened when the conversation goes on.

    Attributes:
        think: whether it began with the prompt for thinking.
        history: the turns, oldest first.
    """

    think: bool
    history: tuple[Turn, ...]

    @property
    def saved(self) -> SavedSession:
        """The content that a session is restored from."""
        return SavedSession(self.think, False, [], [(turn.kind, turn.content) for turn in self.history])


@dataclass
class TabChat:
    """A conversation of the page: the session as it was after each of its turns, so that any turn can be undone.

    Attributes:
        number: the conversation's number, from 1.
        origin: the number of the one it was branched off from; 0 for none.
        sessions: one for each turn, oldest first; those that are open share one cache.
    """

    number: int
    origin: int = 0
    sessions: list[Session | ClosedSession] = field(default_factory=list)

    @property
    def session(self) -> Session | ClosedSession | None:
        """The session after the latest turn; None before the first."""
        return self.sessions[-1] if self.sessions else None

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All turns of the session, oldest first."""
        return self.session.history if self.session is not None else ()

    @property
    def chunks(self) -> set[Chunk]:
        """The memory of the cache that the conversation keeps, some of it shared with its branches."""
        return set().union(*(one.chunks for one in list(self.sessions) if not isinstance(one, ClosedSession)))

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
        texts = [clean_text(one) for one in inputs if isinstance(one, str)]
        with service.place():
            before = self.session
            if isinstance(before, ClosedSession):
                session = Session.restore(service.bagel, before.saved, on_submit=generation.take)
            else:
                session = service.bagel.session(think=think) if before is None else before.fork()
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


def store(chats: Sequence[TabChat], files: MutableMapping[Turn, str]) -> list[StoredChat]:
    """Conversations for the browser's storage. Images stay files of the server, which `files` names."""
    found = []
    for chat in chats:
        if chat.session is not None:
            turns = [(turn.kind, _content(turn, files)) for turn in chat.turns]
            ends = [len(one.history) for one in chat.sessions]
            own = {"number": chat.number, "origin": chat.origin, "think": chat.session.think}
            found.append({**own, "turns": turns, "ends": ends})
    return found


def unstore(stored: Any, files: MutableMapping[Turn, str], max_pixels: int) -> list[TabChat]:
    """The conversations that a browser kept, up to the first image that the server does not have any more. What another
    version stored, or somebody has changed, is left out.
    """
    found = []
    for one in stored[:MAX_CONVERSATIONS] if isinstance(stored, list) else ():
        try:
            chat = TabChat(int(one["number"]), int(one["origin"]))
            turns = _turns(one["turns"], files, max_pixels)
            ends = [int(end) for end in one["ends"]]
            think = bool(one["think"])
        except (KeyError, TypeError, ValueError):
            continue
        chat.sessions += [ClosedSession(think, tuple(turns[:end])) for end in ends if 0 < end <= len(turns)]
        if chat.sessions:
            found.append(chat)
    return found


def _turns(stored: Any, files: MutableMapping[Turn, str], max_pixels: int) -> list[Turn]:
    turns = []
    for kind, content in stored:
        if kind not in _KINDS or not isinstance(content, str):
            raise ValueError(kind)
        if kind in ("image", "drawing"):
            try:
                image = open_kept(content, max_pixels)
            except BagelError:
                break
            turns.append(Turn(kind, image, ()))
            files[turns[-1]] = content
        else:
            turns.append(Turn(kind, content, ()))
    return turns


def _content(turn: Turn, files: MutableMapping[Turn, str]) -> str:
    return file_of(turn, files) if isinstance(turn.content, Image.Image) else turn.content


def file_of(turn: Turn, files: MutableMapping[Turn, str]) -> str:
    """The file of a turn's image, which is written the first time."""
    assert isinstance(turn.content, Image.Image), "the turn is an image"
    if turn not in files or not Path(files[turn]).exists():
        seed = turn.content.info.get("seed")
        files[turn] = keep(turn.content, f"bagel-{seed}" if turn.kind == "drawing" and seed else "picture")
    return files[turn]
