"""MMMU: questions of college exams in 30 subjects, with options or open.

Published and fixed differ in the letters: the published scorer reads one at the very start only and takes an empty
answer for C; fixed looks for a letter in brackets, then for one between blanks, then, in answers of more than five
words, for the text of an option; the last mention counts, and what cannot be read is wrong. The benchmark's own scorer
(upstream) does the same, but guesses at random what it cannot read; here such an answer is wrong there, too.

With thinking the published prompt asks for it in the text of the question. Nothing published scores those answers: what
follows the last `</think>` is the answer, scored as fixed in every mode; a thought that never ends has none.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from bagel_mot.errors import DataError
from bagel_mot.evaluation.answers import (
    LETTER_SENTENCE,
    SHORT_SENTENCE,
    ask_settings,
    letter_of,
    option_lines,
    variant_of,
)
from bagel_mot.evaluation.base import (
    Benchmark,
    BenchmarkInfo,
    BenchmarkOptions,
    Item,
    ItemImage,
    ItemResult,
    Protocol,
    PublishedScore,
    Score,
    Summary,
    SummaryRow,
)
from bagel_mot.evaluation.data import files_like, locate, open_input, read_parquet, require_complete
from bagel_mot.evaluation.judges.base import Judges
from bagel_mot.evaluation.open_answers import is_right, parse_open
from bagel_mot.evaluation.rows import share_row
from bagel_mot.files import write_text
from bagel_mot.prompts import SYSTEM_PROMPT_UNDERSTAND

DOMAINS: dict[str, tuple[str, ...]] = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        *("Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy"),
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        *("Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics", "Energy_and_Power"),
        *("Materials", "Mechanical_Engineering"),
    ),
}
"""The subjects of each domain."""
_COUNTS = {"val": ("validation", 900), "dev": ("dev", 150), "test": ("test", 10_500)}
_IMAGES = tuple(f"image_{n}" for n in range(1, 8))
_LETTERS = "ABCDEFGHI"
_CAP, _CAP_THINKING = 10, 16_384
_THINK_PROMPT = SYSTEM_PROMPT_UNDERSTAND.replace(" \n", " ") + "."
_MARKS = ",.!?;:'"
_MANY_WORDS = 5


class Mmmu(Benchmark):
    """MMMU as its Parquet files: one folder a subject, or all in one."""

    info = BenchmarkInfo(
        name="mmmu",
        title="MMMU",
        ability="college-level knowledge and reasoning",
        items=900,
        needs="",
        scale=100,
        source="https://huggingface.co/datasets/MMMU/MMMU",
        licence="Apache-2.0",
        hub="MMMU/MMMU",
        paper="arXiv 2311.16502",
        published=(
            PublishedScore("Overall", 0.533, "BAGEL", "issue 236 of the BAGEL repository", "the plain script"),
            PublishedScore(
                "Overall", 0.553, "BAGEL, thinking", "BAGEL paper, table 4", "open answers judged by GPT-4o"
            ),
            PublishedScore("Overall", 0.432, "BAGEL, 1.5B", "BAGEL paper, table 4"),
        ),
        variants=tuple(_COUNTS),
    )

    def __init__(self, options: BenchmarkOptions) -> None:
        super().__init__(options)
        self._split, self._count = _COUNTS[variant_of(self.info, options)]

    @cached_property
    def _items(self) -> tuple[Item, ...]:
        items: list[Item] = []
        found = {}
        for subject in sorted(subject for subjects in DOMAINS.values() for subject in subjects):
            folder = locate(self.options.data, f"MMMU/{subject}", subject)
            files = files_like(folder, f"{self._split}-*.parquet")
            rows = read_parquet(files, columns=("id", "question", "options", "answer", "question_type"), images=_IMAGES)
            found[subject] = len(rows)
            items += [self._item(row, subject) for row in rows]
        expected = dict.fromkeys(found, self._count // 30)
        if self._split == "test":  # its subjects differ in size; the whole is known
            found, expected = {"questions": len(items)}, {"questions": self._count}
        require_complete(f"MMMU ({self._split})", found, expected, partial=self.options.partial)
        return tuple(items)

    def _item(self, row: Mapping[str, Any], subject: str) -> Item:
        question = row["question"].strip()
        is_open = row["question_type"] == "open"
        texts = [] if is_open else _python_list(row["options"], row["id"])
        options = {letter: text.strip() for letter, text in zip(_LETTERS, texts, strict=False)}
        if is_open:
            prompt = f"{question}\n{SHORT_SENTENCE}"
        elif self.options.think:
            prompt = f"Question: {question} Options: {option_lines(options)} \n{LETTER_SENTENCE}"
        else:
            prompt = f"{question}\n{option_lines(options)}\n{LETTER_SENTENCE}"
        images: list[ItemImage] = []
        for name in _IMAGES:
            if row[name] is not None:
                images.append(_Doubled(row[name]) if name == _IMAGES[0] else row[name])
        return Item(
            row["id"],
            "ask",
            _THINK_PROMPT + prompt if self.options.think else prompt,
            tuple(images),
            ask_settings(_CAP_THINKING if self.options.think else _CAP),
            facts={"subject": subject, "options": options, "truth": _truth(row["answer"], is_open)},
            row={"question": question, **options, "answer": row["answer"], "category": subject},
        )

    def items(self) -> Sequence[Item]:
        return self._items

    def score(self, item: Item, result: ItemResult, judges: Judges) -> Score:
        answer = after_thought(result.texts[0]) if self.options.think else result.texts[0]
        options, truth = item.facts["options"], item.facts["truth"]
        parsed: Any
        if not options:
            parsed = parse_open(answer)
            right = truth is not None and is_right(parsed, truth)
        else:
            fixed = self.options.think or self.options.protocol is not Protocol.PUBLISHED
            parsed = last_letter(answer, options) if fixed else letter_of(answer, options, fixed=False)
            right = parsed == truth
        detail = {"answer_part": answer, "parsed": parsed}
        unread = parsed not in options if options else parsed == [""]
        return Score({"right": None if truth is None else float(right)}, detail, unparsable=int(unread))

    def aggregate(self, scores: Mapping[str, Score]) -> Summary:
        by_subject: dict[str, list[float | None]] = {}
        for item in self._items:
            if item.id in scores:
                by_subject.setdefault(item.facts["subject"], []).append(scores[item.id].values["right"])
        rights = (right for group in by_subject.values() for right in group)
        rows: dict[str, SummaryRow] = {"Overall": share_row(rights)}
        for domain, subjects in DOMAINS.items():
            there = {subject: by_subject[subject] for subject in subjects if subject in by_subject}
            if there:
                rows[f"Overall-{domain}"] = share_row(right for rights in there.values() for right in rights)
                rows.update({subject: share_row(rights) for subject, rights in there.items()})
        extra = {"scored by": "the server of MMMU alone"} if rows["Overall"].value is None else {}
        return Summary(rows, ("Overall",), extra)

    def write_submission(
        self, folder: Path, results: Mapping[str, ItemResult], scores: Mapping[str, Score]
    ) -> list[Path]:
        """Writes `answers.json`, {id: answer}: a letter, or the text of an open answer."""
        answers = {}
        for item in self._items:
            if item.id in scores:
                detail = scores[item.id].detail
                answers[item.id] = detail["parsed"] if item.facts["options"] else detail["answer_part"]
        write_text(folder / "answers.json", json.dumps(answers, ensure_ascii=False, indent=1))
        return [folder / "answers.json"]


@dataclass(frozen=True)
class _Doubled:
    """The first image of a question, which the published script shows at twice its size (bilinear)."""

    image: ItemImage

    def __call__(self) -> Image.Image:
        image = open_input(self.image)
        return image.resize((2 * image.width, 2 * image.height), Image.Resampling.BILINEAR)


def after_thought(text: str) -> str:
    """The answer behind the last `</think>`; none if a thought begins and never ends."""
    if "</think>" in text:
        return text.rpartition("</think>")[2].strip()
    return "" if "<think>" in text else text


def last_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter that the benchmark's own parser reads, or None where it would guess.

    Letters in brackets are looked for, then letters between blanks, then, in more than five words, texts of options,
    whatever their case. Of several the one that is mentioned last counts.
    """
    for mark in _MARKS:
        answer = answer.strip(mark)
    answer = f" {answer} "
    for form in ("({})", " {} "):
        if places := {letter: at for letter in options if (at := answer.rfind(form.format(letter))) >= 0}:
            return max(places, key=places.__getitem__)
    if len(answer.split()) > _MANY_WORDS:
        lower = answer.lower()
        places = {letter: at for letter, text in options.items() if (at := lower.rfind(text.lower())) >= 0}
        return max(places, key=places.__getitem__, default=None)
    return None


def _python_list(text: str, id: str) -> list[str]:
    """The texts of a list that is written as Python has it."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise DataError(f"MMMU, {id}: {text[:60]!r} is not a list of options.") from error
    if not isinstance(value, list) or not 0 < len(value) <= len(_LETTERS):
        raise DataError(f"MMMU, {id}: {text[:60]!r} is not a list of up to {len(_LETTERS)} options.")
    return [str(option) for option in value]


def _truth(answer: str, is_open: bool) -> str | list[str] | None:
    """The right answer; several for some open questions; None where it is kept secret."""
    if answer in ("", "?"):
        return None
    if is_open and answer.startswith("["):
        try:
            return [str(one) for one in ast.literal_eval(answer)]
        except (ValueError, SyntaxError):
            return answer  # an interval or a matrix, which is one answer
    return answer
