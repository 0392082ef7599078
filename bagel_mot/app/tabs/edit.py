"""Edit: images from images and an instruction."""

from __future__ import annotations

from typing import Any

import gradio as gr

from bagel_mot.app.context import QUICK, Room, RunButtons, examples, three_parts
from bagel_mot.app.controls import Controls
from bagel_mot.app.examples import INSTRUCTIONS
from bagel_mot.app.image_files import open_uploads, paths_of
from bagel_mot.app.tabs.drawing import Easel, build_settings, chosen_path, connect
from bagel_mot.app.texts.language import Language, say, text
from bagel_mot.errors import BagelError

PART = "edit"


class Edit:
    """The tab.

    Attributes:
        images: that are to be changed.
        easel: with those that came of it.
        to_ask: the button that takes the chosen image to another tab.
    """

    def __init__(self, room: Room, example: str) -> None:
        """
        Args:
            example: the file of an image to begin with.
        """
        make = room.labels.make
        controls = Controls(room, PART, "edit")
        with three_parts() as (given, made, settings):
            with given:
                self.images = upload(room, PART, "pictures", [example])
                instruction = make(
                    gr.Textbox,
                    label=say("instruction"),
                    placeholder=say("instruction_hint"),
                    lines=2,
                    elem_id=f"{PART}-instruction",
                )
                buttons = RunButtons(room, PART, "change")
                examples(room, PART, INSTRUCTIONS, instruction)
            with settings:
                count = build_settings(room, PART, controls, instruction)
            with made:
                self.easel = Easel(room, PART)
                with gr.Row(elem_classes="bagel-small"):
                    again = make(gr.Button, value=say("again"), size="sm", elem_id=f"{PART}-again")
                    self.to_ask = make(gr.Button, value=say("to_ask"), size="sm", elem_id=f"{PART}-to-ask")

        def collect(language: Language, gallery: Any, instruction: str) -> list[Any]:
            paths = paths_of(gallery)
            if not paths:
                raise BagelError(text(language, "no_picture"))
            return [*open_uploads(paths, room.service), instruction]

        connect(
            room,
            PART,
            controls,
            buttons,
            self.easel,
            [self.images, instruction],
            count,
            collect,
            [buttons.run.click, instruction.submit],
        )

        def reuse(language: Language, gallery: Any, chosen: int) -> Any:
            path = chosen_path(gallery, chosen, language)
            return gr.skip() if path is None else [path]

        again.click(reuse, [room.language, self.easel.gallery, self.easel.chosen], self.images, **QUICK)


def upload(room: Room, part: str, key: str, value: list[str] | None = None) -> Any:
    """A field for images: dropped, chosen or pasted. They are opened when they are used, so that a broken one is
    spoken of in words.
    """
    return room.labels.make(
        gr.Gallery,
        value=value,
        label=say(key),
        type="filepath",
        file_types=["image"],
        interactive=True,
        columns=2,
        fit_columns=False,
        height=240,
        object_fit="contain",
        buttons=[],
        sources=["upload", "clipboard"],
        elem_id=f"{part}-pictures",
    )
