"""Ask: answers about images, as they are written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from bagel_mot.app import view
from bagel_mot.app.context import (
    LONG_EVENT,
    PageContext,
    RunButtons,
    example_texts,
    hidden_while_empty,
    settings_accordion,
    shown_errors,
    text_field,
    three_columns,
)
from bagel_mot.app.controls import Controls
from bagel_mot.app.image_files import GalleryValue, open_uploads, paths_of
from bagel_mot.app.tabs.image import upload_field
from bagel_mot.app.texts.language import Language, say, text
from bagel_mot.task import Task

PART = "ask"
QUESTIONS = ["How many cars are there?", "What colour is the car?", "Is there a sun?"]


class AskTab:
    """The tab that answers questions.

    Attributes:
        images: the field for images that are asked about.
    """

    def __init__(self, page: PageContext, example: str) -> None:
        """Builds the tab with the file of an image to begin with."""
        make = page.labels.make
        self._page, self._controls = page, Controls(page, PART, Task.ASK)
        with three_columns() as (inputs, results, settings):
            with inputs:
                self.images = upload_field(page, PART, "pictures_optional", example)
                question = text_field(page, PART, "question")
                self._buttons = RunButtons(page, PART, "answer_it")
                example_texts(page, PART, QUESTIONS, question)
            with results:
                self._progress = hidden_while_empty(f"{PART}-progress")
                self._thinking = hidden_while_empty(f"{PART}-thinking")
                self._answer = make(
                    gr.Textbox,
                    label=say("answer"),
                    lines=4,
                    max_lines=24,
                    interactive=False,
                    buttons=["copy"],
                    elem_id=f"{PART}-answer",
                )
                self._facts = hidden_while_empty(f"{PART}-facts")
            with settings:
                self._controls.build("think")
                self._controls.build_presets()
                with settings_accordion(page, PART):
                    self._controls.build("seed")
                    self._controls.build_seed_buttons()
                    self._controls.build()
                self._controls.connect()
        gr.on(
            [self._buttons.run.click, question.submit],
            self._ask,
            [page.language, self.images, question, *self._controls.components],
            [*self._buttons.outputs, self._progress, self._thinking, self._answer, self._facts],
            **LONG_EVENT,
        )

    def _ask(
        self, request: gr.Request, language: Language, gallery: GalleryValue, question: str, *values: Any
    ) -> Iterator[dict[Any, Any]]:
        tab, service = self._page.tabs.of(request), self._page.service
        with tab.generating(PART) as generation:
            yield {**self._buttons.show(True), self._answer: "", self._thinking: "", self._facts: ""}
            shown: dict[Any, Any] = {self._progress: ""}
            with shown_errors(language):
                settings = self._controls.settings(values)
                think = bool(settings.get("think", self._controls.defaults["think"]))
                inputs = [*open_uploads(paths_of(gallery), service), question]
                generation.start(service, inputs, "text", settings)
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
