"""`bagel demo`: the abilities of a model in a minute, as a page and a contact sheet.

Four captions are drawn, one of the images is edited twice in a row, three questions are asked about the results, and
one riddle is drawn without and with thinking.
"""

from __future__ import annotations

import base64
import html
import io
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bagel_mot.files import make_writable_folder, write_atomically, writing

if TYPE_CHECKING:
    from bagel_mot.inference.api import Bagel

CAPTIONS = (
    "a red car below a yellow sun on the grass",
    "three blue stars at night",
    "a green fish left of an orange boat",
    "a white house in the top left, a pink flower in the bottom left and a purple cat in the bottom right",
)
EDITS = ("make the car blue", "change the background to night")
# (index of the image: first the drawn ones, then the edited ones; question)
QUESTIONS = ((1, "How many stars are there?"), (3, "What is below the house?"), (5, "What colour is the car?"))
RIDDLE = "draw as many white stars as a car has wheels"
_THINK_TOKENS, _ANSWER_TOKENS = 96, 24
_CARD, _PAD, _LINE = 224, 20, 17


@dataclass
class Card:
    """One result of the model.

    Attributes:
        title: the prompt, instruction or question.
        image: the image that the model drew, or that the question is about.
        text: the answer.
        thinking: the thinking before it.
        seconds: the time it took; the time of a batch is shared evenly.
        seed: the seed of a drawn image.
    """

    title: str
    image: Image.Image
    text: str = ""
    thinking: str = ""
    seconds: float = 0.0
    seed: int | None = None

    @property
    def note(self) -> str:
        """Seed and seconds in one line."""
        facts = [] if self.seed is None else [f"seed {self.seed}"]
        return " · ".join([*facts, f"{self.seconds:.1f} s"] if self.seconds else facts)


@dataclass
class DemoSection:
    """Cards of one kind."""

    title: str
    about: str
    cards: list[Card] = field(default_factory=list)


def run_demo(bagel: Bagel, folder: Path, *, seed: int = 0, console: Console | None = None) -> dict[str, Any]:
    """Runs the demonstration and writes `index.html`, `index.png` and the images into a folder.

    Args:
        bagel: the embedded model, or another one.
        folder: the folder to write, created if it is missing.
        seed: the seed of the first image; later ones count up.
        console: the terminal that shows the progress.

    Returns:
        Prompts, answers and seconds, ready for JSON.

    Raises:
        BagelError: the folder cannot be made or written, which is checked before anything is drawn.
    """
    console = console or Console(stderr=True)
    with writing(folder, "give another folder"):
        make_writable_folder(folder)
    started = time.perf_counter()
    sections = list(_sections(bagel, seed, console))
    seconds = time.perf_counter() - started
    with writing(folder, "give another folder"):
        cards = _write(folder, sections, seconds)
    return {"seed": seed, "seconds": round(seconds, 2), "cards": cards}


def _write(folder: Path, sections: list[DemoSection], seconds: float) -> list[dict[str, Any]]:
    """Writes images, page and contact sheet; returns the facts about each card."""
    written: list[dict[str, Any]] = []
    for number, section in enumerate(sections, start=1):
        for place, card in enumerate(section.cards, start=1):
            name = f"{number}-{place}.png"
            write_atomically(folder / name, partial(_save, card.image))
            facts = {"section": section.title, "prompt": card.title, "file": name, "seconds": round(card.seconds, 2)}
            written.append({**facts, "seed": card.seed, "text": card.text, "thinking": card.thinking})
    page = _page(sections, seconds)
    sheet = _sheet(sections, seconds)
    write_atomically(folder / "index.html", lambda path: path.write_text(page, encoding="utf-8"))
    write_atomically(folder / "index.png", partial(_save, sheet))
    return written


