"""What is shown while something runs, and what is said of it afterwards: small pieces of HTML."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence

from PIL import Image

from bagel_mot.app.run import Run
from bagel_mot.app.texts.language import Language, text
from bagel_mot.inference.decode import THINK_CLOSE, THINK_OPEN
from bagel_mot.inference.result import Result


def at_work(run: Run, language: Language) -> str:
    """Progress; and where images are to come, thoughts, and the images as they form."""
    parts = [_bar(run, language)]
    if run.size is not None:
        if run.text:
            parts.append(thoughts(without_tags(run.text), language, open=not run.total))
        looks = "".join(_look(progress.preview, run.size) for progress in run.progress)
        parts.append(f'<div class="bagel-looks bagel-looks-{min(run.count, 2)}">{looks}</div>')
    return f'<div class="bagel-stage">{"".join(parts)}</div>'


def _bar(run: Run, language: Language) -> str:
    share = run.done / run.total if run.total else 0.0
    words = [html.escape(_state(run, language))]
    if run.total and not run.stopped and (left := run.seconds_left) is not None:
        words.append(text(language, "left", seconds=f"{left:.1f}" if left < 10 else math.ceil(left)))
    moving = "" if run.total else " bagel-moving"
    return (
        f'<div class="bagel-bar{moving}" role="progressbar" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{round(share * 100)}"><div style="width:{share * 100:.1f}%"></div></div>'
        f'<div class="bagel-note">{" · ".join(words)}</div>'
    )


def _state(run: Run, language: Language) -> str:
    if run.stopped:
        return text(language, "is_stopping")
    if run.total:
        steps = run.total // run.count
        return text(language, "step", done=min(math.ceil(run.done / run.count), steps), total=steps)
    if run.text:
        return text(language, "is_writing" if run.size is None else "is_thinking")
    return text(language, "is_reading" if run.begun else "is_waiting")


def _look(preview: Image.Image | None, size: tuple[int, int]) -> str:
    """One image as it forms, at its final size on the page; a grey field before the first look."""
    width, height = size if preview is None else preview.size  # a look has the image's proportions
    shape = f"aspect-ratio:{width}/{height}"
    if preview is None:
        return f'<div class="bagel-look bagel-blank" style="{shape}"></div>'
    data = io.BytesIO()
    preview.save(data, "JPEG", quality=85)
    source = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
    return f'<img class="bagel-look" style="{shape}" src="{source}" alt="">'


def stopped(run: Run, language: Language) -> str:
    """What is left of a run that was stopped: the last looks, and how far it was."""
    steps = run.total // run.count
    words = (
        text(language, "stopped_at", done=min(math.ceil(run.done / run.count), steps), total=steps)
        if steps
        else text(language, "stopped")
    )
    looks = "".join(_look(one.preview, run.size) for one in run.progress if run.size and one.preview)
    shown = f'<div class="bagel-looks bagel-looks-{min(run.count, 2)}">{looks}</div>' if looks else ""
    return f'<div class="bagel-stage"><div class="bagel-note">{html.escape(words)}</div>{shown}</div>'


def facts(results: Sequence[Result], language: Language) -> str:
    """How the results were made: seeds, size, steps, seconds, and the thinking of the first."""
    if not results:
        return ""
    first = results[0]
    seeds = [str(result.seed) for result in results]
    words = [
        text(language, "seed_is", seed=seeds[0])
        if len(seeds) == 1
        else text(language, "seeds_are", seeds=", ".join(seeds))
    ]
    if first.image is not None:
        words.append(f"{first.image.width}×{first.image.height}")
        words.append(text(language, "steps_were", steps=first.settings["num_timesteps"] - 1))
    words.append(text(language, "seconds_were", seconds=f"{max(result.seconds for result in results):.1f}"))
    note = f'<div class="bagel-note">{html.escape(" · ".join(words))}</div>'
    if not first.complete:
        note += f'<div class="bagel-note">{html.escape(text(language, "broke_off"))}</div>'
    return note + (thoughts(first.thinking, language) if first.thinking else "")


def thoughts(thinking: str, language: Language, open: bool = False) -> str:
    """Thinking, that one can fold up."""
    title = html.escape(text(language, "thinking"))
    return (
        f'<details class="bagel-thoughts"{" open" if open else ""}><summary>{title}</summary>'
        f"<p>{html.escape(thinking)}</p></details>"
    )


def split_stream(written: str, think: bool) -> tuple[str, str]:
    """Thinking and answer of a text that is still being written."""
    if not think:
        return "", written
    before, _, after = written.partition(THINK_CLOSE)
    return without_tags(before), after.lstrip()


def without_tags(written: str) -> str:
    """A thought as it is being written, without the tags around it."""
    return written.replace(THINK_OPEN, "").replace(THINK_CLOSE, "").strip()
