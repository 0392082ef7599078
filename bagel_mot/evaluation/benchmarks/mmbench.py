"""MMBench: questions with two to five options, each asked once for every rotation of its options.

Published and fixed differ in one thing: the published script takes an empty answer for C. The published code leaves the
score to a server, so the scores are this package's own rule: a question is right if all its rotations are (circular).
In both modes an option whose text its table reader takes for a missing value, such as NA, is lost.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from bagel_mot.errors import DataError
from bagel_mot.evaluation.answers import (
    LETTER_SENTENCE,
    LETTER_SENTENCE_CN,
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
)
from bagel_mot.evaluation.data import MISSING_TEXTS, locate, require_complete, write_xlsx
from bagel_mot.evaluation.judges.base import Judges
from bagel_mot.evaluation.rows import share_row
from bagel_mot.evaluation.vlmevalkit import KitRow, kit_table, read_kit_table

_STEP = 1_000_000  # the k-th rotation of question i has the index i + k times this
_CAP = 100
_DEV_QUESTIONS = 1164
_LETTERS = "ABCDE"
_NOT_SUBMITTED = ("hint", "category", "source", "comment", "l2-category")
_PREDICTION_AT = 6  # the server reads the seventh column


class _Variant(NamedTuple):
    file: str
    chinese: bool
    questions: int | None  # None: the number is not known for certain


_VARIANTS = {
    "dev-en": _Variant("mmbench_dev_20230712.tsv", False, _DEV_QUESTIONS),
    "dev-en-20231003": _Variant("mmbench_dev_en_20231003.tsv", False, _DEV_QUESTIONS),
    "dev-cn": _Variant("mmbench_dev_cn_20231003.tsv", True, _DEV_QUESTIONS),
    "test-en": _Variant("mmbench_test_en_20231003.tsv", False, None),
    "test-cn": _Variant("mmbench_test_cn_20231003.tsv", True, None),
}


class MMBench(Benchmark):
    """MMBench as one TSV file, with images in base64. Answers of the test parts are scored by its server alone."""

    info = BenchmarkInfo(
        name="mmbench",
        title="MMBench",
        ability="perception and reasoning, by questions with options",
        items=_DEV_QUESTIONS,
        needs="",
        scale=100,
        source="https://github.com/open-compass/MMBench (TSV files)",
        licence="Apache-2.0 (not certain)",
        paper="arXiv 2307.06281",
        published=(
            PublishedScore(
                "circular", 0.85, "BAGEL", "BAGEL paper, table 4", "no version is named; the script runs dev-en"
            ),
            PublishedScore("circular", 0.792, "BAGEL, 1.5B", "BAGEL paper, table 4"),
        ),
        variants=tuple(_VARIANTS),
        vlmevalkit={
            "dev-en": "MMBench_DEV_EN",
            "dev-cn": "MMBench_DEV_CN",
            "test-en": "MMBench_TEST_EN",
            "test-cn": "MMBench_TEST_CN",
        },
    )

    def __init__(self, options: BenchmarkOptions) -> None:
        super().__init__(options)
        self._variant = _VARIANTS[variant_of(self.info, options)]

    @cached_property
    def _path(self) -> Path:
        table = kit_table(self.info, self.options)
        return table or locate(self.options.data, self._variant.file, f"mmbench/{self._variant.file}")

    @cached_property
    def _table(self) -> list[KitRow]:
        rows = read_kit_table(self._path, columns=("question", "A", "B"))
        for number, row in enumerate(rows, 2):
            if not row.index.isdecimal():
                raise DataError(f"{self._path}, row {number}: the index {row.index[:20]!r} is not a whole number.")
        return rows

    @cached_property
    def _items(self) -> tuple[Item, ...]:
        items = tuple(self._item(row.index, row.cells, row.images) for row in self._table)
        self._require_complete(items)
        return items

    def _item(self, index: str, row: Mapping[str, str], images: tuple[ItemImage, ...]) -> Item:
        options = {letter: row[letter] for letter in _LETTERS if row.get(letter, "") not in MISSING_TEXTS}
        hint = row.get("hint", "")
        sentence = LETTER_SENTENCE_CN if self._variant.chinese else LETTER_SENTENCE
        question = f"{hint}\n{row['question']}" if hint not in MISSING_TEXTS else row["question"]
        facts = {"options": options, "truth": row.get("answer") or None, "category": row.get("l2-category", "")}
        return Item(
            index,
            "ask",
            f"{question}\n{option_lines(options)}\n{sentence}",
            images,
            ask_settings(_CAP, self.options.think),
            facts=facts,
            group=str(int(index) % _STEP),
            row=row,
        )

    def _require_complete(self, items: Sequence[Item]) -> None:
        """Checks the number of questions, and that each has all rotations of its options and its images."""
        indices = {int(item.id) for item in items}
        first = [item for item in items if int(item.id) < _STEP]
        known = self._variant.questions
        require_complete(
            f"MMBench ({self._path.name})",
            {"questions": len(first)},
            {"questions": len(first) if known is None else known},
            files=(image for item in items for image in item.images if isinstance(image, Path)),
            partial=self.options.partial,
        )
        lacking = [
            item.id
            for item in first
            if any(int(item.id) + k * _STEP not in indices for k in range(sum(bool(item.row.get(x)) for x in _LETTERS)))
        ]
        if lacking and not self.options.partial:
            raise DataError(
                f"MMBench ({self._path.name}) lacks rotations of {len(lacking)} of {len(first)} questions "
                f"(index {', '.join(lacking[:3])}{', …' if len(lacking) > 3 else ''}): download it again."
            )

    def items(self) -> Sequence[Item]:
        return self._items

    def score(self, item: Item, result: ItemResult, judges: Judges) -> Score:
        options, truth = item.facts["options"], item.facts["truth"]
        parsed = letter_of(result.texts[0], options, fixed=self.options.protocol is Protocol.FIXED)
        right = None if truth is None else float(parsed == truth)
        return Score({"right": right}, {"parsed": parsed}, unparsable=int(parsed not in options))

    def aggregate(self, scores: Mapping[str, Score]) -> Summary:
        scored = [item for item in self._items if item.id in scores]
        rotations: dict[str, list[float | None]] = defaultdict(list)
        categories: dict[str, str] = {}
        for item in scored:
            question = str(item.group)
            rotations[question].append(scores[item.id].values["right"])
            if int(item.id) < _STEP or question not in categories:
                categories[question] = item.facts["category"]
        circular = {name: None if None in rights else float(all(rights)) for name, rights in rotations.items()}
        first = [scores[item.id].values["right"] for item in scored if int(item.id) < _STEP]
        rows = {
            "circular": share_row(circular.values()),
            "vanilla_all_rows": share_row(scores[item.id].values["right"] for item in scored),
            "vanilla_first_rows": share_row(first),
        }
        for category in sorted(set(categories.values()) - {""}):
            rows[f"circular/{category}"] = share_row(
                right for name, right in circular.items() if categories[name] == category
            )
        unlabelled = all(item.facts["truth"] is None for item in scored)
        return Summary(rows, ("circular",), {"scored by": "the server of MMBench alone"} if unlabelled else {})

    def write_submission(
        self, folder: Path, results: Mapping[str, ItemResult], scores: Mapping[str, Score]
    ) -> list[Path]:
        """Writes `results.xlsx`, which the server of MMBench reads: the letters in its seventh column."""
        columns = ["index", *(name for name in self._table[0].cells if name not in _NOT_SUBMITTED)]
        rows = []
        for row in self._table:
            if row.index in scores:
                cells: list[Any] = [int(row.index)]
                cells += [None if row.cells[name] in MISSING_TEXTS else row.cells[name] for name in columns[1:]]
                cells.insert(_PREDICTION_AT, scores[row.index].detail["parsed"])
                rows.append(cells)
        columns.insert(_PREDICTION_AT, "prediction")
        write_xlsx(folder / "results.xlsx", columns, rows)
        return [folder / "results.xlsx"]