def _sections(bagel: Bagel, seed: int, console: Console) -> Iterator[DemoSection]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:

        @contextmanager
        def bar(what: str) -> Iterator[Callable[[int, int], None]]:
            task = progress.add_task(what, total=1)
            yield lambda done, total: progress.update(task, completed=done, total=total)
            progress.update(task, completed=progress.tasks[task].total)

        drawn = DemoSection("Drawn", "Four captions, drawn together.")
        with bar("drawing four captions") as step:
            seeds = [seed + i for i in range(len(CAPTIONS))]
            results = bagel.generate(list(CAPTIONS), seed=seeds, progress=step, return_result=True)
        share = results[0].seconds / len(results)
        drawn.cards = [Card(r.prompt, r.image, seconds=share, seed=r.seed) for r in results if r.image is not None]
        yield drawn

        edited = DemoSection("Edited", "The first picture, changed twice in one session.")
        session = bagel.session()
        session.add(drawn.cards[0].image)
        edited.cards.append(Card("the picture to start from", drawn.cards[0].image))
        for number, instruction in enumerate(EDITS):
            session.add(instruction)
            with bar(f"editing: {instruction}") as step:
                r = session.generate_image(seed=seed + number, progress=step, return_result=True)
            assert r.image is not None
            edited.cards.append(Card(instruction, r.image, seconds=r.seconds, seed=r.seed))
        yield edited

        asked = DemoSection("Asked", "Questions about these pictures.")
        images = [card.image for card in (*drawn.cards, *edited.cards[1:])]
        with bar("answering three questions"):
            shown, questions = [images[number] for number, _ in QUESTIONS], [text for _, text in QUESTIONS]
            answers = bagel.ask(
                [[image] for image in shown], questions, max_new_tokens=_ANSWER_TOKENS, return_result=True
            )
        share = answers[0].seconds / len(answers)
        asked.cards = [
            Card(question, image, answer.text or "(no answer)", seconds=share)
            for question, image, answer in zip(questions, shown, answers, strict=True)
        ]
        yield asked

        puzzled = DemoSection("Thought about", f"One riddle: “{RIDDLE}”.")
        for think in (False, True):
            title = "with thinking" if think else "without thinking"
            with bar(f"a riddle {title}") as step:
                limit: dict[str, Any] = {"max_think_tokens": _THINK_TOKENS} if think else {}
                r = bagel.generate(RIDDLE, seed=seed, think=think, progress=step, return_result=True, **limit)
            puzzled.cards.append(Card(title, r.image, thinking=r.thinking, seconds=r.seconds, seed=r.seed))
        yield puzzled


def _save(image: Image.Image, path: Path) -> None:
    image.save(path, "PNG")


def _shown(image: Image.Image, side: int) -> Image.Image:
    """An image scaled to the size of a card, with its shape kept."""
    scale = side / max(image.size)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _page(sections: list[DemoSection], seconds: float) -> str:
    """The page as one HTML file, images included."""
    style = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    parts = []
    for section in sections:
        cards = "".join(_figure(card) for card in section.cards)
        parts.append(
            f'<h2>{html.escape(section.title)}</h2><p>{html.escape(section.about)}</p><div class="cards">{cards}</div>'
        )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>BAGEL</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{style}</style></head><body><h1>BAGEL</h1>"
        f"<p>One model drew, edited, answered and thought all of this in {seconds:.0f} seconds.</p>"
        f"{''.join(parts)}</body></html>\n"
    )


def _figure(card: Card) -> str:
    data = io.BytesIO()
    _shown(card.image, 480).save(data, "PNG")
    source = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    lines = [f'<div class="title">{html.escape(card.title)}</div>']
    if card.thinking:
        lines.append(f'<div class="thinking">{html.escape(card.thinking)}</div>')
    if card.text:
        lines.append(f'<div class="text">{html.escape(card.text)}</div>')
    if card.note:
        lines.append(f'<div class="note">{html.escape(card.note)}</div>')
    alt = html.escape(card.title, quote=True)
    return f'<figure><img src="{source}" alt="{alt}"><figcaption>{"".join(lines)}</figcaption></figure>'


def _sheet(sections: list[DemoSection], seconds: float) -> Image.Image:
    """The contact sheet: the same content as one image."""
    fonts = {size: ImageFont.load_default(size) for size in (13, 14, 20, 28)}
    columns = max(len(section.cards) for section in sections)
    texts = [[_card_lines(card) for card in section.cards] for section in sections]
    heights = [_CARD + _LINE * max(map(len, lines)) + 58 for lines in texts]
    width = columns * (_CARD + _PAD) + _PAD
    sheet = Image.new("RGB", (width, 84 + sum(heights) + _PAD), "#faf8f4")
    pen = ImageDraw.Draw(sheet)
    pen.text((_PAD, 18), "BAGEL", "#222", fonts[28])
    pen.text((_PAD, 54), f"all of this in {seconds:.0f} seconds", "#777", fonts[14])
    top = 84
    for section, lines, height in zip(sections, texts, heights, strict=True):
        pen.text((_PAD, top), section.title, "#222", fonts[20])
        offset = _PAD + pen.textlength(section.title, fonts[20]) + 12
        pen.text((offset, top + 6), section.about.replace("“", '"').replace("”", '"'), "#777", fonts[13])
        for column, (card, own) in enumerate(zip(section.cards, lines, strict=True)):
            left = _PAD + column * (_CARD + _PAD)
            shown = _shown(card.image, _CARD)
            sheet.paste(shown, (left + (_CARD - shown.width) // 2, top + 32 + (_CARD - shown.height) // 2))
            for number, (text, colour) in enumerate(own):
                pen.text((left, top + _CARD + 38 + number * _LINE), text, colour, fonts[13])
        top += height
    return sheet


def _card_lines(card: Card) -> list[tuple[str, str]]:
    lines = [(line, "#222") for line in textwrap.wrap(card.title, 34)]
    lines += [(line, "#777") for line in textwrap.wrap(card.thinking, 34)]
    lines += [(line, "#0a5") for line in textwrap.wrap(card.text, 34)]
    return lines + ([(card.note.replace("·", ","), "#777")] if card.note else [])
