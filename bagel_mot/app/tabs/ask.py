"""Ask: answers about images, as they are written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from bagel_mot.app import view
from bagel_mot.app.context import (
    LONG_EVENT,
    PageContext,
    PageError,
    RunButtons,
    example_pairs,
    hidden_while_empty,
    hint_line,
    shown_errors,
    text_field,
    two_columns,
)
from bagel_mot.app.controls import Controls
from bagel_mot.app.image_files import GalleryValue, open_uploads, paths_of
from bagel_mot.app.remembered import remember_fields
from bagel_mot.app.texts.language import Language, say, text
from bagel_mot.app.uploads import ImageField
from bagel_mot.task import Task

PART = "ask"
QUESTIONS = ["How many cars are there?", "What colour is the car?", "Is there a sun?"]


class AskTab:
    """The tab that answers questions.

    Attributes:
        images: the field for images that are asked about.
    """

    def __init__(self, page: PageContext, example: str) -> None:
        """Builds the tab with the file of an image that the example questions are about."""
        self._page, self._controls = page, Controls(page, PART, Task.ASK)
        with two_columns() as (inputs, results):
            with inputs:
                self.images = ImageField(page, PART, "pictures_optional")
                self._question = text_field(page, PART, "question")
                hint_line(page, PART, self._question)
                self._buttons = RunButtons(page, PART, "answer_it")
                example_pairs(page, PART, QUESTIONS, self._question, self.images.gallery, example)
                self._controls.build_presets()
                self._controls.build_groups()
                self._controls.connect()
            with results:
                self._progress = hidden_while_empty(f"{PART}-progress")
                self._thinking = hidden_while_empty(f"{PART}-thinking")
                self._answer = page.labels.make(
                    gr.Textbox,
                    label=say("answer"),
                    placeholder=say("answer_hint"),
                    lines=8,
                    max_lines=24,
                    interactive=False,
                    buttons=["copy"],
                    elem_id=f"{PART}-answer",
                    elem_classes="bagel-answer",
                )
                self._facts = hidden_while_empty(f"{PART}-facts")
        gr.on(
            [self._buttons.run.click, self._question.submit],
            self._ask,
            [page.language, self.images.gallery, self._question, *self._controls.components],
            [*self._buttons.outputs, self._progress, self._thinking, self._answer, self._facts],
            **LONG_EVENT,
        )

    def connect(self, blocks: gr.Blocks) -> None:
        """Connects what happens when the page is opened."""
        remember_fields(blocks, PART, [self._question, *self._controls.components])

    def _ask(
        self, request: gr.Request, language: Language, gallery: GalleryValue, question: str, *values: Any
    ) -> Iterator[dict[Any, Any]]:
        tab, service = self._page.tabs.of(request), self._page.service
        with tab.generating(PART) as generation:
            shown: dict[Any, Any] = {self._progress: ""}
            with shown_errors(language):
                settings = self._controls.settings(values)
                think = bool(settings.get("think", self._controls.defaults["think"]))
                if not (question or "").strip():
                    raise PageError(language, "nothing_asked")
                inputs = [*open_uploads(paths_of(gallery), service), question]
                generation.start(service, inputs, "text", settings)
                yield {**self._buttons.show(True), self._answer: "", self._thinking: "", self._facts: ""}
                for _ in generation.follow():
                    thinking, answer = view.split_stream(generation.text, think)
                    yield {
                        self._progress: view.progress_html(generation, language),
                        self._thinking: view.thinking_html(thinking, language, open=True) if thinking else "",
                        self._answer: answer,
                    }
                results = generation.results()
                if generation.stopped:
                    shown[self._progress] = view.stopped_html(generation, language)
                for result in results:
                    tab.seeds[PART] = result.seed
                    shown |= {self._answer: result.text or text(language, "no_answer"), self._thinking: ""}
                shown[self._facts] = view.facts_html(results, language)
            yield {**shown, **self._buttons.show(False)}
