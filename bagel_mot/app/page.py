"""The whole page, and how it is served: alone, or mounted into a server's app."""

from __future__ import annotations

import html
import re
from collections.abc import Awaitable, Callable
from typing import Any

import gradio as gr
from fastapi import FastAPI

from bagel_mot.app.api import add_endpoints
from bagel_mot.app.context import INSTANT_EVENT, PageContext
from bagel_mot.app.image_files import example_image
from bagel_mot.app.presets import default_size
from bagel_mot.app.remembered import remember_language
from bagel_mot.app.state import TabStates
from bagel_mot.app.style import FAVICON_LINK, page_options
from bagel_mot.app.tabs.ask import AskTab
from bagel_mot.app.tabs.chat import ChatTab
from bagel_mot.app.tabs.image import ImageTab, chosen_path
from bagel_mot.app.texts.language import LANGUAGES, Labels, Language, say, text
from bagel_mot.serving.service import Service
from bagel_mot.task import Task

DOCS = "https://github.com/bagel-mot/bagel-mot/tree/main/docs"
PROMPTS = [
    "a red car",
    "three blue stars at night",
    "a yellow sun above a green tree",
    "a pink cat on the sand",
    "draw as many white stars as a car has wheels",
]
INSTRUCTIONS = ["make the car blue", "change the background to night", "remove the sun"]
_FILES = 3600, 24 * 3600  # how often files are looked at, and the age at which they are deleted, in seconds


def create_page(service: Service, *, language: Language = "en", name: str = "") -> gr.Blocks:
    """The page on a service. All who use it, and whoever else asks the service, share one queue and one model.

    Args:
        service: the queue that generates; its limits are the page's.
        language: the language in which the page begins.
        name: the model's name, for the page's head.
    """
    labels, states = Labels(language), TabStates()
    service.count_sessions(lambda: states.tokens)
    service.bagel.runtime.previewer  # noqa: B018 - fitted now, not while the first image waits for it
    example = example_image(max(default_size(service.bagel)))
    with gr.Blocks(title="BAGEL", analytics_enabled=False, delete_cache=_FILES, fill_width=True) as page:
        with gr.Row(elem_classes="bagel-head"):
            labels.make(gr.HTML, value=say("head", name=html.escape(f" · {name}" if name else ""), docs=DOCS))
            selector = gr.Radio(
                [(title, key) for key, title in LANGUAGES.items()],
                value=language,
                show_label=False,
                container=False,
                elem_id="language",
                elem_classes="bagel-language",
            )
        context = PageContext(service, states, labels, selector)
        with gr.Tabs(elem_id="tabs") as tabs:
            with labels.make(gr.Tab, label=say("create"), id="create"):
                create = ImageTab(
                    context,
                    Task.GENERATE,
                    prompt="prompt",
                    run="draw",
                    texts=PROMPTS,
                    actions=("to_edit", "to_ask"),
                )
            with labels.make(gr.Tab, label=say("edit"), id="edit"):
                edit = ImageTab(
                    context,
                    Task.EDIT,
                    prompt="instruction",
                    run="change",
                    texts=INSTRUCTIONS,
                    actions=("again", "to_ask"),
                    example=example,
                )
            with labels.make(gr.Tab, label=say("ask"), id="ask"):
                ask = AskTab(context, example)
            with labels.make(gr.Tab, label=say("chat"), id="chat"):
                chat = ChatTab(context)
        assert edit.images is not None
        for source in (create, edit):
            for key, button in source.actions.items():
                name, field = ("ask", ask.images) if key == "to_ask" else ("edit", edit.images)
                _carry(context, button, source, field.gallery, tabs, name)
        remember_language(page, labels, selector)
        for tab in (create, edit, ask, chat):
            tab.connect(page)
        add_endpoints(context)
        page.unload(states.close)
    # The service has a queue of its own, which says when it is full; Gradio's must not hide that.
    page.queue(default_concurrency_limit=None, api_open=False)
    _fetch_nothing(page)
    return page


def _fetch_nothing(page: gr.Blocks) -> None:
    """Lets no component take an address where a file is expected: Gradio would download it."""

    def guarded(move: Callable[[Any], Awaitable[str | None]]) -> Callable[[Any], Awaitable[str | None]]:
        async def checked(path: Any) -> str | None:
            if re.match(r"\w+://", str(path)):
                raise gr.Error(" ".join(text(language, "no_address") for language in LANGUAGES))
            return await move(path)

        return checked

    for block in page.blocks.values():
        move = guarded(block.async_move_resource_to_block_cache)
        block.async_move_resource_to_block_cache = move  # type: ignore[method-assign, assignment]


def _carry(page: PageContext, button: Any, source: ImageTab, target: Any, tabs: gr.Tabs, name: str) -> None:
    """Makes a button take the chosen image to a field of another tab."""

    def carry(language: Language, files: list[str], chosen: int) -> list[Any]:
        path = chosen_path(files, chosen, language)
        return [gr.skip(), gr.skip()] if path is None else [[path], gr.Tabs(selected=name)]

    results = source.results
    button.click(carry, [page.language, results.files, results.chosen], [target, tabs], **INSTANT_EVENT)


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
        app: the app.
        service: the queue that generates.
        path: the path of the page. Routes that are added later below the same path are hidden by it.
        language: the language in which the page begins.
        name: the model's name, for the page's head.
        auth: names and passwords that may use it; everybody if not given.
    """
    page = create_page(service, language=language, name=name)
    page.has_launched = True  # else Gradio takes any path that a client writes into an event, and serves the file
    return gr.mount_gradio_app(app, page, path, auth=auth, head=FAVICON_LINK, **page_options())
