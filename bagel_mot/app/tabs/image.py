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
    PageError,
    RunButtons,
    example_pairs,
    example_texts,
    hint_line,
    settings_group,
    shown_errors,
    small_button,
    text_field,
    two_columns,
    warn,
)
from bagel_mot.app.controls import Controls
from bagel_mot.app.history import HistoryEntry, ImageHistory
from bagel_mot.app.image_files import known_settings, open_uploads, paths_of, read_metadata
from bagel_mot.app.remembered import remember_fields
from bagel_mot.app.results import ResultGallery
from bagel_mot.app.texts.language import Language, say, text
from bagel_mot.app.uploads import ImageField
from bagel_mot.task import Task


class ImageTab:
    """A tab that draws images.

    Attributes:
        images: the field for images to be changed; None on a tab that draws from a text alone.
        results: the images drawn.
        actions: buttons that carry the chosen image elsewhere, by the key of their text.
        fields: the components that a browser remembers.
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
            example: the file of an image that goes with the prompts, on a tab that takes images.
        """
        self._page, self._part, self._make = page, "create" if task == Task.GENERATE else str(task), page.labels.make
        self._controls = Controls(page, self._part, task)
        with two_columns() as (inputs, results):
            with inputs:
                self.images = None if example is None else ImageField(page, self._part, "pictures")
                self._prompt = text_field(page, self._part, prompt, autofocus=example is None)
                hint_line(page, self._part, self._prompt)
                self._buttons = RunButtons(page, self._part, run)
                if self.images is None or example is None:
                    example_texts(page, self._part, texts, self._prompt)
                else:
                    example_pairs(page, self._part, texts, self._prompt, self.images.gallery, example)
                count = self._build_settings()
            with results:
                self.results = ResultGallery(page, self._part)
                with self.results.actions:
                    self.actions = {key: small_button(page, self._part, key) for key in actions}
                self._history = ImageHistory(page, self._part, task)
        self.fields = [self._prompt, count, *self._controls.components]
        given = [self._prompt] if self.images is None else [self._prompt, self.images.gallery]
        self._given = len(given)
        gr.on(
            [self._buttons.run.click, self._prompt.submit],
            self._draw,
            [page.language, count, self._history.entries, *given, *self._controls.components],
            [*self._buttons.outputs, *self.results.outputs, *self._history.outputs],
            **LONG_EVENT,
        )

    def connect(self, blocks: gr.Blocks) -> None:
        """Connects what happens when the page is opened."""
        controls = self._controls.components
        self._history.connect(blocks, self.results, [self._prompt, *controls], self._restore_entry)
        if self.images is not None:
            self.images.connect(blocks)
        remember_fields(blocks, self._part, self.fields)

    def _build_settings(self) -> Any:
        """Builds presets, size and number of images, and all other settings folded away.

        Returns: the component with the number of images.
        """
        controls, limits, part = self._controls, self._page.service.limits, self._part
        controls.build_presets()
        with gr.Column(elem_classes="bagel-basics"):
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
                elem_classes="bagel-setting",
            )
        controls.build_groups()
        controls.connect()
        with settings_group(self._page, part, "restore_title"):
            file = self._make(
                gr.File,
                label=say("restore"),
                type="filepath",
                height=120,
                elem_id=f"{part}-restore-file",
            )
        outputs = [self._prompt, *controls.components]
        file.upload(self._restore, [self._page.language, file], outputs, **INSTANT_EVENT)
        return count

    def _restore_entry(self, language: Language, entry: HistoryEntry | None) -> list[Any]:
        """Prompt and settings of an entry of the history."""
        if entry is not None:
            with shown_errors(language):
                settings = known_settings(entry["settings"], entry["seed"], self._controls.task)
                return [entry["prompt"], *self._controls.updates(settings)]
        return [gr.skip() for _ in range(1 + len(self._controls.components))]

    def _restore(self, language: Language, path: str | None) -> list[Any]:
        """Prompt and settings of an image that was uploaded."""
        with shown_errors(language):
            if path is not None:
                prompt, settings = read_metadata(path, self._controls.task, self._page.service.limits.image_pixels)
                gr.Info(text(language, "restored"), title=text(language, "notice"))
                return [prompt, *self._controls.updates(settings)]
        return [gr.skip() for _ in range(1 + len(self._controls.components))]

    def _draw(
        self, request: gr.Request, language: Language, count: int, entries: Any, *values: Any
    ) -> Iterator[dict[Any, Any]]:
        tab, results = self._page.tabs.of(request), self.results
        (prompt, *gallery), settings = values[: self._given], values[self._given :]
        with tab.generating(self._part, int(count)) as generation:
            shown: dict[Any, Any] = {}
            with shown_errors(language):
                chosen = self._controls.settings(settings)
                paths = [path for one in gallery for path in paths_of(one)]
                if gallery and not paths:
                    raise PageError(language, "no_picture")
                if not (prompt or "").strip():
                    raise PageError(language, "nothing_written")
                inputs = [*open_uploads(paths, self._page.service), prompt]
                generation.start(self._page.service, inputs, "image", chosen)
                yield {**self._buttons.show(True), **results.begin()}
                shown = results.stopped("")
                for _ in generation.follow():
                    yield {results.progress: view.progress_html(generation, language)}
                finished = generation.results()
                if generation.stopped:
                    shown = results.stopped(view.stopped_html(generation, language))
                if finished:
                    tab.seeds[self._part] = finished[0].seed
                    found, new = results.show(finished, language)
                    if generation.stopped:
                        del found[results.progress]
                    shown |= found | self._history.added(entries, new)
            yield {**shown, **self._buttons.show(False)}


def chosen_path(files: list[str], chosen: int, language: Language) -> str | None:
    """The file of the image that was clicked on, or else of the first; None, and a warning, where there is none."""
    if not files:
        warn(text(language, "nothing_drawn"), language)
        return None
    return files[chosen] if 0 <= chosen < len(files) else files[0]
