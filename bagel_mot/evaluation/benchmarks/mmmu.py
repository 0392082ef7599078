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
from collections import Counter
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
from bagel_mot.evaluation.vlmevalkit import kit_table, read_kit_table
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
_SUBJECTS = tuple(sorted(subject for subjects in DOMAINS.values() for subject in subjects))
_COUNTS = {"val": ("validation", 900), "dev": ("dev", 150), "test": ("test", 10_500)}
_SPLITS = tuple(split for split, _ in _COUNTS.values())
_SECRET = ("", "?")  # answers that are not published
_IMAGES = tuple(f"image_{n}" for n in range(1, 8))
_LETTERS = "ABCDEFGHI"
_CAP, _CAP_THINKING = 10, 16_384
_THINK_PROMPT = SYSTEM_PROMPT_UNDERSTAND.replace(" \n", " ") + "."
_MARKS = ",.!?;:'"
_MANY_WORDS = 5


class Mmmu(Benchmark):
    """MMMU as its Parquet files, a folder a subject; or VLMEvalKit's `MMMU_DEV_VAL.tsv` (or `MMMU_TEST.tsv`), in which
    a question without options is open, and the id tells the split and the subject.
    """

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
        vlmevalkit={"val": "MMMU_DEV_VAL", "dev": "MMMU_DEV_VAL", "test": "MMMU_TEST"},
    )

    def __init__(self, options: BenchmarkOptions) -> None:
        super().__init__(options)
        self._split, self._count = _COUNTS[variant_of(self.info, options)]

    @cached_property
    def _items(self) -> tuple[Item, ...]:
        table = kit_table(self.info, self.options)
        items = self._released() if table is None else self._tabled(table)
        if self._split == "test":  # its subjects differ in size; the whole is known
            found, expected = {"questions": len(items)}, {"questions": self._count}
        else:
            found = dict(Counter(str(item.facts["subject"]) for item in items))
            expected = {subject: self._count // len(_SUBJECTS) for subject in _SUBJECTS}
        require_complete(f"MMMU ({self._split})", found, expected, partial=self.options.partial)
        return tuple(items)

    def _released(self) -> list[Item]:
        """The items of the Parquet files."""
        items = []
        for subject in _SUBJECTS:
            folder = locate(self.options.data, f"MMMU/{subject}", subject)
            files = files_like(folder, f"{self._split}-*.parquet")
            rows = read_parquet(files, columns=("id", "question", "options", "answer", "question_type"), images=_IMAGES)
            for row in rows:
                texts = [] if row["question_type"] == "open" else _python_list(row["options"], row["id"])
                options = dict(zip(_LETTERS, texts, strict=False))
                images = [
                    _Doubled(row[name]) if name == _IMAGES[0] else row[name]
                    for name in _IMAGES
                    if row[name] is not None
                ]
                items.append(self._item(row["id"], row["id"], subject, row["question"], options, row["answer"], images))
        return items

    def _tabled(self, path: Path) -> list[Item]:
        """The items of VLMEvalKit's table that are of this split."""
        items = []
        for row in read_kit_table(path, columns=("id", "question", "answer")):
            place, name, answer = f"{path}, index {row.index}", row.cells["id"], row.cells["answer"]
            split, _, rest = name.partition("_")
            subject = rest.rpartition("_")[0]
            if subject not in _SUBJECTS or split not in _SPLITS:
                raise DataError(f"{place}: the id {name[:40]!r} does not name a split and a subject of MMMU.")
            options = {letter: row.cells[letter] for letter in _LETTERS if row.cells.get(letter)}
            if list(options) != list(_LETTERS[: len(options)]) or (
                options and answer not in options and answer not in _SECRET
            ):
                there = ", ".join(options)
                raise DataError(f"{place}: the options {there} have a gap, or lack the answer {answer[:20]!r}.")
            if split == self._split:
                question, images = row.cells["question"], (_Doubled(row.images[0]), *row.images[1:])
                items.append(self._item(row.index, name, subject, question, options, answer, images))
        return items

    def _item(
        self,
        id: str,
        name: str,
        subject: str,
        question: str,
        options: Mapping[str, str],
        answer: str,
        images: Sequence[ItemImage],
    ) -> Item:
        """An item; its name is the id that the benchmark has for it. An open question has no options."""
        question = question.strip()
        options = {letter: text.strip() for letter, text in options.items()}
        if not options:
            prompt = f"{question}\n{SHORT_SENTENCE}"
        elif self.options.think:
            prompt = f"Question: {question} Options: {option_lines(options)} \n{LETTER_SENTENCE}"
        else:
            prompt = f"{question}\n{option_lines(options)}\n{LETTER_SENTENCE}"
        return Item(
            id,
            "ask",
            _THINK_PROMPT + prompt if self.options.think else prompt,
            tuple(images),
            ask_settings(_CAP_THINKING if self.options.think else _CAP),
            facts={"subject": subject, "options": options, "truth": _truth(answer, not options)},
            row={"id": name, "question": question, **options, "answer": answer, "category": subject},
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
            if item.id in scores and item.row:
                detail = scores[item.id].detail
                answers[item.row["id"]] = detail["parsed"] if item.facts["options"] else detail["answer_part"]
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
    if answer in _SECRET:
        return None
    if is_open and answer.startswith("["):
        try:
            return [str(one) for one in ast.literal_eval(answer)]
        except (ValueError, SyntaxError):
            return answer  # an interval or a matrix, which is one answer
    return answer
