"""The endpoints that programs call with `gradio_client`: one for each task, with the settings by their own names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import FileData
from gradio.events import api

from bagel_mot.app.context import PageContext
from bagel_mot.app.image_files import keep, open_uploads
from bagel_mot.app.tabs.chat import check_room
from bagel_mot.errors import BagelError, ImageError
from bagel_mot.inference.result import Result
from bagel_mot.inference.settings import resolve
from bagel_mot.task import Task


def add_endpoints(page: PageContext) -> None:
    """Adds `/generate`, `/edit`, `/ask` and `/chat` to the page that is being built."""
    service = page.service

    def run(images: Sequence[Any], text: str, output: str, n: int, settings: Any) -> list[Result]:
        with _told():
            inputs: list[Any] = [*open_uploads([_path(one) for one in images], service), text]
            batch = service.start(inputs, output=output, n=n, **_named(settings))
            try:
                return [ticket.result() for ticket in batch.tickets]
            finally:
                batch.cancel()  # nothing where all of them are done

    def generate(prompt: str, n: int = 1, settings: dict | None = None) -> list[FileData]:
        """Draws `n` images from a text. Settings are by name, such as {"seed": 7, "num_timesteps": 30}."""
        return _files(run([], prompt, "image", n, settings))

    def edit(
        images: list[FileData],
        instruction: str,
        n: int = 1,
        settings: dict | None = None,
    ) -> list[FileData]:
        """Changes images as an instruction says. `images` is a list of `handle_file(path)`."""
        return _files(run(_given(images, "edit"), instruction, "image", n, settings))

    def ask(images: list[FileData], question: str, settings: dict | None = None) -> str:
        """Answers a question about images. `images` is a list of `handle_file(path)`, and may be empty."""
        return run(images or [], question, "text", 1, settings)[0].text or ""

    def chat(
        request: gr.Request,
        message: str,
        images: list[FileData] | None = None,
        draw: bool = False,
        new: bool = False,
        settings: dict | None = None,
    ) -> dict:
        """Goes on with the conversation of this client: answers a message and images, or draws if `draw` is true.

        `new` begins another conversation, and forgets the one so far. `message` may be empty where there are images.
        Returns {"text": the answer or "", "images": a list with the image drawn, or without any}.
        """
        tab = page.tabs.of(request)
        with _told():
            if tab.busy("chat"):
                raise BagelError("this client's last turn is still at work: wait for it.")
            with tab.generating("chat") as generation:
                if new:
                    tab.close_chat()
                inputs: list[Any] = open_uploads([_path(one) for one in images or []], service)
                inputs += [message] if message else []
                check_room(service, "en")
                task, output = (Task.GENERATE, "image") if draw else (Task.ASK, "text")
                think = resolve(task, {}, service.bagel.defaults.of(task)).think
                result = tab.chat.turn(service, generation, inputs, output, {"think": think, **_named(settings)})
        return {"text": result.text, "images": _files([result])}

    for endpoint in (generate, edit, ask, chat):
        api(endpoint, api_name=endpoint.__name__)


@contextmanager
def _told() -> Iterator[None]:
    """Tells a client what was wrong in one sentence."""
    try:
        yield
    except BagelError as error:
        raise gr.Error(str(error), print_exception=False) from error
    except CancelledError as error:
        raise gr.Error("the turn was stopped, since the client went away.", print_exception=False) from error


def _named(settings: Any) -> dict[str, Any]:
    """Settings by name.

    Raises:
        BagelError: they are something else.
    """
    given = settings or {}
    if not isinstance(given, dict):
        raise BagelError(f"settings is {json.dumps(settings)[:60]}: it must be an object of settings by name.")
    return given


def _given(images: Any, task: str) -> list[Any]:
    if not images:
        raise gr.Error(f"images is empty: {task} needs one at least.", print_exception=False)
    return list(images)


def _path(image: Any) -> str:
    """The file that a client uploaded.

    Raises:
        ImageError: it is something else.
    """
    found = image.get("path") if isinstance(image, dict) else getattr(image, "path", None)
    if not isinstance(found, str):
        raise ImageError("an image is not an uploaded file: give handle_file(path).")
    return found


def _files(results: Sequence[Result]) -> list[Any]:
    """The images as files that a client downloads."""
    paths = [keep(one.image, f"bagel-{one.seed}") for one in results if one.image is not None]
    return [{"path": path, "orig_name": Path(path).name, "meta": {"_type": "gradio.FileData"}} for path in paths]
