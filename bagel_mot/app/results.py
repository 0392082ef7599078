"""The images of a tab: as they form, finished, and those of its history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from bagel_mot.app import view
from bagel_mot.app.context import INSTANT_EVENT, PageContext, hidden_while_empty
from bagel_mot.app.history import HistoryEntry, entry_of, file_of
from bagel_mot.app.image_files import keep
from bagel_mot.app.texts.language import Language, say, text
from bagel_mot.inference.result import Result


class ResultGallery:
    """The large images of a tab.

    Attributes:
        progress: progress, and the images as they form.
        files: the files of the finished images.
        facts: a line about how they were made.
        actions: the row of buttons below them; a caller fills it.
        chosen: the number of the image that was clicked on.
        outputs: the components that `begin`, `show` and `stopped` update.
        shown_outputs: the components that `show_entry` updates.
    """

    def __init__(self, page: PageContext, part: str) -> None:
        self._empty = page.labels.make(gr.HTML, value=say(f"{part}_empty"), elem_id=f"{part}-empty")
        self.progress = hidden_while_empty(f"{part}-progress")
        with gr.Column(elem_id=f"{part}-gallery", elem_classes="bagel-gallery"):
            # Two, because a gallery that has shown one image large goes on so with the next ones.
            self._large = _gallery(page, selected_index=0, preview=True)
            self._grid = _gallery(page, columns=2)
        self.facts = hidden_while_empty(f"{part}-facts")
        self.actions = gr.Row(elem_classes="bagel-small", visible=False)
        self.chosen, self.files = gr.State(0), gr.State([])
        self.shown_outputs: list[Any] = [
            self._empty,
            self._large,
            self._grid,
            self.facts,
            self.actions,
            self.chosen,
            self.files,
        ]
        self.outputs: list[Any] = [self.progress, *self.shown_outputs]
        self._grid.select(_index, None, self.chosen, **INSTANT_EVENT)

    def begin(self) -> dict[Any, Any]:
        """Updates that make room for images that form."""
        hidden = {part: _shown(False) for part in (self._empty, self._large, self._grid, self.actions)}
        return {**hidden, self.facts: "", self.files: []}

    def stopped(self, progress: str) -> dict[Any, Any]:
        """Updates for when nothing came of it: how far it went, or "" for the place as it was in the beginning."""
        return {self.progress: progress, self._empty: _shown(not progress)}

    def show(self, results: Sequence[Result], language: Language) -> tuple[dict[Any, Any], list[HistoryEntry]]:
        """Updates that show finished images, and their entries of a history."""
        made = [(keep(one.image, f"bagel-{one.seed}"), one) for one in results if one.image is not None]
        files = [(path, text(language, "seed_is", seed=one.seed)) for path, one in made]
        shown = self._images(files, view.facts_html(results, language))
        updates = dict(zip(self.shown_outputs, shown, strict=True))
        return {self.progress: "", **updates}, [entry_of(one, path) for path, one in made]

    def show_entry(self, entry: HistoryEntry | None, language: Language) -> list[Any]:
        """Updates of `shown_outputs` that show an image of the history; None changes nothing."""
        if entry is None:
            return [gr.skip() for _ in self.shown_outputs]
        facts = view.entry_html(entry["prompt"], entry["seed"], entry["size"], language)
        return self._images([(file_of(entry), None)], facts)

    def _images(self, files: Sequence[tuple[str, str | None]], facts: str) -> list[Any]:
        """Updates of `shown_outputs`: one image large, or several side by side, each with its caption."""
        paths, several = [path for path, _ in files], len(files) > 1
        large = gr.update(value=paths, visible=True, selected_index=0, preview=True)
        grid = gr.update(value=list(files), visible=True)
        return [
            _shown(False),
            _shown(False) if several else large,
            grid if several else _shown(False),
            facts,
            _shown(True),
            0,
            paths,
        ]


def _gallery(page: PageContext, **properties: Any) -> gr.Gallery:
    return page.labels.make(
        gr.Gallery,
        label=say("results"),
        show_label=False,
        interactive=False,
        visible=False,
        format="png",
        object_fit="contain",
        buttons=["download", "fullscreen"],
        **properties,
    )


def _shown(visible: bool) -> Any:
    return gr.update(visible=visible)


def _index(event: gr.SelectData) -> int:
    return int(event.index)
