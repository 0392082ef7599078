"""HTML of progress and results, and conversations as the messages of a chat window."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import MutableMapping, Sequence
from typing import Any

from PIL import Image

from bagel_mot.app.chats import ClosedSession, file_of
from bagel_mot.app.generation import Generation
from bagel_mot.app.image_files import keep
from bagel_mot.app.texts.language import Language, text
from bagel_mot.inference.history import Turn
from bagel_mot.inference.result import Result
from bagel_mot.inference.session import Session
from bagel_mot.inference.thinking import THINK_CLOSE, split_thinking, unfinished_tag, without_tags

ChatMessage = dict[str, Any]
"""A message as Gradio's Chatbot takes it."""


def progress_html(generation: Generation, language: Language) -> str:
    """A progress bar; where images are to come, also the thinking and the images as they form."""
    parts = [_bar(generation, language)]
    if generation.size is not None:
        if generation.text:
            parts.append(
                thinking_html(without_tags(_certain(generation.text)).strip(), language, open=not generation.total)
            )
        parts.append(_previews(generation, blanks=True))
    return f'<div class="bagel-progress">{"".join(parts)}</div>'


def stopped_html(generation: Generation, language: Language) -> str:
    """The step at which a generation was stopped, and its last previews."""
    return f'<div class="bagel-progress">{stopped_note(generation, language)}{_previews(generation)}</div>'


def stopped_note(generation: Generation, language: Language) -> str:
    """The step at which a generation was stopped."""
    done, total = generation.steps
    return _note(text(language, "stopped_at", done=done, total=total) if total else text(language, "stopped"))


def facts_html(results: Sequence[Result], language: Language) -> str:
    """Seeds, size, steps and seconds of the results, and the thinking of the first."""
    if not results:
        return ""
    first = results[0]
    seeds = ", ".join(str(result.seed) for result in results)
    words = [text(language, "seed_is", seed=seeds) if len(results) == 1 else text(language, "seeds_are", seeds=seeds)]
    if first.image is None and not first.settings["do_sample"]:
        words = []  # nothing of a greedy answer is random
    if first.image is not None:
        words.append(f"{first.image.width}×{first.image.height}")
        words.append(text(language, "steps_were", steps=first.settings["num_timesteps"] - 1))
    words.append(text(language, "seconds_were", seconds=f"{max(result.seconds for result in results):.1f}"))
    notes = _note(" · ".join(words)) + ("" if first.complete else _note(text(language, "broke_off")))
    return notes + (thinking_html(first.thinking, language) if first.thinking else "")


def entry_html(prompt: str, seed: str, size: str, language: Language) -> str:
    """Prompt, seed and size of an image of the history."""
    return _note(" · ".join([prompt, text(language, "seed_is", seed=seed), size]))


def asked_html(question: str, thumbnails: Sequence[str]) -> str:
    """The question of an earlier answer and small copies (base64, checked) of the images that it is about."""
    images = "".join(f'<img src="data:image/webp;base64,{one}" alt="">' for one in thumbnails)
    return _note(question) + (f'<div class="bagel-asked">{images}</div>' if images else "")


def thinking_html(thinking: str, language: Language, open: bool = False) -> str:
    """Thinking that can be folded up."""
    title = html.escape(text(language, "thinking"))
    return (
        f'<details class="bagel-thinking"{" open" if open else ""}><summary>{title}</summary>'
        f"<p>{html.escape(thinking)}</p></details>"
    )


def _note(words: str) -> str:
    return f'<div class="bagel-note">{html.escape(words)}</div>'


def _bar(generation: Generation, language: Language) -> str:
    share = generation.done / generation.total if generation.total else 0.0
    words = [_phase(generation, language)]
    if generation.total and not generation.stopped and (left := generation.seconds_left) is not None:
        words.append(text(language, "left", seconds=f"{left:.1f}" if left < 10 else math.ceil(left)))
    moving = "" if generation.total else " bagel-moving"
    return (
        f'<div class="bagel-bar{moving}" role="progressbar" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{round(share * 100)}"><div style="width:{share * 100:.1f}%"></div></div>'
        f"{_note(' · '.join(words))}"
    )


