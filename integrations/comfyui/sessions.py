"""Nodes of a conversation. Each works on a fork: the session that comes in can be continued in other ways, too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from .bridge import Watch, to_arrays, to_images
from .nodes import MODEL, Values, answer_settings, drawing_settings, text_widget
from .settings import seed_widget

if TYPE_CHECKING:
    from bagel_mot import Bagel, Session

SESSION = "BAGEL_SESSION"


class BagelSessionNew:
    """Begins a conversation."""

    DESCRIPTION = "Begins a conversation of texts and pictures; what it has read is kept from turn to turn."
    CATEGORY = "BAGEL/session"
    FUNCTION = "begin"
    RETURN_TYPES = (SESSION,)
    RETURN_NAMES = ("session",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        think = "Think in words before each picture and answer."
        understanding = "Pictures are only asked about, never drawn; they then cost half the tokens."
        return {
            "required": {
                "model": (MODEL, {}),
                "think": ("BOOLEAN", {"default": False, "tooltip": think}),
                "understanding": ("BOOLEAN", {"default": False, "tooltip": understanding}),
            }
        }

    def begin(self, model: Bagel, think: bool, understanding: bool) -> tuple[Session]:
        return (model.session(think=think, understanding=understanding),)


class BagelSessionAddText:
    """Adds a text."""

    DESCRIPTION = "Adds a text to a session."
    CATEGORY = "BAGEL/session"
    FUNCTION = "add"
    RETURN_TYPES = (SESSION,)
    RETURN_NAMES = ("session",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"session": (SESSION, {}), "text": text_widget("What to say.")}}

    def add(self, session: Session, text: str) -> tuple[Session]:
        session = session.fork()
        session.add(text)
        return (session,)


class BagelSessionAddImage:
    """Adds images."""

    DESCRIPTION = "Adds the pictures of a batch to a session, one after the other."
    CATEGORY = "BAGEL/session"
    FUNCTION = "add"
    RETURN_TYPES = (SESSION,)
    RETURN_NAMES = ("session",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"session": (SESSION, {}), "images": ("IMAGE", {})}}

    def add(self, session: Session, images: Tensor) -> tuple[Session]:
        session = session.fork()
        for image in to_arrays(images):
            session.add(image)
        return (session,)


class BagelSessionDraw:
    """Draws an image that follows from the conversation."""

    DESCRIPTION = "Draws a picture that follows from a session, and becomes part of it."
    CATEGORY = "BAGEL/session"
    FUNCTION = "draw"
    RETURN_TYPES = (SESSION, "IMAGE", "STRING")
    RETURN_NAMES = ("session", "images", "thinking")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"session": (SESSION, {}), "seed": seed_widget()}, "optional": drawing_settings()}

    def draw(self, session: Session, seed: int, settings: Values | None = None) -> tuple[Session, Tensor, str]:
        session, watch = session.fork(), Watch()
        result = session.generate_image(
            seed=seed, progress=watch.step, on_text=watch.text, return_result=True, **(settings or {})
        )
        return session, to_images([result.image]), result.thinking


class BagelSessionAnswer:
    """Writes an answer that follows from the conversation."""

    DESCRIPTION = "Writes an answer that follows from a session, and becomes part of it."
    CATEGORY = "BAGEL/session"
    FUNCTION = "answer"
    RETURN_TYPES = (SESSION, "STRING", "STRING")
    RETURN_NAMES = ("session", "answer", "thinking")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"session": (SESSION, {}), "seed": seed_widget()}, "optional": answer_settings()}

    def answer(self, session: Session, seed: int, settings: Values | None = None) -> tuple[Session, str, str]:
        session = session.fork()
        result: Any = session.generate_text(seed=seed, on_text=Watch().text, return_result=True, **(settings or {}))
        return session, result.text, result.thinking
