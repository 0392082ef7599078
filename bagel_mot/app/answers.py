"""Answers of a tab: the one that is being written or was chosen, and a list of earlier ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
from PIL import Image

from bagel_mot.app import view
from bagel_mot.app.context import PageContext, hidden_while_empty
from bagel_mot.app.history import HistoryEntry, TabHistory, opened_thumbnail, thumbnail_of
from bagel_mot.app.image_files import known_settings
from bagel_mot.app.texts.language import Language, say
from bagel_mot.inference.result import Result
from bagel_mot.task import Task

_SIDE = 96  # pixels a side of the small copies of images
_TITLE = 90  # characters


class AnswerField:
    """The place of an answer.

    Attributes:
        progress: progress while it is written.
        thinking: thinking before it, while that is written.
        answer: the answer.
        facts: a line about how it was made; of an earlier one, what was asked about what.
        outputs: all of them.
        shown_outputs: the components that `show_entry` updates.
    """

    def __init__(self, page: PageContext, part: str) -> None:
        self.progress = hidden_while_empty(f"{part}-progress")
        self.thinking = hidden_while_empty(f"{part}-thinking")
        self.answer = page.labels.make(
            gr.Textbox,
            label=say("answer"),
            placeholder=say("answer_hint"),
            lines=8,
            max_lines=24,
            interactive=False,
            buttons=["copy"],
            elem_id=f"{part}-answer",
            elem_classes="bagel-answer",
        )
        self.facts = hidden_while_empty(f"{part}-facts")
        self.shown_outputs: list[Any] = [self.thinking, self.answer, self.facts]
        self.outputs: list[Any] = [self.progress, *self.shown_outputs]

    def show_entry(self, entry: HistoryEntry | None, language: Language) -> list[Any]:
        """Updates of `shown_outputs` that show an earlier answer; None changes nothing."""
        if entry is None:
            return [gr.skip() for _ in self.shown_outputs]
        thinking = view.thinking_html(entry["thinking"], language) if entry["thinking"] else ""
        return [thinking, entry["answer"], view.asked_html(entry["question"], entry["thumbnails"])]


def answer_entry(result: Result, question: str, images: Sequence[Image.Image], paths: Sequence[str]) -> HistoryEntry:
    """An answer as JSON: "question", "answer", "thinking", "thumbnails" (base64) and "paths" of the images, "settings",
    "seed".
    """
    made = result.metadata()
    return {
        "question": question,
        "answer": result.text,
        "thinking": result.thinking,
        "thumbnails": [thumbnail_of(image, _SIDE) for image in images],
        "paths": list(paths),
        "settings": made["settings"],
        "seed": str(result.seed),
    }


class AnswerHistory(TabHistory):
    """A list of questions with the beginnings of their answers."""

    title, use, clear = "answers", "use_question", "clear_answers"

    def _list(self) -> Any:
        return self._page.labels.make(
            gr.Dataset,
            label=say("answers_label"),
            show_label=False,
            components=["textbox"],
            samples=[],
            layout="gallery",
            samples_per_page=100,
            elem_id=f"{self._part}-history",
            elem_classes="bagel-answers",
        )

    def _listed(self, entries: Sequence[HistoryEntry]) -> Any:
        return gr.Dataset(samples=[[_title(entry)] for entry in entries])

    def usable(self, entry: Any) -> bool:
        texts, lists = ("question", "answer", "thinking", "settings", "seed"), ("thumbnails", "paths")
        if not isinstance(entry, dict) or not all(isinstance(entry.get(name), str) for name in texts):
            return False
        if not all(_is_texts(entry.get(name)) for name in lists):
            return False
        try:
            known_settings(entry["settings"], entry["seed"], Task.ASK)
            return all(bool(opened_thumbnail(one)) for one in entry["thumbnails"])
        except ValueError:  # BagelError and what base64 raises
            return False


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _title(entry: HistoryEntry) -> str:
    """The question and the beginning of the answer in one line."""
    line = " ".join(f"{entry['question']} → {entry['answer']}".split())
    return f"{line[:_TITLE]}…" if len(line) > _TITLE else line
