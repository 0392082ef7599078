"""Ask: answers about images, as they are written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from bagel_mot.app import view as stage
from bagel_mot.app.context import Room, RunButtons, examples, quiet, telling, three_parts
from bagel_mot.app.controls import Controls
from bagel_mot.app.examples import QUESTIONS
from bagel_mot.app.image_files import open_uploads, paths_of
from bagel_mot.app.tabs.edit import upload
from bagel_mot.app.texts.language import Language, say, text

PART = "ask"


class Ask:
    """The tab.

    Attributes:
        images: that are asked about.
    """

    def __init__(self, room: Room, example: str) -> None:
        """
        Args:
            example: the file of an image to begin with.
        """
        make = room.labels.make
        controls = Controls(room, PART, "ask")
        with three_parts() as (given, made, settings):
            with given:
                self.images = upload(room, PART, "pictures_optional", [example])
                question = make(
                    gr.Textbox,
                    label=say("question"),
                    placeholder=say("question_hint"),
                    lines=2,
                    elem_id=f"{PART}-question",
                )
                buttons = RunButtons(room, PART, "answer_it")
                examples(room, PART, QUESTIONS, question)
            with made:
                progress = quiet(f"{PART}-stage")
                thinking = quiet(f"{PART}-thinking")
                answer = make(
                    gr.Textbox,
                    label=say("answer"),
                    lines=4,
                    max_lines=24,
                    interactive=False,
                    buttons=["copy"],
                    elem_id=f"{PART}-answer",
                )
                facts = quiet(f"{PART}-facts")
            with settings:
                controls.build("think")
                controls.build_presets()
                with make(gr.Accordion, label=say("settings"), open=False, elem_id=f"{PART}-settings"):
                    controls.build("seed")
                    controls.build_seed_buttons()
                    controls.build()
                controls.connect()

        def run(
            request: gr.Request, language: Language, gallery: Any, question: str, *values: Any
        ) -> Iterator[dict[Any, Any]]:
            desk = room.desks.of(request)
            with desk.running(PART) as work:
                yield {**buttons.show(True), answer: "", thinking: "", facts: ""}
                shown: dict[Any, Any] = {progress: ""}
                with telling(language):
                    settings = controls.settings(values)
                    think = bool(settings.get("think", controls.defaults["think"]))
                    inputs = [*open_uploads(paths_of(gallery), room.service), question]
                    work.start(room.service, inputs, "text", settings)
                    for _ in work.follow():
                        thought, said = stage.split_stream(work.text, think)
                        shown_thought = stage.thoughts(thought, language, open=True) if thought else ""
                        yield {progress: stage.at_work(work, language), thinking: shown_thought, answer: said}
                    results = work.results()
                    if work.stopped:
                        shown[progress] = stage.stopped(work, language)
                    for result in results:
                        desk.seeds[PART] = result.seed
                        shown |= {answer: result.text or text(language, "no_answer"), thinking: ""}
                    shown[facts] = stage.facts(results, language)
                yield {**shown, **buttons.show(False)}

        gr.on(
            [buttons.run.click, question.submit],
            run,
            [room.language, self.images, question, *controls.components],
            [*buttons.outputs, progress, thinking, answer, facts],
            show_progress="hidden",
            api_visibility="private",
            trigger_mode="once",
        )
        buttons.connect()
