"""Fields and settings that a browser keeps over reloads, in its own storage and not on the server."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import gradio as gr

from bagel_mot.app.context import INSTANT_EVENT
from bagel_mot.app.texts.language import LANGUAGES, Labels, Language

_SECRET = "bagel"
"""Gradio enciphers what it stores. The key is told to every browser, so it only has to be the same after a restart."""


_SHARE = 600_000
"""Characters of one list of entries. A browser gives a page about 5 million, and they are a third longer enciphered."""


def browser_state(key: str, default: Any = None) -> gr.BrowserState:
    """A value in the browser's storage under a name of its own. It has to be rendered outside of the tabs: what is in a
    tab that has not been opened yet is not read when the page is.
    """
    return gr.BrowserState(default, storage_key=f"bagel-{key}", secret=_SECRET, render=False)


def within_storage(entries: Sequence[Any]) -> list[Any]:
    """The first entries that find room in a browser's storage, of which every list of entries has its share."""
    room, kept = _SHARE, []
    for entry in entries:
        room -= len(json.dumps(entry))
        if room < 0:
            break
        kept.append(entry)
    return kept


def remember_fields(blocks: gr.Blocks, key: str, components: Sequence[Any]) -> None:
    """Keeps the values of fields, and puts them back when the page is opened again.

    Values belong to these fields with these defaults: those of another checkpoint or version are left alone.
    """
    kinds = [(one.elem_id, one.value) for one in components]
    state = browser_state(f"{key}-{hashlib.sha256(repr(kinds).encode()).hexdigest()[:12]}")

    def put_back(stored: Any) -> Any:
        values = stored.get("values") if isinstance(stored, dict) else None
        if not isinstance(values, list) or len(values) != len(components):
            return [gr.skip() for _ in components]
        return values

    state.render()
    triggers = [one.change for one in components]
    keep = "(...values) => ({values})"  # in the browser: nothing is sent for it
    gr.on(triggers, None, list(components), state, js=keep, **INSTANT_EVENT)
    blocks.load(put_back, state, list(components), **INSTANT_EVENT)


def remember_language(blocks: gr.Blocks, labels: Labels, selector: gr.Radio) -> None:
    """Switches the language with its selector, and to that of the last visit when the page is opened."""
    state = browser_state("language")
    state.render()

    def put_back(stored: Any, language: Language) -> list[Any]:
        chosen = stored if stored in LANGUAGES else language
        return [chosen, *labels.switch(chosen)]

    selector.change(labels.switch, selector, labels.components, **INSTANT_EVENT)
    selector.input(None, selector, state, js="language => language", **INSTANT_EVENT)
    blocks.load(put_back, [state, selector], [selector, *labels.components], **INSTANT_EVENT)
