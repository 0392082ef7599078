"""Earlier results of a tab, kept in the browser over reloads; for images a strip of thumbnails.

An image itself stays a file of the server, under a name that nobody can guess, as long as the page keeps its files.
After that the thumbnail is shown, and prompt, settings and seed draw the same image again.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import gradio as gr
from PIL import Image

from bagel_mot.app.context import INSTANT_EVENT, PageContext, confirmed, small_button
from bagel_mot.app.image_files import keep, known_settings, uploaded
from bagel_mot.app.remembered import browser_state, within_storage
from bagel_mot.app.texts.language import Language, say
from bagel_mot.errors import BagelError
from bagel_mot.images import open_image
from bagel_mot.inference.result import Result
from bagel_mot.task import Task

MAX_ENTRIES = 24
"""Results that one tab keeps at most."""
_THUMBNAIL = 192  # pixels
_MAX_THUMBNAIL = 64 * 1024  # characters

HistoryEntry = dict[str, Any]
"""A result as JSON; an image: "path", "thumbnail" (base64), "prompt", "settings", "seed", "size"."""


def entry_of(result: Result, path: str) -> HistoryEntry:
    """The entry of a result whose image lies at `path`."""
    assert result.image is not None, "the history holds images"
    made = result.metadata()
    return {
        "path": path,
        "thumbnail": thumbnail_of(result.image),
        "prompt": made.get("prompt", ""),
        "settings": made.get("settings", "{}"),
        "seed": str(result.seed),
        "size": f"{result.image.width}×{result.image.height}",
    }


class TabHistory:
    """Earlier results of a tab: a list below the results, in the browser's storage, newest first.

    A kind of history says what its list looks like (`_list`, `_listed`) and which entries it takes (`usable`).

    Attributes:
        entries: the entries, in the browser's storage.
        list: the component that shows them, and lets one be chosen.
        outputs: the components that `added` updates.
    """

    title, use, clear = "history", "use_settings", "clear_history"  # the keys of its texts

    def __init__(self, page: PageContext, part: str, task: Task) -> None:
        self._page, self._part, self.task = page, part, task
        make = page.labels.make
        self.entries = browser_state(f"{part}-history", [])
        self._shown = gr.State(None)
        with gr.Column(visible=False, elem_id=f"{part}-history-box", elem_classes="bagel-history") as self._box:
            with gr.Row(elem_classes="bagel-small bagel-history-head"):
                make(gr.HTML, value=say(self.title))
                self._use = small_button(page, part, self.use, visible=False)
                self._clear = small_button(page, part, self.clear)
            self.list = self._list()
            self._sure = confirmed(page, part, self.clear, self._clear)
        self.outputs: list[Any] = [self.entries, self._box, self.list, self._use, self._shown]

    def _list(self) -> Any:
        """Builds the component with the entries."""
        raise NotImplementedError

    def _listed(self, entries: Sequence[HistoryEntry]) -> Any:
        """The update of that component."""
        raise NotImplementedError

    def usable(self, entry: Any) -> bool:
        """Whether an entry is one that this version wrote, unchanged."""
        raise NotImplementedError

    def connect(self, blocks: gr.Blocks, results: Any, fields: Sequence[Any], restored: Any) -> None:
        """Lets the list show its entries in the results, and put what an entry was made from into the fields.

        Args:
            blocks: the page.
            results: the place of the results, with `shown_outputs` and `show_entry`.
            fields: the fields.
            restored: a function of the language and an entry that returns their values.
        """
        page = self._page
        self.entries.render()
        shown_parts = [*results.shown_outputs, self._use, self._shown]

        def select(language: Language, entries: Any, event: gr.SelectData) -> list[Any]:
            index = int(event.index)
            return [*results.show_entry(self._at(entries, index), language), gr.update(visible=True), index]

        def use(language: Language, entries: Any, shown: int | None) -> list[Any]:
            return restored(language, self._at(entries, shown or 0))

        def load(language: Language, entries: Any) -> list[Any]:
            found = self.checked(entries)
            latest = results.show_entry(found[0] if found else None, language)
            return [gr.update(visible=bool(found)), self._listed(found), *latest, gr.update(visible=bool(found)), 0]

        def clear() -> list[Any]:
            return [[], gr.update(visible=False), self._listed([]), gr.update(visible=False), None]

        self.list.select(select, [page.language, self.entries], shown_parts, **INSTANT_EVENT)
        self._use.click(use, [page.language, self.entries, self._shown], list(fields), **INSTANT_EVENT)
        self._sure.click(clear, None, self.outputs, **INSTANT_EVENT)
        blocks.load(load, [page.language, self.entries], [self._box, self.list, *shown_parts], **INSTANT_EVENT)

    def added(self, entries: Any, new: Sequence[HistoryEntry]) -> dict[Any, Any]:
        """Updates that put new entries before those there are."""
        found = within_storage([*new, *self.checked(entries)][:MAX_ENTRIES])
        return {
            self.entries: found,
            self._box: gr.update(visible=bool(found)),
            self.list: self._listed(found),
            self._use: gr.update(visible=bool(found)),
            self._shown: 0,
        }

    def _at(self, entries: Any, index: int) -> HistoryEntry | None:
        found = self.checked(entries)
        return found[index] if 0 <= index < len(found) else None

    def checked(self, entries: Any) -> list[HistoryEntry]:
        """The entries that a browser kept, without those that another version wrote or somebody has changed."""
        return [one for one in entries if self.usable(one)][:MAX_ENTRIES] if isinstance(entries, list) else []


class ImageHistory(TabHistory):
    """A strip of thumbnails."""

    def _list(self) -> Any:
        return self._page.labels.make(
            gr.Gallery,
            label=say("history_label"),
            show_label=False,
            interactive=False,
            allow_preview=False,
            columns=MAX_ENTRIES,
            object_fit="cover",
            buttons=[],
            elem_id=f"{self._part}-history",
            elem_classes="bagel-strip",
        )

    def _listed(self, entries: Sequence[HistoryEntry]) -> Any:
        return thumbnails(entries)

    def usable(self, entry: Any) -> bool:
        wanted = ("path", "thumbnail", "prompt", "settings", "seed", "size")
        if not isinstance(entry, dict) or not all(isinstance(entry.get(name), str) for name in wanted):
            return False
        try:
            known_settings(entry["settings"], entry["seed"], self.task)
            return bool(opened_thumbnail(entry["thumbnail"]))
        except ValueError:  # BagelError and what base64 raises
            return False


def thumbnail_of(image: Image.Image, side: int = _THUMBNAIL) -> str:
    """A small copy of an image, for a browser's storage: WEBP in base64."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    data = io.BytesIO()
    small.save(data, "WEBP", quality=75)
    return base64.b64encode(data.getvalue()).decode()


def opened_thumbnail(thumbnail: str) -> Image.Image:
    """The small copy.

    Raises:
        ValueError: the text is something else.
    """
    if len(thumbnail) > _MAX_THUMBNAIL:
        raise ValueError("this is no thumbnail")
    return open_image(base64.b64decode(thumbnail, validate=True), _THUMBNAIL**2)


def file_of(entry: HistoryEntry) -> str:
    """The file of an entry's image; once that is gone, one of its thumbnail."""
    try:
        path = uploaded(entry["path"])
        with Image.open(path):
            return path
    except (BagelError, OSError):
        return keep(opened_thumbnail(entry["thumbnail"]), "thumbnail")


def thumbnails(entries: Sequence[HistoryEntry]) -> list[Image.Image]:
    """The images of the strip."""
    return [opened_thumbnail(entry["thumbnail"]) for entry in entries]
