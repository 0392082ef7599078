"""The endpoints that programs call with `gradio_client`: one for each task, with the settings by their own names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import FileData
from gradio.events import api

from bagel_mot.app.context import PageContext
from bagel_mot.app.image_files import keep, open_uploads
from bagel_mot.errors import BagelError, ImageError
from bagel_mot.inference.result import Result


def add_endpoints(page: PageContext) -> None:
    """Adds `/generate`, `/edit` and `/ask` to the page that is being built."""
    service = page.service

    def run(images: Sequence[Any], text: str, output: str, n: int, settings: Any) -> list[Result]:
        try:
            given = settings or {}
            if not isinstance(given, dict):
                raise BagelError(f"settings is {json.dumps(settings)[:60]}: it must be an object of settings by name.")
            inputs: list[Any] = [*open_uploads([_path(one) for one in images], service), text]
            batch = service.start(inputs, output=output, n=n, **given)
            try:
                return [ticket.result() for ticket in batch.tickets]
            finally:
                batch.cancel()  # nothing where all of them are done
        except BagelError as error:
            raise gr.Error(str(error), print_exception=False) from error

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

    for endpoint in (generate, edit, ask):
        api(endpoint, api_name=endpoint.__name__)


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
