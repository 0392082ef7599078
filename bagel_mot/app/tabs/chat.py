"""Chat: a conversation of texts and images, given and generated; with branches and undo."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import gradio as gr

from bagel_mot.app import view
from bagel_mot.app.context import (
    INSTANT_EVENT,
    LONG_EVENT,
    PageContext,
    RunButtons,
    example_texts,
    hidden_while_empty,
    settings_accordion,
    shown_errors,
    small_button,
)
from bagel_mot.app.controls import Controls
from bagel_mot.app.image_files import open_uploads
from bagel_mot.app.state import TabState
from bagel_mot.app.texts.language import Language, say, text
from bagel_mot.errors import BagelError
from bagel_mot.task import Task

PART = "chat"
MESSAGES = ["a red car on the grass", "change the background to night", "What colour is the car?"]
_CACHE_SHARE = 0.5  # conversations may keep this share of the cache; the rest is left for requests


class ChatTab:
    """The tab with the conversations."""

    def __init__(self, page: PageContext) -> None:
        self._page = page
        make = page.labels.make
        self._controls = Controls(page, PART, Task.GENERATE, Task.ASK)
        with gr.Row(elem_classes="bagel-small bagel-switch"):
            self._switch = make(
                gr.Dropdown,
                choices=[("1", 1)],
                value=1,
                label=say("conversation"),
                show_label=False,
                container=False,
                scale=3,
                min_width=200,
                elem_id=f"{PART}-switch",
            )
            actions = [
                (small_button(page, PART, key, scale=1), act)
                for key, act in (
                    ("new_chat", TabState.begin_chat),
                    ("branch", TabState.branch_chat),
                    ("undo", lambda tab: tab.chat.undo()),
                    ("close", TabState.close_chat),
                )
            ]
        self._log = make(
            gr.Chatbot,
            label=say("chat"),
            show_label=False,
            height=520,
            placeholder=say("chat_empty"),
            buttons=["copy"],
            feedback_options=None,
            layout="bubble",
            elem_classes="bagel-log",
            elem_id=f"{PART}-log",
        )
        self._progress = hidden_while_empty(f"{PART}-progress")
        self._box = make(
            gr.MultimodalTextbox,
            label=say("message"),
            show_label=False,
            placeholder=say("message_hint"),
            file_types=["image"],
            file_count="multiple",
            submit_btn=False,
            elem_id=f"{PART}-box",
        )
        with gr.Row(elem_classes="bagel-small"):
            self._buttons = RunButtons(page, PART, "send")
            self._draw = make(gr.Button, value=say("draw"), variant="secondary", elem_id=f"{PART}-draw")
        example_texts(page, PART, MESSAGES, self._box, lambda text: {"text": text, "files": []})
        self._controls.build("think")
        with settings_accordion(page, PART):
            make(gr.Markdown, value=say("chat_settings"))
            self._controls.build_presets()
            self._controls.build("size", "seed")
            self._controls.build_seed_buttons()
            self._controls.build()
        self._controls.connect()

        self._view_outputs = [self._log, self._switch, self._progress]
        self._on_turn([self._buttons.run.click, self._box.submit], "text")
        self._on_turn([self._draw.click], "image")
        for button, act in actions:
            self._on_change(button, act)
        self._switch.input(self._show, [page.language, self._switch], self._view_outputs, **INSTANT_EVENT)

    def _view(self, tab: TabState, language: Language) -> dict[Any, Any]:
        """Updates that show the current conversation and the list of all."""
        return {
            self._log: view.chat_messages(tab.chat.session, tab.files, language),
            self._switch: gr.update(choices=[(chat.title, chat.number) for chat in tab.chats], value=tab.chat.number),
            self._progress: "",
        }

    def _show(self, request: gr.Request, language: Language, number: int) -> dict[Any, Any]:
        tab = self._page.tabs.of(request)
        tab.stop(PART)
        tab.show_chat(number)
        return self._view(tab, language)

    def _on_change(self, button: Any, act: Callable[[TabState], None]) -> None:
        """Makes a button change the conversations; a turn at work is stopped first."""

        def change(request: gr.Request, language: Language) -> dict[Any, Any]:
            tab = self._page.tabs.of(request)
            tab.stop(PART)
            with shown_errors(language):
                act(tab)
            return self._view(tab, language)

        button.click(change, self._page.language, self._view_outputs, **INSTANT_EVENT)

    def _on_turn(self, triggers: Sequence[Any], output: str) -> None:
        """Makes events begin a turn that writes or draws."""

        def turn(request: gr.Request, language: Language, box: Any, *values: Any) -> Iterator[dict[Any, Any]]:
            yield from self._turn(output, self._page.tabs.of(request), language, box, values)

        gr.on(
            triggers,
            turn,
            [self._page.language, self._box, *self._controls.components],
            [*self._buttons.outputs, self._draw, self._box, *self._view_outputs],
            **LONG_EVENT,
        )

    def _turn(
        self, output: str, tab: TabState, language: Language, box: Any, values: Sequence[Any]
    ) -> Iterator[dict[Any, Any]]:
        service = self._page.service
        if tab.busy(PART):  # Send and Draw are events of their own, and both may be clicked
            yield {self._progress: gr.skip()}
            return
        said, files = (box or {}).get("text") or "", (box or {}).get("files") or []
        with tab.generating(PART) as generation:
            yield {**self._show_buttons(True), self._box: gr.update(value=None, interactive=False)}
            rejected: Any = {"text": said, "files": files}  # put back unless it becomes part of the conversation
            note = ""
            with shown_errors(language):
                inputs = [*open_uploads(files, service), *([said] if said else [])]
                chat = tab.chat
                settings = self._settings(values, output, language)
                generation.start_thread(partial(chat.turn, service, generation, inputs, output, settings))
                before = view.chat_messages(chat.session, tab.files, language) + view.input_messages(inputs)
                for _ in generation.follow():
                    answer = view.partial_answer(generation.text, settings["think"], language)
                    yield {
                        self._log: before + (answer if output == "text" else []),
                        self._progress: view.progress_html(generation, language),
                    }
                for result in generation.results():
                    tab.seeds[PART], rejected = result.seed, None
                    note = view.facts_html([result], language) if output == "image" else ""
                if generation.stopped:
                    note = view.stopped_html(generation, language)
            yield {
                **self._view(tab, language),
                self._progress: note,
                self._box: gr.update(value=rejected, interactive=True),
                **self._show_buttons(False),
            }

    def _settings(self, values: Sequence[Any], output: str, language: Language) -> dict[str, Any]:
        """The settings of a turn.

        Raises:
            SettingError: a value is out of range.
            BagelError: the conversations of all tabs keep too much of the cache for another turn.
        """
        settings = self._controls.settings(values, Task.ASK if output == "text" else Task.GENERATE)
        held = self._page.service.session_tokens
        room = int(self._page.service.capacity.cache_tokens * _CACHE_SHARE)
        if held > room:
            raise BagelError(text(language, "chat_full", held=held, room=room))
        return {"think": self._controls.defaults["think"], **settings}

    def _show_buttons(self, running: bool) -> dict[Any, Any]:
        return {**self._buttons.show(running), self._draw: gr.update(visible=not running)}
