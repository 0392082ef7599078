"""Earlier images of a tab: a strip of thumbnails with their prompts and settings, kept in the browser over reloads.

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
from bagel_mot.app.remembered import browser_state
from bagel_mot.app.texts.language import Language, say
from bagel_mot.errors import BagelError
from bagel_mot.images import open_image
from bagel_mot.inference.result import Result
from bagel_mot.task import Task

MAX_ENTRIES = 24
"""Images that one tab keeps at most; a browser gives all of its storage of a page about 5 MB."""
_THUMBNAIL = 192  # pixels
_MAX_THUMBNAIL = 64 * 1024  # characters

HistoryEntry = dict[str, Any]
"""An image of the history as JSON: "path", "thumbnail" (base64), "prompt", "settings", "seed", "size"."""


def entry_of(result: Result, path: str) -> HistoryEntry:
    """The entry of a result whose image lies at `path`."""
    assert result.image is not None, "the history holds images"
    small = result.image.copy()
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    data = io.BytesIO()
    small.convert("RGB").save(data, "WEBP", quality=75)
    made = result.metadata()
    return {
        "path": path,
        "thumbnail": base64.b64encode(data.getvalue()).decode(),
        "prompt": made.get("prompt", ""),
        "settings": made.get("settings", "{}"),
        "seed": str(result.seed),
        "size": f"{result.image.width}×{result.image.height}",
    }


class ImageHistory:
    """The strip of a tab, below its results.

    Attributes:
        entries: the entries, newest first, in the browser's storage.
        outputs: the components that `added` updates.
    """

    def __init__(self, page: PageContext, part: str, task: Task) -> None:
        make, self._task = page.labels.make, task
        self.entries = browser_state(f"{part}-history", [])
        self._shown = gr.State(None)
        with gr.Column(visible=False, elem_id=f"{part}-history-box", elem_classes="bagel-history") as self._box:
            with gr.Row(elem_classes="bagel-small bagel-history-head"):
                make(gr.HTML, value=say("history"))
                self._use = small_button(page, part, "use_settings", visible=False)
                self._clear = small_button(page, part, "clear_history")
            self.strip = make(
                gr.Gallery,
                label=say("history_label"),
                show_label=False,
                interactive=False,
                allow_preview=False,
                columns=MAX_ENTRIES,
                object_fit="cover",
                buttons=[],
                elem_id=f"{part}-history",
                elem_classes="bagel-strip",
            )
            self._sure = confirmed(page, part, "clear_history", self._clear)
        self.outputs: list[Any] = [self.entries, self._box, self.strip, self._use, self._shown]

    def connect(
        self, blocks: gr.Blocks, page: PageContext, results: Any, prompt: Any, controls: Any, restored: Any
    ) -> None:
        """Lets the strip show its entries in the results, and put prompt and settings into the fields."""
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
            return [gr.update(visible=bool(found)), thumbnails(found), *latest, gr.update(visible=bool(found)), 0]

        def clear() -> list[Any]:
            return [[], gr.update(visible=False), [], gr.update(visible=False), None]

        self.strip.select(select, [page.language, self.entries], shown_parts, **INSTANT_EVENT)
        self._use.click(use, [page.language, self.entries, self._shown], [prompt, *controls], **INSTANT_EVENT)
        self._sure.click(clear, None, self.outputs, **INSTANT_EVENT)
        blocks.load(load, [page.language, self.entries], [self._box, self.strip, *shown_parts], **INSTANT_EVENT)

    def added(self, entries: Any, new: Sequence[HistoryEntry]) -> dict[Any, Any]:
        """Updates that put new entries before those there are."""
        found = [*new, *self.checked(entries)][:MAX_ENTRIES]
        return {
            self.entries: found,
            self._box: gr.update(visible=True),
            self.strip: thumbnails(found),
            self._use: gr.update(visible=True),
            self._shown: 0,
        }

    def _at(self, entries: Any, index: int) -> HistoryEntry | None:
        found = self.checked(entries)
        return found[index] if 0 <= index < len(found) else None

    def checked(self, entries: Any) -> list[HistoryEntry]:
        """The entries that a browser kept, without those that another version wrote or somebody has changed."""
        return [one for one in entries if _usable(one, self._task)] if isinstance(entries, list) else []


def file_of(entry: HistoryEntry) -> str:
    """The file of an entry's image; once that is gone, one of its thumbnail."""
    try:
        path = uploaded(entry["path"])
        with Image.open(path):
            return path
    except (BagelError, OSError):
        return keep(_thumbnail(entry), "thumbnail")


def thumbnails(entries: Sequence[HistoryEntry]) -> list[Image.Image]:
    """The images of the strip."""
    return [_thumbnail(entry) for entry in entries]


def _thumbnail(entry: HistoryEntry) -> Image.Image:
    return open_image(base64.b64decode(entry["thumbnail"], validate=True), _THUMBNAIL**2)


def _usable(entry: Any, task: Task) -> bool:
    wanted = ("path", "thumbnail", "prompt", "settings", "seed", "size")
    if not isinstance(entry, dict) or not all(isinstance(entry.get(name), str) for name in wanted):
        return False
    try:
        known_settings(entry["settings"], entry["seed"], task)
        return len(entry["thumbnail"]) <= _MAX_THUMBNAIL and bool(_thumbnail(entry))
    except ValueError:  # BagelError and what base64 raises
        return False
