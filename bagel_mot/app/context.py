"""The context that all tabs of the page share, how they show errors, and the layout and buttons they have in common."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gradio as gr

from bagel_mot.app.state import TabStates
from bagel_mot.app.texts.errors import translate
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


class PageError(BagelError):
    """An error in a text of the page itself, in the reader's language."""

    def __init__(self, language: Language, key: str, **values: Any) -> None:
        super().__init__(text(language, key, **values))


@contextmanager
def shown_errors(language: Language) -> Iterator[None]:
    """Shows an error as one sentence in the page; one that was not foreseen tells nothing of the server."""
    try:
        yield
    except BagelError as error:
        warn(sentence_of(error, language), language)
    except Exception as error:
        log_failure(error, "an event of the page", log_prompts=False)
        warn(text(language, "failed"), language)


def sentence_of(error: BagelError, language: Language) -> str:
    """The sentence of an error in the reader's language; where it is not translated, its kind and the English."""
    if language != "en" and (translated := translate(str(error), language)) is not None:
        return translated
    key = next(key for kind, key in _ERROR_TEXTS if isinstance(error, kind))
    return text(language, key, sentence=error)


def warn(sentence: str, language: Language) -> None:
    """Shows one sentence for a while."""
    gr.Warning(html.escape(sentence, quote=False), duration=12, title=text(language, "notice"))


def small_button(page: PageContext, part: str, key: str, **properties: Any) -> Any:
    """A button whose text and element id follow from one key."""
    own = {"value": say(key), "size": "sm", "elem_id": f"{part}-{key.replace('_', '-')}"}
    return page.labels.make(gr.Button, **own, **properties)


def settings_group(page: PageContext, part: str, key: str) -> Any:
    """A group of settings, folded away under its title."""
    return page.labels.make(
        gr.Accordion,
        label=say(key),
        open=False,
        elem_id=f"{part}-{key.replace('_', '-')}",
        elem_classes="bagel-group",
    )


def text_field(page: PageContext, part: str, key: str, **properties: Any) -> Any:
    """A text field whose label, placeholder and element id follow from one key."""
    # With one line, Enter submits and Shift+Enter breaks the line; the style sheet makes the field higher.
    own = {"label": say(key), "placeholder": say(f"{key}_hint"), "lines": 1, "max_lines": 10}
    return page.labels.make(gr.Textbox, **own, elem_id=f"{part}-{key}", elem_classes="bagel-prompt", **properties)


@contextmanager
def two_columns() -> Iterator[tuple[gr.Column, gr.Column]]:
    """Inputs and settings on the left, results on the right; one below the other on a phone."""
    with gr.Row(elem_classes="bagel-columns"):
        inputs = gr.Column(elem_classes="bagel-inputs", min_width=280)
        results = gr.Column(elem_classes="bagel-results", min_width=280)
        yield inputs, results


def hidden_while_empty(elem_id: str) -> gr.HTML:
    """A place for HTML that is there now and then; it takes no room while it is empty."""
    return gr.HTML("", elem_id=elem_id, elem_classes="bagel-optional")


def confirmed(page: PageContext, part: str, key: str, button: Any) -> Any:
    """A question that a button brings up before something is lost.

    Returns: the button that says yes; whoever uses it decides what happens then.
    """
    own = f"{part}-{key.replace('_', '-')}"
    with gr.Row(visible=False, elem_classes="bagel-small bagel-sure", elem_id=f"{own}-sure") as row:
        page.labels.make(gr.HTML, value=say(f"{key}_sure"))
        yes = page.labels.make(gr.Button, value=say(f"{key}_yes"), variant="stop", size="sm", elem_id=f"{own}-yes")
        no = page.labels.make(gr.Button, value=say("keep_it"), size="sm", elem_id=f"{own}-no")
    button.click(lambda: gr.update(visible=True), None, row, **INSTANT_EVENT)
    gr.on([yes.click, no.click], lambda: gr.update(visible=False), None, row, **INSTANT_EVENT)
    return yes


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
    dataset = _examples(page, part, texts)
    dataset.click(lambda sample: value(sample[0]), dataset, target, **INSTANT_EVENT)


def example_pairs(page: PageContext, part: str, texts: list[str], target: Any, images: Any, example: str) -> None:
    """A row of texts that are about an image; a click puts both into their fields. Images that are there stay."""

    def put(sample: list[str], given: Any) -> list[Any]:
        return [sample[0], gr.skip() if given else [example]]

    dataset = _examples(page, part, texts)
    dataset.click(put, [dataset, images], [target, images], **INSTANT_EVENT)


def _examples(page: PageContext, part: str, texts: list[str]) -> Any:
    own = {"components": ["textbox"], "samples": [[one] for one in texts], "elem_id": f"{part}-examples"}
    return page.labels.make(gr.Dataset, label=say("examples"), elem_classes="bagel-examples", **own)


def hint_line(page: PageContext, part: str, prompt: Any) -> None:
    """A line below a prompt that says when the checkpoint does not know what is asked for."""
    hint = hidden_while_empty(f"{part}-hint")

    def look(language: Language, written: Any) -> str:
        said = written.get("text") if isinstance(written, dict) else written  # a message also has files
        found = page.service.bagel.hint(said or "")
        if found is None:
            return ""
        return f'<div class="bagel-hint">{html.escape(translate(found, language) or found)}</div>'

    inputs = [page.language, prompt]
    prompt.change(look, inputs, hint, trigger_mode="always_last", **INSTANT_EVENT)
    page.language.change(look, inputs, hint, **INSTANT_EVENT)
