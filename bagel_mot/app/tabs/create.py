"""Create: images from a text."""

from __future__ import annotations

from typing import Any

import gradio as gr

from bagel_mot.app.context import Room, RunButtons, examples, three_parts
from bagel_mot.app.controls import Controls
from bagel_mot.app.examples import PROMPTS
from bagel_mot.app.tabs.drawing import Easel, build_settings, connect
from bagel_mot.app.texts.language import say

PART = "create"


class Create:
    """The tab.

    Attributes:
        easel: with the images.
        to_edit, to_ask: buttons that take the chosen image to other tabs.
    """

    def __init__(self, room: Room) -> None:
        make = room.labels.make
        controls = Controls(room, PART, "generate")
        with three_parts() as (given, made, settings):
            with given:
                prompt = make(
                    gr.Textbox,
                    label=say("prompt"),
                    placeholder=say("prompt_hint"),
                    lines=2,
                    autofocus=True,
                    elem_id=f"{PART}-prompt",
                )
                buttons = RunButtons(room, PART, "draw")
                examples(room, PART, PROMPTS, prompt)
            with settings:
                count = build_settings(room, PART, controls, prompt)
            with made:
                self.easel = Easel(room, PART)
                with gr.Row(elem_classes="bagel-small"):
                    self.to_edit = make(gr.Button, value=say("to_edit"), size="sm", elem_id=f"{PART}-to-edit")
                    self.to_ask = make(gr.Button, value=say("to_ask"), size="sm", elem_id=f"{PART}-to-ask")

        def collect(_: Any, prompt: str) -> list[Any]:
            return [prompt]

        connect(room, PART, controls, buttons, self.easel, [prompt], count, collect, [buttons.run.click, prompt.submit])
