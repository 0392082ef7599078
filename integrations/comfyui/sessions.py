"""Nodes of a conversation. Each works on a fork: the session that comes in can be continued in other ways, too."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .bridge import Watch, to_arrays, to_images
from .models import ModelHandle, SessionHandle
from .nodes import HIDDEN, Values, answer_settings, check_text, drawing_settings, model_input, references, text_widget
from .settings import seed_widget

SESSION = "BAGEL_MOT_SESSION"


def session_input() -> tuple[str, dict[str, Any]]:
    """The input for a session."""
    return SESSION, {"tooltip": "A conversation; it stays as it is, and can be continued in other ways too."}


class BagelSessionNew:
    """Begins a conversation."""

    DESCRIPTION = "Begins a conversation of texts and pictures; what it has read is kept from turn to turn."
    CATEGORY = "BAGEL/session"
    FUNCTION = "begin"
    RETURN_TYPES = (SESSION,)
    RETURN_NAMES = ("session",)
    OUTPUT_TOOLTIPS = ("The conversation so far.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        think = "Think in words before each picture and answer."
        understanding = "Pictures are only asked about, never drawn; they then cost half the tokens."
        return {
            "required": {
                "model": model_input(),
                "think": ("BOOLEAN", {"default": False, "tooltip": think}),
                "understanding": ("BOOLEAN", {"default": False, "tooltip": understanding}),
            }
        }

    def begin(self, model: ModelHandle, think: bool, understanding: bool) -> tuple[SessionHandle]:
        return (SessionHandle(model, think, understanding),)


class BagelSessionAddText:
    """Adds a text."""

    DESCRIPTION = "Adds a text to a session."
    CATEGORY = "BAGEL/session"
    FUNCTION = "add"
    RETURN_TYPES = (SESSION,)
    RETURN_NAMES = ("session",)
    OUTPUT_TOOLTIPS = ("The conversation so far.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"session": session_input(), "text": text_widget("What to say.")}, "hidden": HIDDEN}

    @classmethod
    def VALIDATE_INPUTS(cls, text: str | None = None) -> bool | str:
        return check_text(text, "the text")

    def add(self, session: SessionHandle, text: str, unique_id: str | None = None) -> tuple[SessionHandle]:
        fork = session.fork(Watch(unique_id))
        fork.add(text)
        return (session.then(fork),)


class BagelSessionAddImage:
    """Adds images."""

    DESCRIPTION = "Adds the pictures of a batch to a session, one after the other."
    CATEGORY = "BAGEL/session"
    FUNCTION = "add"
    RETURN_TYPES = (SESSION,)
    RETURN_NAMES = ("session",)
    OUTPUT_TOOLTIPS = ("The conversation so far.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"session": session_input(), "images": references()["images"]}, "hidden": HIDDEN}

    def add(self, session: SessionHandle, images: Tensor, unique_id: str | None = None) -> tuple[SessionHandle]:
        fork = session.fork(Watch(unique_id))
        for image in to_arrays(images):
            fork.add(image)
        return (session.then(fork),)


class BagelSessionDraw:
    """Draws an image that follows from the conversation."""

    DESCRIPTION = "Draws a picture that follows from a session, and becomes part of it."
    CATEGORY = "BAGEL/session"
    FUNCTION = "draw"
    RETURN_TYPES = (SESSION, "IMAGE", "STRING")
    RETURN_NAMES = ("session", "images", "thinking")
    OUTPUT_TOOLTIPS = ("The conversation so far.", "The picture drawn.", "The thoughts before it.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"session": session_input(), "seed": seed_widget()},
            "optional": drawing_settings(),
            "hidden": HIDDEN,
        }

    def draw(
        self, session: SessionHandle, seed: int, settings: Values | None = None, unique_id: str | None = None
    ) -> tuple[SessionHandle, Tensor, str]:
        watch = Watch(unique_id)
        fork = session.fork(watch)
        result = fork.generate_image(
            seed=seed,
            progress=watch.step,
            on_preview=watch.preview,
            on_text=watch.text,
            return_result=True,
            **(settings or {}),
        )
        return session.then(fork), to_images([result.image]), result.thinking


class BagelSessionAnswer:
    """Writes an answer that follows from the conversation."""

    DESCRIPTION = "Writes an answer that follows from a session, and becomes part of it."
    CATEGORY = "BAGEL/session"
    FUNCTION = "answer"
    RETURN_TYPES = (SESSION, "STRING", "STRING")
    RETURN_NAMES = ("session", "answer", "thinking")
    OUTPUT_TOOLTIPS = ("The conversation so far.", "The answer.", "The thoughts before it.")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"session": session_input(), "seed": seed_widget("fixed")},
            "optional": answer_settings(),
            "hidden": HIDDEN,
        }

    def answer(
        self, session: SessionHandle, seed: int, settings: Values | None = None, unique_id: str | None = None
    ) -> tuple[SessionHandle, str, str]:
        watch = Watch(unique_id)
        fork = session.fork(watch)
        result: Any = fork.generate_text(seed=seed, on_text=watch.text, return_result=True, **(settings or {}))
        return session.then(fork), result.text, result.thinking
