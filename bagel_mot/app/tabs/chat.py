"""Chat: one conversation of words and images, given and made; with branches, and a way back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import gradio as gr
from PIL import Image

from bagel_mot.app import messages
from bagel_mot.app import view as stage
from bagel_mot.app.context import QUICK, Room, RunButtons, quiet, telling
from bagel_mot.app.controls import Controls
from bagel_mot.app.conversation import Chats, Conversation
from bagel_mot.app.examples import MESSAGES
from bagel_mot.app.image_files import open_uploads
from bagel_mot.app.run import Run
from bagel_mot.app.state import Desk
from bagel_mot.app.texts.language import Language, say, text
from bagel_mot.errors import BagelError
from bagel_mot.inference.tasks import Media

PART = "chat"
_SHARE = 2  # conversations may keep one part in so many of the cache, so that the rest is left for requests


class Chat:
    """The tab."""

    def __init__(self, room: Room) -> None:
        self._room = room
        make = room.labels.make
        self.controls = Controls(room, PART, "generate", "ask")
        with gr.Row(elem_classes="bagel-small bagel-switch"):
            self.switch = make(
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
            begin = self._small("new_chat", "new")
            branch = self._small("branch", "branch")
            undo = self._small("undo", "undo")
            close = self._small("close", "close")
        self.log = make(
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
        self.progress = quiet(f"{PART}-stage")
        self.box = make(
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
            self.buttons = RunButtons(room, PART, "send")
            self.draw = make(gr.Button, value=say("draw"), variant="secondary", elem_id=f"{PART}-draw")
        dataset = make(
            gr.Dataset,
            label=say("examples"),
            components=["textbox"],
            samples=[[one] for one in MESSAGES],
            elem_id=f"{PART}-examples",
        )
        dataset.click(lambda sample: {"text": sample[0], "files": []}, dataset, self.box, **QUICK)
        self.controls.build("think")
        with make(gr.Accordion, label=say("settings"), open=False, elem_id=f"{PART}-settings"):
            make(gr.Markdown, value=say("chat_settings"))
            self.controls.build_presets()
            self.controls.build("size", "seed")
            self.controls.build_seed_buttons()
            self.controls.build()
        self.controls.connect()

        self._on_run([self.buttons.run.click, self.box.submit], "text")
        self._on_run([self.draw.click], "image")
        self.buttons.connect()
        for button, act in (
            (begin, Chats.begin),
            (branch, Chats.branch),
            (undo, lambda chats: chats.current.undo()),
            (close, Chats.close),
        ):
            self._on_change(button, act)
        self.switch.input(self._show, [room.language, self.switch], self._view_outputs, **QUICK)

    def _small(self, key: str, name: str) -> Any:
        return self._room.labels.make(gr.Button, value=say(key), size="sm", scale=1, elem_id=f"{PART}-{name}")

    # --------------------------------------------------------------------------------------------------- what is shown

    @property
    def _view_outputs(self) -> list[Any]:
        return [self.log, self.switch, self.progress]

    def _view(self, desk: Desk, language: Language) -> dict[Any, Any]:
        """Updates: the current conversation, and the list of all."""
        chats = desk.chats
        choices = [(conversation.title, conversation.number) for conversation in chats.conversations]
        return {
            self.log: desk.messages.of(chats.current, language),
            self.switch: gr.update(choices=choices, value=chats.current.number),
            self.progress: "",
        }

    def _show(self, request: gr.Request, language: Language, number: int) -> dict[Any, Any]:
        desk = self._room.desks.of(request)
        desk.stop(PART)
        desk.chats.show(number)
        return self._view(desk, language)

    def _on_change(self, button: Any, act: Callable[[Chats], None]) -> None:
        """A button that does something with the conversations; what is at work is stopped first."""

        def change(request: gr.Request, language: Language) -> dict[Any, Any]:
            desk = self._room.desks.of(request)
            desk.stop(PART)
            with telling(language):
                act(desk.chats)
            return self._view(desk, language)

        button.click(change, self._room.language, self._view_outputs, **QUICK)

    # ----------------------------------------------------------------------------------------------------------- a turn

    def _on_run(self, triggers: Sequence[Any], output: Media) -> None:
        room = self._room

        def run(request: gr.Request, language: Language, box: Any, *values: Any) -> Iterator[dict[Any, Any]]:
            desk = room.desks.of(request)
            if desk.busy(PART):  # Send and Draw are events of their own, and both may be clicked
                yield {self.progress: gr.skip()}
                return
            said, files = (box or {}).get("text") or "", (box or {}).get("files") or []
            with desk.running(PART) as work:
                yield {**self._buttons(True), self.box: gr.update(value=None, interactive=False)}
                back: Any = {"text": said, "files": files}  # what did not become part of the conversation
                note = ""
                with telling(language):
                    images = open_uploads(files, room.service)
                    conversation = desk.chats.current
                    think = self._start(work, conversation, said, images, output, values, language)
                    before = [*desk.messages.of(conversation, language), *messages.pending(said, images)]
                    for _ in work.follow():
                        following = messages.so_far(work.text, think, language) if output == "text" else []
                        yield {self.log: [*before, *following], self.progress: stage.at_work(work, language)}
                    for result in work.results():
                        desk.seeds[PART], back = result.seed, None
                        note = stage.facts([result], language) if output == "image" else ""
                    if work.stopped:
                        note = stage.stopped(work, language)
                box_again = gr.update(value=back, interactive=True)
                yield {
                    **self._view(desk, language),
                    self.progress: note,
                    self.box: box_again,
                    **self._buttons(False),
                }

        gr.on(
            triggers,
            run,
            [room.language, self.box, *self.controls.components],
            [*self.buttons.outputs, self.draw, self.box, *self._view_outputs],
            show_progress="hidden",
            api_visibility="private",
            trigger_mode="once",
        )

    def _start(
        self,
        work: Run,
        conversation: Conversation,
        said: str,
        images: Sequence[Image.Image],
        output: Media,
        values: Sequence[Any],
        language: Language,
    ) -> bool:
        """Sets a turn to work; returns whether it thinks first.

        Raises:
            BagelError: it is refused.
        """
        settings = self.controls.settings(values, "ask" if output == "text" else "generate")
        think = bool(settings.pop("think", self.controls.defaults["think"]))
        held, room = self._room.service.session_tokens, self._room.service.capacity.cache_tokens // _SHARE
        if held > room:
            raise BagelError(text(language, "chat_full", held=held, room=room))
        turn = partial(conversation.turn, self._room.service, work, said, images, output)
        work.start_thread(partial(turn, think=think, settings=settings))
        return think

    def _buttons(self, running: bool) -> dict[Any, Any]:
        return {**self.buttons.show(running), self.draw: gr.update(visible=not running)}
