"""The field for images that are given: all of them visible, numbered, to be moved and removed one by one."""

from __future__ import annotations

import html
from contextlib import suppress
from typing import Any

import gradio as gr

from bagel_mot.app.context import INSTANT_EVENT, PageContext, shown_errors, small_button, warn
from bagel_mot.app.image_files import GalleryValue, open_uploads, paths_of
from bagel_mot.app.remembered import browser_state
from bagel_mot.app.texts.language import Language, Spoken, text
from bagel_mot.errors import BagelError


class ImageField:
    """A field for images: dropped, chosen or pasted. What is in it is what is used, in this order.

    Attributes:
        gallery: the component with the images.
        chosen: the number of the image that was clicked on.
    """

    def __init__(self, page: PageContext, part: str, key: str) -> None:
        make, self._page, self._part, self._key = page.labels.make, page, part, key
        own = f"{part}-pictures"
        with gr.Column(elem_classes="bagel-images"):
            # Not among the labels, which would put the title without a number back: `_count` knows the language.
            self._title = gr.HTML(self._heading(page.labels.language, 0), elem_id=f"{own}-title")
            # Files of all types are let in, so that the page's own words can say which of them is not an image.
            self.gallery = make(
                gr.Gallery,
                label=Spoken(lambda language: text(language, key)),
                show_label=False,
                type="filepath",
                file_types=["file"],
                interactive=True,
                columns=3,
                fit_columns=False,
                allow_preview=False,
                object_fit="contain",
                buttons=[],
                sources=["upload", "clipboard"],
                elem_id=own,
                elem_classes="bagel-uploads",
            )
            self.chosen = gr.State(0)
            with gr.Row(elem_classes="bagel-small", visible=False, elem_id=f"{own}-moves") as self._moves:
                earlier, later = (small_button(page, part, key) for key in ("earlier", "later"))
        gallery = self.gallery
        gallery.select(_index, None, self.chosen, **INSTANT_EVENT)
        outputs = [gallery, self.chosen]
        for button, step in ((earlier, -1), (later, 1)):
            button.click(_mover(step), outputs, outputs, **INSTANT_EVENT)
        gallery.upload(self._check, [page.language, gallery], gallery, **INSTANT_EVENT)
        self._counted = [self._title, self._moves]
        for event in (gallery.change, page.language.change):
            event(self._count, [page.language, gallery], self._counted, **INSTANT_EVENT)

    def connect(self, blocks: gr.Blocks) -> None:
        """Keeps the images over a reload: the browser their names, the server the files, as long as it has them."""
        state = browser_state(f"{self._part}-pictures", [])
        state.render()

        def load(stored: Any, language: Language) -> list[Any]:
            if not stored:
                return [gr.skip() for _ in (self.gallery, *self._counted)]
            images = self.put_back(stored, language)
            return [images, *self._count(language, images)]  # a tab that was not opened yet tells of no change

        self.gallery.change(paths_of, self.gallery, state, **INSTANT_EVENT)
        blocks.load(load, [state, self._page.language], [self.gallery, *self._counted], **INSTANT_EVENT)

    def put_back(self, paths: Any, language: Language) -> list[tuple[str, str | None]]:
        """Images of an earlier visit that the server still has; how many are gone is said in a sentence."""
        given = [one for one in paths if isinstance(one, str)] if isinstance(paths, list) else []
        kept = []
        for path in given[: self._page.service.limits.images]:
            with suppress(BagelError):
                open_uploads([path], self._page.service)
                kept.append(path)
        if gone := len(given) - len(kept):
            warn(text(language, "pictures_gone", gone=gone, given=len(given)), language)
        return numbered(kept)

    def _heading(self, language: Language, count: int) -> str:
        number = f" <b>{count}</b>" if count else ""
        return f'<div class="bagel-title">{html.escape(text(language, self._key))}{number}</div>'

    def _count(self, language: Language, gallery: GalleryValue) -> list[Any]:
        count = len(paths_of(gallery))
        return [self._heading(language, count), gr.update(visible=count > 1)]

    def _check(self, language: Language, gallery: GalleryValue) -> Any:
        """Keeps the images among the uploads; a file of another kind is named and left out."""
        kept = []
        for path in paths_of(gallery):
            with shown_errors(language):
                open_uploads([path], self._page.service)
                kept.append(path)
        return numbered(kept)


def numbered(paths: list[str]) -> list[tuple[str, str | None]]:
    """Images for a field; where there are several, each with its number."""
    return [(path, str(number) if len(paths) > 1 else None) for number, path in enumerate(paths, 1)]


def _index(event: gr.SelectData) -> int:
    return int(event.index)


def _mover(step: int) -> Any:
    def move(gallery: GalleryValue, chosen: int) -> list[Any]:
        """Exchanges the chosen image with its neighbour; it stays chosen."""
        paths = paths_of(gallery)
        target = chosen + step
        if not (0 <= chosen < len(paths) and 0 <= target < len(paths)):
            return [gr.skip(), gr.skip()]
        paths[chosen], paths[target] = paths[target], paths[chosen]
        return [gr.update(value=numbered(paths), selected_index=target), target]

    return move
