"""Ask: answers about images, as they are written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from bagel_mot.app import view
from bagel_mot.app.answers import AnswerField, AnswerHistory, answer_entry
from bagel_mot.app.context import (
    LONG_EVENT,
    PageContext,
    PageError,
    RunButtons,
    example_pairs,
    hint_line,
    shown_errors,
    text_field,
    two_columns,
)
from bagel_mot.app.controls import Controls
from bagel_mot.app.history import HistoryEntry
from bagel_mot.app.image_files import GalleryValue, known_settings, open_uploads, paths_of
from bagel_mot.app.remembered import remember_fields
from bagel_mot.app.texts.language import Language, text
from bagel_mot.app.uploads import ImageField
from bagel_mot.task import Task

PART = "ask"
QUESTIONS = ["How many cars are there?", "What colour is the car?", "Is there a sun?"]


class AskTab:
    """The tab that answers questions.

    Attributes:
        images: the field for images that are asked about.
        fields: the components that a browser remembers.
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
                self._field = AnswerField(page, PART)
                self._history = AnswerHistory(page, PART, Task.ASK)
        self.fields = [self._question, *self._controls.components]
        gr.on(
            [self._buttons.run.click, self._question.submit],
            self._ask,
            [page.language, self._history.entries, self.images.gallery, *self.fields],
            [*self._buttons.outputs, *self._field.outputs, *self._history.outputs],
            **LONG_EVENT,
        )

    def connect(self, blocks: gr.Blocks) -> None:
        """Connects what happens when the page is opened."""
        fields = [self.images.gallery, *self.fields]
        self._history.connect(blocks, self._field, fields, self._restore_entry)
        self.images.connect(blocks)
        remember_fields(blocks, PART, self.fields)

    def _restore_entry(self, language: Language, entry: HistoryEntry | None) -> list[Any]:
        """Images, question and settings of an earlier answer."""
        if entry is not None:
            with shown_errors(language):
                settings = known_settings(entry["settings"], entry["seed"], Task.ASK)
                images = self.images.put_back(entry["paths"], language)
                return [images, entry["question"], *self._controls.updates(settings)]
        return [gr.skip() for _ in range(1 + len(self.fields))]

    def _ask(
        self, request: gr.Request, language: Language, entries: Any, gallery: GalleryValue, question: str, *values: Any
    ) -> Iterator[dict[Any, Any]]:
        tab, service, field = self._page.tabs.of(request), self._page.service, self._field
        with tab.generating(PART) as generation:
            shown: dict[Any, Any] = {field.progress: ""}
            with shown_errors(language):
                settings = self._controls.settings(values)
                think = bool(settings.get("think", self._controls.defaults["think"]))
                if not (question or "").strip():
                    raise PageError(language, "nothing_asked")
                paths = paths_of(gallery)
                images = open_uploads(paths, service)
                generation.start(service, [*images, question], "text", settings)
                yield {**self._buttons.show(True), field.answer: "", field.thinking: "", field.facts: ""}
                for _ in generation.follow():
                    thinking, answer = view.split_stream(generation.text, think)
                    yield {
                        field.progress: view.progress_html(generation, language),
                        field.thinking: view.thinking_html(thinking, language, open=True) if thinking else "",
                        field.answer: answer,
                    }
                results = generation.results()
                if generation.stopped:
                    shown[field.progress] = view.stopped_html(generation, language)
                for result in results:
                    tab.seeds[PART] = result.seed
                    shown |= {field.answer: result.text or text(language, "no_answer"), field.thinking: ""}
                    shown |= self._history.added(entries, [answer_entry(result, question, images, paths)])
                shown[field.facts] = view.facts_html(results, language)
            yield {**shown, **self._buttons.show(False)}
