"""Create and Edit: images from a text, or from images and a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    text_field,
    three_columns,
    warn,
)
from bagel_mot.app.controls import Controls
from bagel_mot.app.image_files import GalleryValue, keep, open_uploads, paths_of, read_metadata, uploaded
from bagel_mot.app.texts.language import Language, say, text
from bagel_mot.errors import BagelError
from bagel_mot.inference.result import Result
from bagel_mot.task import Task


class ResultGallery:
    """The images of a tab as they form and when they are finished.

    Attributes:
        progress: progress, and the images as they form.
        gallery: finished images.
        facts: a line about how they were made.
        chosen: the number of the image that was clicked on.
    """

    def __init__(self, page: PageContext, part: str) -> None:
        self.progress = hidden_while_empty(f"{part}-progress")
        self.gallery = page.labels.make(
            gr.Gallery,
            label=say("results"),
            interactive=False,
            format="png",
            columns=1,
            height=500,
            elem_classes="bagel-gallery",
            object_fit="contain",
            buttons=["download", "fullscreen"],
            elem_id=f"{part}-gallery",
        )
        self.facts = hidden_while_empty(f"{part}-facts")
        self.chosen = gr.State(0)
        self.outputs: list[Any] = [self.progress, self.gallery, self.facts, self.chosen]
        self.gallery.select(_index, None, self.chosen, **INSTANT_EVENT)

    def show(self, results: Sequence[Result], language: Language) -> dict[Any, Any]:
        """Updates that show finished images."""
        several = len(results) > 1
        files = [
            (
                keep(result.image, f"bagel-{result.seed}"),
                text(language, "seed_is", seed=result.seed) if several else None,
            )
            for result in results
            if result.image is not None
        ]
        return {
            self.gallery: gr.update(
                value=files,
                visible=True,
                columns=2 if several else 1,
                selected_index=None if several else 0,
                preview=not several,
            ),
            self.facts: view.facts_html(results, language),
            self.chosen: 0,
        }


def _index(event: gr.SelectData) -> int:
    return int(event.index)


class ImageTab:
    """A tab that draws images.

    Attributes:
        images: the field for images to be changed; None on a tab that draws from a text alone.
        results: the images drawn.
        actions: buttons that carry the chosen image elsewhere, by the key of their text.
    """

    def __init__(
        self,
        page: PageContext,
        task: Task,
        *,
        prompt: str,
        run: str,
        texts: list[str],
        actions: Sequence[str],
        example: str | None = None,
    ) -> None:
        """Builds the tab of a task.

        Args:
            page: the page's context.
            task: the task whose settings it has.
            prompt: the key of the prompt's label.
            run: the key of the text on the button that draws.
            texts: prompts to click on.
            actions: the keys of `actions`.
            example: the file of an image to begin with, on a tab that takes images.
        """
        self._page, self._part, self._make = page, "create" if task == Task.GENERATE else str(task), page.labels.make
        self._controls = Controls(page, self._part, task)
        with three_columns() as (inputs, results, settings):
            with inputs:
                self.images = None if example is None else upload_field(page, self._part, "pictures", example)
                self._prompt = text_field(page, self._part, prompt, autofocus=example is None)
                self._buttons = RunButtons(page, self._part, run)
                example_texts(page, self._part, texts, self._prompt)
            with settings:
                count = self._build_settings()
            with results:
                self.results = ResultGallery(page, self._part)
                with gr.Row(elem_classes="bagel-small"):
                    self.actions = {key: small_button(page, self._part, key) for key in actions}
        given = [self._prompt] if self.images is None else [self._prompt, self.images]
        self._given = len(given)
        gr.on(
            [self._buttons.run.click, self._prompt.submit],
            self._draw,
            [page.language, count, *given, *self._controls.components],
            [*self._buttons.outputs, *self.results.outputs],
            **LONG_EVENT,
        )

    def _build_settings(self) -> Any:
        """Builds the number of images, presets, size, thinking, seed, and all other settings folded away.

        Returns: the component with the number of images.
        """
        controls, limits, part = self._controls, self._page.service.limits, self._part
        controls.build_presets()
        controls.build("size")
        count = self._make(
            gr.Slider,
            minimum=1,
            maximum=max(min(limits.n, limits.queue), 2),  # a slider needs two ends
            step=1,
            value=1,
            label=say("count"),
            info=say("count_info"),
            elem_id=f"{part}-count",
        )
        controls.build("think", "seed")
        controls.build_seed_buttons()
        with settings_accordion(self._page, part):
            controls.build()
        controls.connect()
        with self._make(gr.Accordion, label=say("restore_title"), open=False, elem_id=f"{part}-restore"):
            file = self._make(
                gr.File,
                label=say("restore"),
                file_types=["image"],
                type="filepath",
                height=120,
                elem_id=f"{part}-restore-file",
            )
        outputs = [self._prompt, *controls.components]
        file.upload(self._restore, [self._page.language, file], outputs, **INSTANT_EVENT)
        return count

    def _restore(self, language: Language, path: str | None) -> list[Any]:
        """Prompt and settings of an image that was uploaded."""
        with shown_errors(language):
            if path is not None:
                prompt, settings = read_metadata(path, self._controls.task, self._page.service.limits.image_pixels)
                gr.Info(text(language, "restored"))
                return [prompt, *self._controls.updates(settings)]
        return [gr.skip() for _ in range(1 + len(self._controls.components))]

    def _draw(self, request: gr.Request, language: Language, count: int, *values: Any) -> Iterator[dict[Any, Any]]:
        tab, results = self._page.tabs.of(request), self.results
        (prompt, *gallery), settings = values[: self._given], values[self._given :]
        with tab.generating(self._part, int(count)) as generation:
            yield {**self._buttons.show(True), results.gallery: gr.update(visible=False), results.facts: ""}
            shown: dict[Any, Any] = {results.progress: "", results.gallery: gr.update(visible=True)}
            with shown_errors(language):
                chosen = self._controls.settings(settings)
                paths = [path for one in gallery for path in paths_of(one)]
                if gallery and not paths:
                    raise BagelError(text(language, "no_picture"))
                inputs = [*open_uploads(paths, self._page.service), prompt]
                generation.start(self._page.service, inputs, "image", chosen)
                for _ in generation.follow():
                    yield {results.progress: view.progress_html(generation, language)}
                finished = generation.results()
                if generation.stopped:
                    shown[results.progress] = view.stopped_html(generation, language)
                    shown[results.gallery] = gr.update(value=[], visible=False)
                if finished:
                    tab.seeds[self._part] = finished[0].seed
                    shown |= results.show(finished, language)
            yield {**shown, **self._buttons.show(False)}


def upload_field(page: PageContext, part: str, key: str, example: str) -> Any:
    """A field for images: dropped, chosen or pasted. They are opened when they are used, so that the message about a
    broken one can be shown in words.
    """
    return page.labels.make(
        gr.Gallery,
        value=[example],
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


def chosen_path(gallery: GalleryValue, chosen: int, language: Language) -> str | None:
    """The file of the image that was clicked on, or else of the first; None, and a warning, where there is none."""
    paths = paths_of(gallery)
    if not paths:
        warn(text(language, "nothing_drawn"))
        return None
    with shown_errors(language):
        return uploaded(paths[chosen] if 0 <= chosen < len(paths) else paths[0])
    return None
