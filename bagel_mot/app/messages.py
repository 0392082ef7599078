"""A conversation as the messages of a chat window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from PIL import Image

from bagel_mot.app.conversation import Conversation
from bagel_mot.app.image_files import keep
from bagel_mot.app.texts.language import Language, text
from bagel_mot.app.view import split_stream, without_tags
from bagel_mot.inference.decode import split_thinking
from bagel_mot.inference.history import Turn

Message = dict[str, Any]


class Messages:
    """Makes them, and each image's file once."""

    def __init__(self) -> None:
        self._files: WeakKeyDictionary[Turn, str] = WeakKeyDictionary()

    def of(self, conversation: Conversation, language: Language) -> list[Message]:
        """All that was said and shown."""
        think = conversation.session is not None and conversation.session.think
        return [message for turn in conversation.turns for message in self._of_turn(turn, think, language)]

    def _of_turn(self, turn: Turn, think: bool, language: Language) -> list[Message]:
        content = turn.content
        if isinstance(content, Image.Image):
            return [_image("user" if turn.kind == "image" else "assistant", self._file(turn, content))]
        if turn.kind == "text":
            return [_words("user", content)]
        if turn.kind == "thought":
            return _thought(without_tags(content), language, "done")
        if turn.kind == "answer":
            thinking, answer = split_thinking(content) if think else ("", content)
            return [
                *_thought(thinking, language, "done"),
                _words("assistant", answer.strip() or text(language, "no_answer")),
            ]
        return []  # the system prompt

    def _file(self, turn: Turn, image: Image.Image) -> str:
        if turn not in self._files:
            seed = image.info.get("seed")
            self._files[turn] = keep(image, f"bagel-{seed}" if turn.kind == "drawing" and seed else "picture")
        return self._files[turn]


def pending(said: str, images: Sequence[Image.Image]) -> list[Message]:
    """What is being said and shown just now."""
    shown = [_image("user", keep(image, "picture")) for image in images]
    return [*shown, *([_words("user", said)] if said else [])]


def so_far(written: str, think: bool, language: Language) -> list[Message]:
    """An answer that is still being written."""
    thinking, answer = split_stream(written, think)
    return [
        *_thought(thinking, language, "done" if answer else "pending"),
        *([_words("assistant", answer)] if answer else []),
    ]


def _words(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _image(role: str, path: str) -> Message:
    return {"role": role, "content": {"path": path}}


def _thought(content: str, language: Language, status: str) -> list[Message]:
    if not content:
        return []
    title = text(language, "thinking")
    return [{"role": "assistant", "content": content, "metadata": {"title": title, "status": status}}]