def _phase(generation: Generation, language: Language) -> str:
    if generation.stopped:
        return text(language, "is_stopping")
    if generation.total:
        done, total = generation.steps
        return text(language, "step", done=done, total=total)
    if generation.text:
        return text(language, "is_writing" if generation.size is None else "is_thinking")
    return text(language, "is_reading" if generation.begun else "is_waiting")


def _previews(generation: Generation, blanks: bool = False) -> str:
    """The latest preview of each image; a grey field where there is none yet, if `blanks`."""
    if generation.size is None:
        return ""
    found = [_preview(one.preview, generation.size) for one in generation.progress if blanks or one.preview]
    return f'<div class="bagel-previews bagel-previews-{min(generation.count, 2)}">{"".join(found)}</div>' * bool(found)


def _preview(preview: Image.Image | None, size: tuple[int, int]) -> str:
    """One image as it forms, at its final size on the page."""
    width, height = size if preview is None else preview.size  # a preview has the image's proportions
    shape = f"aspect-ratio:{width}/{height}"
    if preview is None:
        return f'<div class="bagel-preview bagel-blank" style="{shape}"></div>'
    data = io.BytesIO()
    preview.save(data, "JPEG", quality=85)
    source = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
    return f'<img class="bagel-preview" style="{shape}" src="{source}" alt="">'


# --------------------------------------------------------------------------------------------------------------- text


def split_stream(written: str, think: bool) -> tuple[str, str]:
    """Divides a text that is still being written into thinking and answer."""
    if not think:
        return "", written
    before, _, after = _certain(written).partition(THINK_CLOSE)
    return without_tags(before).strip(), without_tags(after).lstrip()


def _certain(written: str) -> str:
    """A text that is still being written, without the beginning of a tag at its end."""
    return written[: len(written) - unfinished_tag(written)]


# --------------------------------------------------------------------------------------------------------------- chat


def chat_messages(
    session: Session | ClosedSession | None, files: MutableMapping[Turn, str], language: Language
) -> list[ChatMessage]:
    """The messages of a conversation, None being an empty one; `files` keeps the file of each image."""
    found: list[ChatMessage] = []
    for turn in () if session is None else session.history:
        content = turn.content
        if isinstance(content, Image.Image):
            found.append(_image("user" if turn.kind == "image" else "assistant", file_of(turn, files)))
        elif turn.kind == "text":
            found.append(_text("user", content))
        elif turn.kind == "thought":
            found += _thinking(without_tags(_certain(content)).strip(), language)
        elif turn.kind == "answer":
            thinking, answer = (
                split_thinking(content, complete=False) if session is not None and session.think else ("", content)
            )
            found += _thinking(thinking, language)
            found.append(_text("assistant", answer.strip() or text(language, "no_answer")))
    return found  # without the system prompt


def input_messages(inputs: Sequence[Image.Image | str]) -> list[ChatMessage]:
    """The messages of inputs that are not part of the conversation yet."""
    return [_text("user", one) if isinstance(one, str) else _image("user", keep(one, "picture")) for one in inputs]


def progress_message(generation: Generation, language: Language) -> ChatMessage:
    """Progress and images as they form, at the place of the conversation where the finished ones will be."""
    return _text("assistant", progress_html(generation, language))


def partial_answer(written: str, think: bool, language: Language) -> list[ChatMessage]:
    """The messages of an answer that is still being written."""
    thinking, answer = split_stream(written, think)
    return _thinking(thinking, language, done=bool(answer)) + ([_text("assistant", answer)] if answer else [])


def _text(role: str, content: str) -> ChatMessage:
    return {"role": role, "content": content}


def _image(role: str, path: str) -> ChatMessage:
    return {"role": role, "content": {"path": path}}


def _thinking(content: str, language: Language, done: bool = True) -> list[ChatMessage]:
    if not content:
        return []
    metadata = {"title": text(language, "thinking"), "status": "done" if done else "pending"}
    return [{"role": "assistant", "content": content, "metadata": metadata}]
