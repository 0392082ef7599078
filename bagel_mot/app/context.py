"""What all parts of the page share, and how they say that something did not work."""

from __future__ import annotations

import html
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gradio as gr

from bagel_mot.app.state import Desks
from bagel_mot.app.texts.language import Labels, Language, say, text
from bagel_mot.errors import (
    BagelError,
    ContextLengthError,
    DeviceError,
    ImageError,
    MemoryShortageError,
    PromptError,
    SettingError,
    SizeError,
)
from bagel_mot.serving.limits import BusyError, ClosedError, LimitError
from bagel_mot.serving.openai.errors import log_failure
from bagel_mot.serving.service import Service

QUICK: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""Of events that have nothing to wait for."""
_KINDS: tuple[tuple[type[BagelError], str], ...] = (
    (ImageError, "image_error"),
    (PromptError, "prompt_error"),
    (SizeError, "size_error"),
    (SettingError, "setting_error"),
    (ContextLengthError, "context_error"),
    (ClosedError, "closed_error"),
    (BusyError, "busy_error"),
    (LimitError, "limit_error"),
    (MemoryShortageError, "memory_error"),
    (DeviceError, "device_error"),
    (BagelError, "own_error"),
)
"""Of errors, the special before the general, and the text that names the kind in the reader's language."""


@dataclass(frozen=True)
class Room:
    """What the parts of one page share.

    Attributes:
        service: answers all of them.
        desks: what belongs to each browser tab.
        labels: the texts on the page.
        language: the component in which it is chosen.
    """

    service: Service
    desks: Desks
    labels: Labels
    language: gr.Radio

    @property
    def max_pixels(self) -> int:
        """Of an uploaded image."""
        return self.service.limits.image_pixels


@contextmanager
def telling(language: Language) -> Iterator[None]:
    """Shows errors as one sentence in the page, without saying more of the server than that."""
    try:
        yield
    except BagelError as error:
        key = next(key for kind, key in _KINDS if isinstance(error, kind))
        tell(text(language, key, sentence=error))
    except Exception as error:
        log_failure(error, "an event of the page", log_prompts=False)
        tell(text(language, "failed"))


def tell(sentence: str) -> None:
    """One sentence, shown for a while."""
    gr.Warning(html.escape(sentence, quote=False), duration=12)


@contextmanager
def three_parts() -> Iterator[tuple[gr.Column, gr.Column, gr.Column]]:
    """What is given, what comes of it, and the settings: beside each other, or in this order on a phone."""
    with gr.Row(elem_classes="bagel-desk"):
        given = gr.Column(elem_classes="bagel-given", min_width=280)
        made = gr.Column(elem_classes="bagel-made", min_width=280)
        settings = gr.Column(elem_classes="bagel-settings", min_width=280)
        yield given, made, settings


def quiet(elem_id: str) -> gr.HTML:
    """A place for what is said now and then; it takes no room while it is empty."""
    return gr.HTML("", elem_id=elem_id, elem_classes="bagel-quiet")


class RunButtons:
    """The button that sets to work, and the one that stops it: one of them is there at a time."""

    def __init__(self, room: Room, part: str, key: str) -> None:
        """
        Args:
            part: of the page, for the elements' ids.
            key: of the first button's text.
        """
        self._room, self._part = room, part
        make = room.labels.make
        self.run = make(gr.Button, value=say(key), variant="primary", elem_id=f"{part}-run")
        self.stop = make(gr.Button, value=say("stop"), variant="stop", visible=False, elem_id=f"{part}-stop")

    def connect(self) -> None:
        """What Stop does."""

        def stop(request: gr.Request) -> None:
            self._room.desks.of(request).stop(self._part)

        self.stop.click(stop, None, None, **QUICK)

    @property
    def outputs(self) -> list[Any]:
        return [self.run, self.stop]

    def show(self, running: bool) -> dict[Any, Any]:
        """Updates."""
        return {self.run: gr.update(visible=not running), self.stop: gr.update(visible=running)}


def examples(room: Room, part: str, texts: list[str], target: Any) -> None:
    """A row of texts, which a click puts into a field."""
    samples = [[one] for one in texts]
    dataset = room.labels.make(
        gr.Dataset, label=say("examples"), components=["textbox"], samples=samples, elem_id=f"{part}-examples"
    )
    dataset.click(lambda sample: sample[0], dataset, target, **QUICK)
