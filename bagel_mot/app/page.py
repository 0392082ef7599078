"""The whole page, and how it is served: alone, or mounted into a server's app."""

from __future__ import annotations

import html
import re
from collections.abc import Awaitable, Callable
from typing import Any

import gradio as gr
from fastapi import FastAPI

from bagel_mot.app.context import QUICK, Room
from bagel_mot.app.examples import example_image
from bagel_mot.app.state import Desks
from bagel_mot.app.style import page_options
from bagel_mot.app.tabs.ask import Ask
from bagel_mot.app.tabs.chat import Chat
from bagel_mot.app.tabs.create import Create
from bagel_mot.app.tabs.drawing import Easel, chosen_path
from bagel_mot.app.tabs.edit import Edit
from bagel_mot.app.texts.language import LANGUAGES, Labels, Language, say
from bagel_mot.serving.service import Service

_CACHE = 3600, 24 * 3600  # how often files are looked at, and the age at which they are deleted, in seconds


def create_page(service: Service, *, language: Language = "en", name: str = "") -> gr.Blocks:
    """The page on a service. All who use it, and whoever else asks the service, share one queue and one model.

    Args:
        service: answers; its limits are the page's.
        language: that the page begins in.
        name: of the model, for the page's head.
    """
    labels, desks = Labels(language), Desks()
    service.count_sessions(lambda: desks.tokens)
    service.bagel.runtime.previewer  # noqa: B018 - fitted now, not while the first image waits for it
    example = example_image(service.bagel)
    with gr.Blocks(title="BAGEL", analytics_enabled=False, delete_cache=_CACHE) as page:
        with gr.Row(elem_classes="bagel-head"):
            labels.make(gr.HTML, value=say("head", name=html.escape(f" · {name}" if name else "")))
            choices = [(title, key) for key, title in LANGUAGES.items()]
            chosen = gr.Radio(
                choices,
                value=language,
                show_label=False,
                container=False,
                elem_id="language",
                elem_classes="bagel-language",
            )
        room = Room(service, desks, labels, chosen)
        with gr.Tabs(elem_id="tabs") as tabs:
            with labels.make(gr.Tab, label=say("create"), id="create"):
                create = Create(room)
            with labels.make(gr.Tab, label=say("edit"), id="edit"):
                edit = Edit(room, example)
            with labels.make(gr.Tab, label=say("ask"), id="ask"):
                ask = Ask(room, example)
            with labels.make(gr.Tab, label=say("chat"), id="chat"):
                Chat(room)
        for button, easel, target, tab in (
            (create.to_edit, create.easel, edit.images, "edit"),
            (create.to_ask, create.easel, ask.images, "ask"),
            (edit.to_ask, edit.easel, ask.images, "ask"),
        ):
            _carry(room, button, easel, target, tabs, tab)
        chosen.change(labels.switch, chosen, labels.components, **QUICK)
        page.unload(desks.close)
    # The service has a queue of its own, which says when it is full; the toolkit's is not to hide that.
    page.queue(default_concurrency_limit=None, api_open=False)
    _fetch_nothing(page)
    return page


def _fetch_nothing(page: gr.Blocks) -> None:
    """Lets no component take an address where a file is expected: the toolkit would download it."""

    def guarded(move: Callable[[Any], Awaitable[str | None]]) -> Callable[[Any], Awaitable[str | None]]:
        async def checked(path: Any) -> str | None:
            if re.match(r"\w+://", str(path)):
                raise gr.Error("addresses are not fetched here: upload the file.")
            return await move(path)

        return checked

    for block in page.blocks.values():
        move = guarded(block.async_move_resource_to_block_cache)
        block.async_move_resource_to_block_cache = move  # type: ignore[method-assign, assignment]


def _carry(room: Room, button: Any, easel: Easel, target: Any, tabs: gr.Tabs, tab: str) -> None:
    """A button that takes the chosen image to another tab."""

    def carry(language: Language, gallery: Any, chosen: int) -> list[Any]:
        path = chosen_path(gallery, chosen, language)
        return [gr.skip(), gr.skip()] if path is None else [[path], gr.Tabs(selected=tab)]

    button.click(carry, [room.language, easel.gallery, easel.chosen], [target, tabs], **QUICK)


def mount(
    app: FastAPI,
    service: Service,
    *,
    path: str = "/app",
    language: Language = "en",
    name: str = "",
    auth: list[tuple[str, str]] | None = None,
) -> FastAPI:
    """Puts the page into an app, such as the server's on the same service.

    Args:
        path: below which it is found. Routes that are added later below the same path are hidden by it.
        language, name: as in `create_page`.
        auth: names and passwords that may use it; everybody if not given.
    """
    page = create_page(service, language=language, name=name)
    page.has_launched = True  # else the toolkit takes any path that a client writes into an event, and serves the file
    return gr.mount_gradio_app(app, page, path, auth=auth, **page_options())
