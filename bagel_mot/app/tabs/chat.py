"""Chat: a conversation of texts and images, given and generated; with branches and undo."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import gradio as gr

from bagel_mot.app import view
from bagel_mot.app.chats import store, unstore
from bagel_mot.app.context import (
    INSTANT_EVENT,
    LONG_EVENT,
    PageContext,
    PageError,
    RunButtons,
    confirmed,
    example_texts,
    hint_line,
    shown_errors,
    small_button,
    two_columns,
)
from bagel_mot.app.controls import Controls
from bagel_mot.app.image_files import open_uploads
from bagel_mot.app.remembered import browser_state, remember_fields
from bagel_mot.app.state import TabState
from bagel_mot.app.texts.language import Language, say
from bagel_mot.serving.service import Service
from bagel_mot.task import Task

PART = "chat"
MESSAGES = ["a red car on the grass", "change the background to night", "What colour is the car?"]
_CACHE_SHARE = 0.5  # conversations may keep this share of the cache; the rest is left for requests


class ChatTab:
    """The tab with the conversations."""

    def __init__(self, page: PageContext) -> None:
        self._page = page
        make = page.labels.make
        self._stored = browser_state("chats", {})
        self._controls = Controls(page, PART, Task.GENERATE, Task.ASK)
        with two_columns() as (inputs, results):
            with inputs:
                actions = self._build_switch()
                examples = gr.Column()
                self._controls.build_presets()
                with gr.Column(elem_classes="bagel-basics"):
                    self._controls.build("size", "think")
                self._controls.build_groups()
                make(gr.HTML, value=say("chat_settings"), elem_classes="bagel-note")
                self._controls.connect()
            with results:
                self._log = make(
                    gr.Chatbot,
                    label=say("chat"),
                    show_label=False,
                    height="max(340px, calc(100vh - 350px))",
                    placeholder=say("chat_empty"),
                    buttons=["copy"],
                    feedback_options=None,
                    layout="bubble",
                    elem_classes="bagel-log",
                    elem_id=f"{PART}-log",
                )
                self._box = make(
                    gr.MultimodalTextbox,
                    label=say("message"),
                    show_label=False,
                    placeholder=say("message_hint"),
                    file_count="multiple",
                    submit_btn=False,
                    elem_id=f"{PART}-box",
                    elem_classes="bagel-box",
                )
                hint_line(page, PART, self._box)
                with gr.Row(elem_classes="bagel-small"):
                    self._buttons = RunButtons(page, PART, "send")
                    self._draw = make(gr.Button, value=say("draw"), variant="secondary", elem_id=f"{PART}-draw")
                # Always as high as one line, so that nothing moves when it says something.
                self._progress = gr.HTML("", elem_id=f"{PART}-progress", elem_classes="bagel-line")

        with examples:
            example_texts(page, PART, MESSAGES, self._box, lambda text: {"text": text, "files": []})
        self._view_outputs = [self._log, self._switch, self._progress, self._stored]
        self._on_turn([self._buttons.run.click, self._box.submit], "text")
        self._on_turn([self._draw.click], "image")
        for button, act in actions:
            self._on_change(button, act)
        self._switch.input(self._show, [page.language, self._switch], self._view_outputs, **INSTANT_EVENT)

    def _build_switch(self) -> list[tuple[Any, Callable[[TabState], None]]]:
        """Builds the choice of a conversation, and the buttons that change the conversations.

        Returns: the buttons with what they do.
        """
        page = self._page
        self._switch = page.labels.make(
            gr.Dropdown,
            choices=[("1", 1)],
            value=1,
            label=say("conversation"),
            elem_id=f"{PART}-switch",
        )
        with gr.Row(elem_classes="bagel-small"):
            buttons = {key: small_button(page, PART, key) for key in ("new_chat", "branch", "undo", "close")}
        yes = confirmed(page, PART, "close", buttons["close"])
        return [
            (buttons["new_chat"], TabState.begin_chat),
            (buttons["branch"], TabState.branch_chat),
            (buttons["undo"], lambda tab: tab.chat.undo()),
            (yes, TabState.close_chat),
        ]

    def connect(self, blocks: gr.Blocks) -> None:
        """Connects what happens when the page is opened: the conversations of the last visit are taken up."""
        page = self._page
        self._stored.render()

        def take_back(request: gr.Request, language: Language, stored: Any) -> dict[Any, Any]:
            tab = page.tabs.of(request)
            if isinstance(stored, dict) and isinstance(stored.get("current"), int):
                chats = unstore(stored.get("chats"), tab.files, page.service.limits.image_pixels)
                tab.take_back(chats, stored["current"])
            return self._view(tab, language)

        blocks.load(take_back, [page.language, self._stored], self._view_outputs, **INSTANT_EVENT)
        remember_fields(blocks, PART, self._controls.components)

    def _view(self, tab: TabState, language: Language) -> dict[Any, Any]:
        """Updates that show the current conversation and the list of all."""
        return {
            self._log: view.chat_messages(tab.chat.session, tab.files, language),
            self._switch: gr.update(choices=[(chat.title, chat.number) for chat in tab.chats], value=tab.chat.number),
            self._progress: "",
            self._stored: {"current": tab.chat.number, "chats": store(tab.chats, tab.files)},
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
                    written = view.partial_answer(generation.text, settings["think"], language)
                    forming = output == "image" or not written
                    yield {self._log: before + ([view.progress_message(generation, language)] if forming else written)}
                for result in generation.results():
                    tab.seeds[PART], rejected = result.seed, None
                    note = view.facts_html([result], language) if output == "image" else ""
                if generation.stopped:
                    note = view.stopped_note(generation, language)
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
        check_room(self._page.service, language)
        return {"think": self._controls.defaults["think"], **settings}

    def _show_buttons(self, running: bool) -> dict[Any, Any]:
        return {**self._buttons.show(running), self._draw: gr.update(visible=not running)}


def check_room(service: Service, language: Language) -> None:
    """Checks that there is room for another turn of a conversation.

    Raises:
        PageError: the conversations of all visitors keep too much of the cache.
    """
    held, room = service.session_tokens, int(service.capacity.cache_tokens * _CACHE_SHARE)
    if held > room:
        raise PageError(language, "chat_full", held=held, room=room)
