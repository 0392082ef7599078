"""Conversations in the form of chat APIs: messages of texts and images, in which the assistant may draw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bagel_mot.data.documents import AnyImage, Document, FramesPart, ImagePart, TextPart
from bagel_mot.data.draws import Draws
from bagel_mot.data.readers.base import Row
from bagel_mot.data.remote import AnyPath
from bagel_mot.data.rows import SkipRow
from bagel_mot.data.tasks.fields import field_of, image_of, text_of


class _Piece(NamedTuple):
    """A text or an image of a message, and whether it is the assistant's."""

    text: str
    image: AnyImage | None
    answers: bool


@dataclass(frozen=True)
class Messages:
    """Maps messages of a system, a user and an assistant; what the assistant says is learnt, and what it shows drawn.

    Where it draws, a given image comes in both forms, and given texts and images may be dropped if it says nothing:
    that is text to image, or an edit. Else a given image is for understanding alone.

    Attributes:
        messages: the name of the field: a list of {role, content}, where content is a text or a list of items of the
            type "text", "image" or "image_url".
        images: the name of a field with images, which items without one of their own take in order.
        starts_image: whether the model is to learn that an image starts after the assistant's words before it.
        folder: the folder that paths of images are relative to.
    """

    messages: str = "messages"
    images: str = "images"
    starts_image: bool = False
    folder: AnyPath | None = None

    def __call__(self, row: Row, draws: Draws) -> Document:
        pieces = list(self._pieces(row))
        draws_images = any(piece.answers and piece.image is not None for piece in pieces)
        says = any(piece.answers and piece.text for piece in pieces)
        if not draws_images and not says:
            raise SkipRow("the assistant gives no answer")
        droppable = draws_images and not says
        document: list[TextPart | ImagePart | FramesPart] = []
        for number, piece in enumerate(pieces):
            followed = number + 1 < len(pieces)
            if piece.image is None:
                drawn_next = followed and pieces[number + 1].answers and pieces[number + 1].image is not None
                starts = self.starts_image and piece.answers and drawn_next
                document.append(TextPart(piece.text, piece.answers, droppable and not piece.answers, starts))
            elif piece.answers:
                kept = droppable and followed
                document.append(ImagePart(piece.image, target=True, vae=followed, vit=followed, droppable=kept))
            else:
                document.append(ImagePart(piece.image, vae=draws_images, vit=True, droppable=droppable))
        return document

    def _pieces(self, row: Row) -> Iterator[_Piece]:
        messages = field_of(row, self.messages)
        if not isinstance(messages, Sequence) or isinstance(messages, str):
            raise SkipRow(f"{self.messages} is no list", f"{self.messages} is {messages!r:.80}; a list is expected")
        beside = iter(row.get(self.images) or ())
        for message in messages:
            if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
                raise SkipRow("a message is malformed", f"a message is {message!r:.80}; it needs role and content")
            role, content = message["role"], message["content"]
            if role not in ("system", "user", "assistant"):
                raise SkipRow(
                    "a message has another role", f"a message is by {role!r}; there are system, user and assistant"
                )
            for item in [{"type": "text", "text": content}] if isinstance(content, str) else content or ():
                piece = self._piece(item, role == "assistant", beside)
                if piece.text or piece.image is not None:
                    yield piece

    def _piece(self, item: Any, answers: bool, beside: Iterator[Any]) -> _Piece:
        kind = item.get("type") if isinstance(item, Mapping) else None
        if kind == "text":
            return _Piece(text_of(item.get("text"), "the text of a message"), None, answers)
        if kind not in ("image", "image_url"):
            raise SkipRow(
                "an item of a message is of another type",
                f"an item of a message is {item!r:.80}; there are the types text, image and image_url",
            )
        value = item.get(kind)
        if isinstance(value, Mapping) and "url" in value:
            value = value["url"]
        if value is None and (value := next(beside, None)) is None:
            raise SkipRow(
                "an image of a message is missing", f"an item {item!r:.80} has no image, nor has {self.images}"
            )
        return _Piece("", image_of(value, self.folder), answers)
