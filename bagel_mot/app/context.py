"""The context that all tabs of the page share, how they show errors, and the layout and buttons they have in common."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gradio as gr

from bagel_mot.app.state import TabStates
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

INSTANT_EVENT: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""Gradio options of handlers that return at once: no progress overlay, not part of the public API."""
LONG_EVENT: dict[str, Any] = {**INSTANT_EVENT, "trigger_mode": "once"}
"""Gradio options of handlers that generate: another click while one is at work does nothing."""
_ERROR_TEXTS: tuple[tuple[type[BagelError], str], ...] = (
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
"""Error types, the special before the general, and the text that names the kind in the reader's language."""


@dataclass(frozen=True)
class PageContext:
    """Service, per-tab state, translations and the language selector, shared by all tabs.

    Attributes:
        service: the queue that generates for all of them.
        tabs: the state of each browser tab.
        labels: the texts on the page.
        language: the component in which the language is chosen.
    """

    service: Service
    tabs: TabStates
    labels: Labels
    language: gr.Radio


@contextmanager
def shown_errors(language: Language) -> Iterator[None]:
    """Shows an error as one sentence in the page; one that was not foreseen tells nothing of the server."""
    try:
        yield
    except BagelError as error:
        key = next(key for kind, key in _ERROR_TEXTS if isinstance(error, kind))
        warn(text(language, key, sentence=error))
    except Exception as error:
        log_failure(error, "an event of the page", log_prompts=False)
        warn(text(language, "failed"))


def warn(sentence: str) -> None:
    """Shows one sentence for a while."""
    gr.Warning(html.escape(sentence, quote=False), duration=12)


def small_button(page: PageContext, part: str, key: str, **properties: Any) -> Any:
    """A button whose text and element id follow from one key."""
    own = {"value": say(key), "size": "sm", "elem_id": f"{part}-{key.replace('_', '-')}"}
    return page.labels.make(gr.Button, **own, **properties)


def settings_accordion(page: PageContext, part: str) -> Any:
    """A place for all further settings, folded away."""
    return page.labels.make(gr.Accordion, label=say("settings"), open=False, elem_id=f"{part}-settings")


def text_field(page: PageContext, part: str, key: str, **properties: Any) -> Any:
    """A text field whose label, placeholder and element id follow from one key."""
    own = {"label": say(key), "placeholder": say(f"{key}_hint"), "lines": 2, "elem_id": f"{part}-{key}"}
    return page.labels.make(gr.Textbox, **own, **properties)


@contextmanager
def three_columns() -> Iterator[tuple[gr.Column, gr.Column, gr.Column]]:
    """Inputs, results and settings: beside each other, or in this order on a phone."""
    with gr.Row(elem_classes="bagel-columns"):
        inputs = gr.Column(elem_classes="bagel-inputs", min_width=280)
        results = gr.Column(elem_classes="bagel-results", min_width=280)
        settings = gr.Column(elem_classes="bagel-settings", min_width=280)
        yield inputs, results, settings


def hidden_while_empty(elem_id: str) -> gr.HTML:
    """A place for HTML that is there now and then; it takes no room while it is empty."""
    return gr.HTML("", elem_id=elem_id, elem_classes="bagel-optional")


class RunButtons:
    """The button that starts a generation and the one that stops it: one of them is visible at a time.

    Attributes:
        run: the first button.
        outputs: both, as event outputs.
    """

    def __init__(self, page: PageContext, part: str, key: str) -> None:
        make = page.labels.make
        self.run = make(gr.Button, value=say(key), variant="primary", elem_id=f"{part}-run")
        self._stop = make(gr.Button, value=say("stop"), variant="stop", visible=False, elem_id=f"{part}-stop")
        self.outputs: list[Any] = [self.run, self._stop]

        def stop(request: gr.Request) -> None:
            page.tabs.of(request).stop(part)

        self._stop.click(stop, None, None, **INSTANT_EVENT)

    def show(self, running: bool) -> dict[Any, Any]:
        """Updates for the state of the generation."""
        return {self.run: gr.update(visible=not running), self._stop: gr.update(visible=running)}


def example_texts(
    page: PageContext, part: str, texts: list[str], target: Any, value: Callable[[str], Any] = str
) -> None:
    """A row of texts; a click puts one into a field, as `value` makes it."""
    samples = [[one] for one in texts]
    dataset = page.labels.make(
        gr.Dataset, label=say("examples"), components=["textbox"], samples=samples, elem_id=f"{part}-examples"
    )
    dataset.click(lambda sample: value(sample[0]), dataset, target, **INSTANT_EVENT)
